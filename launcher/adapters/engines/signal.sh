#!/bin/sh
# Signals the phase that runs in this container.
#
# usage: signal INT|TERM
#
# A second SIGINT makes Terraform give up its state, so of the whole tree below the
# phase's shell, nobody is told twice: on the way from the shell to each tool, one
# process gets the signal, and whoever is above it might pass it on and waits.
# Needs a POSIX sh, /proc and sleep.  Says "sent" when the tools have been told, and
# stays until they are gone, to tell those that waited for them.
set -u
exec 2>/dev/null

private=/run/spacelift
signal=$1

# Their children are helpers: to be told is their own business.
is_tool() {
    case $1 in
    terraform | tofu | ansible | ansible-playboo | pulumi | kubectl | helm | packer) ;;
    *) return 1 ;;
    esac
}

# They run another command; some pass signals on to it, and some do not.
is_wrapper() {
    case $1 in
    timeout | env | nice | nohup | setsid | stdbuf | time | xargs | find | make) ;;
    sudo | su | gosu | strace | script | tini | tini-static | dumb-init | catatonit) ;;
    docker-init | terragrunt | npm | aws-vault) ;;
    *) return 1 ;;
    esac
}

is_shell() {
    for shell in sh dash bash ash ksh mksh zsh busybox; do
        [ "/proc/$1/exe" -ef "/bin/$shell" ] && return
        [ "/proc/$1/exe" -ef "/usr/bin/$shell" ] && return
    done
    return 1
}

# Sets what the kernel says of a process: $name, $state, $parent.
look() {
    text=
    while IFS= read -r part; do text=$text$part; done <"/proc/$1/stat"
    name=${text#*\(} name=${name%)*}
    text=${text##*) }
    state=${text%% *} text=${text#* } parent=${text%% *}
    [ -n "$parent" ] && [ "$state" != Z ] && [ "$state" != X ]
}

# Whether a process lets the signal pass by, as what runs in the background does.
ignores() {
    ignored=
    while read -r key value; do
        [ "$key" != SigIgn: ] || ignored=$value
    done <"/proc/$1/status"
    case $ignored in
    *[2367abefABEF]) ;; # the second bit is SIGINT
    *) return 1 ;;
    esac
}

# Whether a process reads what another one of $members prints.
reads() {
    [ -p "/proc/$1/fd/0" ] || return 1
    for writer in $members; do
        [ "$writer" != "$1" ] || continue
        [ "/proc/$1/fd/0" -ef "/proc/$writer/fd/1" ] && return
        [ "/proc/$1/fd/0" -ef "/proc/$writer/fd/2" ] && return
    done
    return 1
}

# Whether a process has a pipe open besides its standard streams: if it slept, those
# who print into it would wait for it for ever.
relays() {
    for file in "/proc/$1/fd/"*; do
        case ${file##*/} in 0 | 1 | 2) continue ;; esac
        [ ! -p "$file" ] || return 0
    done
    return 1
}

# Sets $children of a process, as of the last snapshot.
children_of() { eval "children=\${children_${generation}_$1-}"; }

children='' generation=0
snapshot() {
    generation=$((generation + 1))
    for folder in /proc/[0-9]*; do
        pid=${folder#/proc/}
        look "$pid" || continue
        eval "children_${generation}_$parent=\"\${children_${generation}_$parent-} $pid\""
    done
    members=$phase queue=$phase
    while [ -n "$queue" ]; do
        pid=${queue%% *} rest=${queue#"$pid"}
        children_of "$pid"
        members="$members$children" queue="${rest# }$children" queue=${queue# }
    done
}

# Whether a known tool is below one of the processes.
leads_to_tool() {
    search=$*
    while [ -n "$search" ]; do
        next=${search%% *} search=${search#"$next"} search=${search# }
        look "$next" || continue
        ! is_tool "$name" || return 0
        children_of "$next"
        search="$search$children" search=${search# }
    done
    return 1
}

# Sorts the tree from the phase's shell down into $tools, $readers and $wrappers, and
# stops the shells among these: their next command must not begin meanwhile.
sort_members() {
    tools='' readers='' wrappers='' again='' queue=$phase
    while [ -n "$queue" ]; do
        pid=${queue%% *} queue=${queue#"$pid"} queue=${queue# }
        look "$pid" || continue
        children_of "$pid"
        below=$children
        if is_tool "$name"; then
            tools="$tools $pid"
        elif reads "$pid"; then
            readers="$readers $pid"
        elif [ -z "$below" ]; then
            ignores "$pid" || tools="$tools $pid"
        elif is_shell "$pid"; then
            wrappers="$wrappers $pid" queue="$queue$below"
            if ! is_stopped "$pid" && ! relays "$pid"; then
                kill -s STOP "$pid"
                stopped="$stopped $pid" again=1
            fi
        elif is_wrapper "$name" || leads_to_tool "${below# }"; then
            wrappers="$wrappers $pid" queue="$queue$below"
        else
            tools="$tools $pid"
        fi
        queue=${queue# }
    done
    [ -n "$again" ]
}

is_stopped() {
    case " $stopped " in *" $1 "*) ;; *) return 1 ;; esac
}

any_alive() {
    for pid; do
        ! look "$pid" || return 0
    done
    return 1
}

# Waits until the processes are gone, or the phase is, or for so many looks.
await() {
    most=$1 looks=0
    shift
    while [ "$looks" != "$most" ] && look "$phase" && any_alive "$@"; do
        looks=$((looks + 1))
        pause=0.05
        [ "$looks" -lt 100 ] || pause=0.5
        sleep "$pause" || sleep 1
    done
}

phase=
read -r phase _ <"$private/phase"
if [ -z "$phase" ] || ! look "$phase"; then
    echo sent # there is nobody any more
    exit
fi

if [ "$signal" != INT ]; then
    snapshot
    for pid in $members; do
        kill -s "$signal" "$pid"
        kill -s CONT "$pid"
    done
    echo sent
    exit
fi

# Whoever asks again, because an answer got lost or the launcher began anew, gets it.
if ! (set -C && echo "$phase" >"$private/interrupted"); then
    echo sent
    exit
fi

stopped=
snapshot
while sort_members && [ "$generation" -lt 20 ]; do
    snapshot
done

# The phase's shell passes nothing on, and must not begin its next command: when it
# could not be stopped, it is told with the first.
case $wrappers in
" $phase" | " $phase "*) is_stopped "$phase" || kill -s INT "$phase" ;;
esac
for pid in $tools; do
    kill -s INT "$pid"
    ! is_stopped "$pid" || kill -s CONT "$pid"
done
echo sent
exec >/dev/null </dev/null

# shellcheck disable=SC2086 # lists of numbers
{
    await -1 $tools
    await 10 $readers
    for pid in $readers; do kill -s INT "$pid"; done
    for pid in $wrappers; do
        [ "$pid" = "$phase" ] && ! is_stopped "$pid" && continue
        kill -s INT "$pid"
    done
    for pid in $stopped; do kill -s CONT "$pid"; done
}
