#!/usr/bin/env bash
# Runs a command and starts it again whenever it ends, as the systemd units do (Restart=always).
# Ends, and ends the command, at SIGTERM.
# usage: supervise.sh LOG COMMAND [ARGUMENT ...]
set -u
log=$1
shift
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; exit 0' TERM INT
while true; do
    "$@" >>"$log" 2>&1 &
    child=$!
    wait "$child"
    code=$?
    # A second wait: the first also returns when a trapped signal arrives.
    kill -0 "$child" 2>/dev/null && wait "$child"
    echo "$(date -Is) $(basename "$1") ended with $code; starting it again" >>"$log" || exit 1
    # Exit code 78 says that the machine or the options are not as they must be: no use in trying.
    [ "$code" -ne 78 ] || exit 78
    sleep 0.2
done
