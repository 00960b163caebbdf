#!/usr/bin/env bash
# Runs stages of `make test` one after the other, says how long each took, and at the end how each ended.
# usage: test.sh TARGET ...      (targets of the Makefile)
set -uo pipefail
cd "$(dirname "$0")/.."

took() { printf '%d:%02d min' $(($1 / 60)) $(($1 % 60)); }

declare -A words=([lint]="formatting and lints" [unit]="unit and property tests" [fuzz]="fuzzing"
    [instructions]="instructions per frame" [build]="release build" [e2e]="end-to-end tests")
summary=() failed=0 number=0
for stage in "$@"; do
    number=$((number + 1))
    echo "==> stage $number of $#, ${words[$stage]:-$stage}: begins after $(took $SECONDS)"
    begun=$SECONDS
    result=passed
    "${MAKE:-make}" --no-print-directory "$stage" || { result=FAILED failed=1; }
    line=$(printf '%-24s %-6s %s' "${words[$stage]:-$stage}" $result "$(took $((SECONDS - begun)))")
    echo "==> $line"
    summary+=("$line")
done
echo "==> summary, $(took $SECONDS) in all"
printf '    %s\n' "${summary[@]}"
exit $failed
