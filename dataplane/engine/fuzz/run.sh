#!/usr/bin/env bash
# Runs all fuzz targets side by side, from a copy of the committed corpus, with nothing but Rust and clang.
# usage: run.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
work=$(realpath ../../..)/target/fuzz

# The flags in .cargo/config.toml are meant, whatever the environment has.
env -u RUSTFLAGS -u CARGO_TARGET_DIR cargo build --release --locked
declare -A pids
for target in pipeline headers; do
    rm -rf "${work:?}/$target"
    mkdir -p "$work/$target/found"
    cp -r "corpus/$target" "$work/$target/corpus"
    # A limit for one input that no machine reaches by being slow: the usual is some milliseconds.
    "$work/x86_64-unknown-linux-gnu/release/$target" "$work/$target/corpus" -max_total_time="$seconds" -timeout=30 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$work/$target/found/" >"$work/$target/log" 2>&1 &
    pids[$target]=$!
done
failed=0
for target in "${!pids[@]}"; do
    inputs=$(find "corpus/$target" -type f | wc -l)
    if ! wait "${pids[$target]}"; then
        tail -n 40 "$work/$target/log"
        echo "fuzz $target: failed; the input is in $work/$target/found: add it to $PWD/corpus/$target"
        failed=1
        continue
    fi
    runs=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$work/$target/log")
    echo "fuzz $target: $runs runs in $seconds s, from $inputs inputs"
    # Without coverage, or without time for more than the corpus, it was no fuzzing.
    if [ "$runs" -le "$inputs" ] || ! grep -q 'cov: ' "$work/$target/log"; then
        echo "fuzz $target: ran nothing new: see $work/$target/log"
        failed=1
    fi
done
exit $failed
