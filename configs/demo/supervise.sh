#!/usr/bin/env bash
# Runs a command and starts it again whenever it ends, as the systemd units do (Restart=always).
# Ends, and ends the command, at SIGTERM. Waits longer while the command keeps failing at once.
# usage: supervise.sh LOG COMMAND [ARGUMENT ...]
set -u
log=$1
shift
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; exit 0' TERM INT
pause=0.2
while true; do
    begun=$(date +%s)
    "$@" >>"$log" 2>&1 &
    child=$!
    wait "$child"
    code=$?
    # A second wait: the first also returns when a trapped signal arrives.
    kill -0 "$child" 2>/dev/null && wait "$child"
    echo "$(date -Is) $(basename "$1") ended with $code; starting it again in $pause s" >>"$log"
    if [ $(($(date +%s) - begun)) -lt 2 ]; then
        pause=$(awk "BEGIN { p = $pause * 2; print p > 10 ? 10 : p }")
    else
        pause=0.2
    fi
    sleep "$pause"
done
