#!/bin/sh
# The first process of a run container, below the engine's init.
#
# usage: entry NONCE DEADLINE_SECONDS LOG_LIMIT_BYTES
#
# Reads commands from standard input and runs each phase in a shell process of
# its own, both streams appended to one file.  Secrets come in with the phases
# and stay on a tmpfs.  Written for any POSIX sh, so that the image decides.
set -u
umask 022

nonce=$1 deadline=$2 limit=$3
log=/mnt/spacelift-log/output
reserve=/mnt/spacelift-log/reserve
private=/run/spacelift
workspace=/mnt/workspace
signaller=/mnt/spacelift-log/signal

exec 3<&0 </dev/null >>"$log" 2>&1

# Where a phase begins and ends in the output; the launcher takes these out again.
# On a full disk there is room for them in a file that is given up then; without
# them nobody would learn that the phase is over, so the container ends.
mark() {
    printf '\036%s %s\037' "$nonce" "$*" 2>/dev/null && return
    : >"$reserve"
    { printf '\036%s full\037' "$nonce" && printf '\036%s %s\037' "$nonce" "$*"; } || exit 1
}

# The same, as a command for the phase's own shell: it is the one to be signalled.
marking() { printf "printf '\036%s %s\037'\n" "$nonce" "$*"; }

# Who is to be signalled, and how long it may take then; the same way.
remembering() { printf 'echo "$$ %s" >%s/phase\n' "$1" "$private"; }

# How often the kernel has killed something in here for want of memory, as $kills.
# Starts no process: perhaps none can be started any more.
count_kills() {
    kills=0
    for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control
    do
        [ ! -r "$file" ] || while read -r key value; do
            [ "$key" != oom_kill ] || kills=$value
        done <"$file"
    done
}

# Whether the workspace takes another byte, as $cause.  Starts no process, either.
look_for_room() {
    { true >"$workspace/.spacelift-room"; } 2>/dev/null || return 0
    { printf x >>"$workspace/.spacelift-room"; } 2>/dev/null || cause=full
    { true >"$workspace/.spacelift-room"; } 2>/dev/null
}

# Why nothing can run in this image, or a little less than usual, in one mark.
look_around() {
    lacks=
    for program in tail stat sed rm date sleep; do
        command -v "$program" >/dev/null || lacks="$lacks $program"
    done
    ! command -v id >/dev/null || id -un >/dev/null || lacks="$lacks user"
    [ -z "$lacks" ] || {
        mark "lacks$lacks"
        exit 1
    }
    command -v ps >/dev/null || mark misses ps
}

# A signal meant for everybody reaches this shell, too.  Between phases there is
# nothing to end, and a read that is interrupted loses what it has read already.
trap '' HUP INT TERM

# Ends everything when the launcher is gone and nobody else would.
end_everything() {
    mark "$1"
    shell='' grace=''
    [ ! -r "$private/phase" ] || read -r shell grace <"$private/phase"
    /bin/sh "$signaller" INT >/dev/null &
    left=${grace:-0}
    while [ "$left" -gt 0 ] && kill -s 0 "$shell" 2>/dev/null; do
        sleep 1
        left=$((left - 1))
    done
    for signal in TERM KILL; do
        # Who was stopped hears nothing.
        for each in "$signal" CONT; do kill -s "$each" -- -1 2>/dev/null; done
        sleep 30
    done
}

watch() {
    end=$(($(date +%s) + deadline))
    while sleep 5; do
        [ "$(date +%s)" -lt "$end" ] || end_everything deadline
        size=$(stat -c %s "$log") || size=0 # the launcher counts, too
        [ "$size" -le "$limit" ] || end_everything log-limit
    done
}
look_around 2>/dev/null
watch 3<&- &

receive() {
    while IFS= read -r line <&3; do
        [ "$line" != "$nonce" ] || return 0
        printf '%s\n' "$line"
    done
    return 1
}

begun=0 count=0 failed=0
while IFS= read -r line <&3; do
    case $line in
    'phase '*)
        name=${line#phase } grace=${line##* }
        number=${name%% *} name=${name#* }
        name=${name%" $grace"}
        # Two launchers that both believe they have this container each send it.
        if [ "$number" -ne "$begun" ]; then
            receive >/dev/null || exit 1
            continue
        fi
        begun=$((begun + 1))
        umask 077
        { remembering "$grace"; marking "begin $name"; receive; } >"$private/script" || exit 1
        umask 022
        rm -f "$private/reached" "$private/interrupted" "$private"/at.*
        count_kills
        before=$kills
        # Caught, not ignored: then the phase's own shell has the defaults.
        trap : HUP INT TERM
        /bin/sh "$private/script" 3<&-
        code=$?
        trap '' HUP INT TERM
        if [ "$code" -eq 0 ] && [ ! -e "$private/reached" ]; then
            echo 'A command ended the shell before the phase was complete.'
            code=1
        fi
        # How far it got: the number of the command that was begun last.
        at=0 cause=
        while [ -e "$private/at.$((at + 1))" ]; do at=$((at + 1)); done
        [ ! -e "$private/at.end" ] || at=end
        [ "$code" -eq 0 ] || look_for_room
        count_kills
        [ "$kills" = "$before" ] || cause=oom
        # For the container's own exit code, which no phase can write.
        if [ "$name" != after_run ]; then
            count=$((count + 1))
            [ "$code" -eq 0 ] || failed=1
        fi
        mark "end $name $code at:$at $cause"
        ;;
    'finish '*)
        [ "${line#finish }" -eq "$count" ] && exit "$failed"
        exit 1
        ;;
    exit) exit 0 ;;
    esac
done
