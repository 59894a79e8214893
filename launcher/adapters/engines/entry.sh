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
private=/run/spacelift

exec 3<&0 </dev/null >>"$log" 2>&1

# Where a phase ends in the output; the launcher takes these out again.
mark() { printf '\036%s %s\036' "$nonce" "$*"; }

# A signal meant for the tool reaches this shell, too: live on and report.
trap : HUP INT TERM

# Ends everything when the launcher is gone and nobody else would.
end_everything() {
    mark "$1"
    for signal in INT TERM KILL; do
        kill -s "$signal" -- -1 2>/dev/null
        sleep 30
    done
}

watch() {
    trap '' HUP INT TERM
    end=$(($(date +%s) + deadline))
    while sleep 5; do
        [ "$(date +%s)" -lt "$end" ] || end_everything deadline
        [ "$(stat -c %s "$log")" -le "$limit" ] || end_everything log-limit
    done
}
watch 3<&- &

receive() {
    while IFS= read -r line <&3; do
        [ "$line" != "$nonce" ] || return 0
        printf '%s\n' "$line"
    done
    return 1
}

while IFS= read -r command <&3; do
    case $command in
    'phase '*)
        (umask 077 && receive >"$private/script") || exit 1
        rm -f "$private/reached"
        /bin/sh "$private/script" 3<&-
        code=$?
        if [ "$code" -eq 0 ] && [ ! -e "$private/reached" ]; then
            echo 'A command ended the shell before the phase was complete.'
            code=1
        fi
        mark "end ${command#phase } $code"
        ;;
    exit) exit 0 ;;
    esac
done
