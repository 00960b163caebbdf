#!/usr/bin/env bash
# Starts dataplane and control, supervised, and a demonstration: three network namespaces on a
# bridge, two in VLAN 10 and one in VLAN 20. With a file as argument it runs that configuration
# of a real host instead. Ctrl-C takes down all that it made.
# usage: run.sh [CONFIG.toml]
set -euo pipefail
cd "$(dirname "$0")/../.."
config=${1:-}
bin=target/release
run=/run/dunlin
memory=${MEMORY:-512}
log=$run/log
store=$run/demo.redb
[ -z "$config" ] || store=/var/lib/dunlin/state.redb
hosts=(blue green red)

[ "$(id -u)" -eq 0 ] || { echo "run this as root: it makes interfaces and talks to DPDK" >&2; exit 1; }
if ss -lxH | grep -qE " $run/(control|dataplane)\.sock "; then
    echo "Dunlin runs already on this machine ('$bin/dunlin status')" >&2
    exit 1
fi
made_run=
[ -d $run ] || made_run=yes
mkdir -p $run $log

made_pages=
cleanup() {
    trap - EXIT INT TERM
    echo
    echo "taking it down"
    # shellcheck disable=SC2086 # a list of numbers
    kill ${pids:-} 2>/dev/null || true
    wait 2>/dev/null || true
    if [ -z "$config" ]; then
        for h in "${hosts[@]}"; do ip netns del "dunlin-$h" 2>/dev/null || true; done
        for h in "${hosts[@]}"; do ip link del "veth-$h" 2>/dev/null || true; done
        rm -rf $log $store
        [ -z "$made_run" ] || rm -rf $run
    fi
    [ -z "$made_pages" ] || echo "$made_pages" >/proc/sys/vm/nr_hugepages
}
trap cleanup EXIT
trap 'exit 0' INT TERM

# Hugepages if the machine has them to give; ordinary pages otherwise.
pages=()
need=$((memory / 2 + 4))
free=$(awk '/HugePages_Free/ { print $2 }' /proc/meminfo)
if [ "${free:-0}" -lt "$need" ]; then
    before=$(cat /proc/sys/vm/nr_hugepages 2>/dev/null || echo 0)
    if echo $((before - free + need)) 2>/dev/null >/proc/sys/vm/nr_hugepages; then made_pages=$before; fi
    free=$(awk '/HugePages_Free/ { print $2 }' /proc/meminfo)
fi
if [ "${free:-0}" -lt "$need" ]; then
    pages=(--no-huge)
    echo "no hugepages to be had: using ordinary pages (slower)"
fi

# The last core forwards; the others stay with the rest of the machine.
core=$(($(nproc) - 1))
configs/demo/supervise.sh $log/dataplane.log $bin/dunlin-dataplane --cores $core --memory "$memory" "${pages[@]}" &
pids=$!
configs/demo/supervise.sh $log/control.log $bin/dunlin-control --store $store &
pids="$pids $!"

for _ in $(seq 100); do
    if $bin/dunlin --json status 2>/dev/null | grep -q '"dataplane_up": true'; then break; fi
    sleep 0.1
done
if ! $bin/dunlin --json status 2>/dev/null | grep -q '"dataplane_up": true'; then
    echo "the switch did not come up; its logs:" >&2
    tail -n 5 $log/*.log >&2
    exit 1
fi

if [ -n "$config" ]; then
    $bin/dunlin apply --yes -f "$config"
    $bin/dunlin status
    echo "running; logs in $log. Ctrl-C stops it."
    wait
    exit 0
fi

n=1
for h in "${hosts[@]}"; do
    ip netns add "dunlin-$h"
    ip link add "veth-$h" type veth peer name eth0 netns "dunlin-$h"
    ip link set "veth-$h" up
    ip -n "dunlin-$h" link set lo up
    ip -n "dunlin-$h" link set eth0 up
    ip -n "dunlin-$h" addr add 10.0.0.$n/24 dev eth0
    n=$((n + 1))
done
$bin/dunlin apply --yes -f configs/demo/demo.toml
$bin/dunlin port list
cat <<EOF

The switch runs: blue (10.0.0.1) and green (10.0.0.2) are in VLAN 10, red (10.0.0.3) in VLAN 20.
In another shell, in this folder:

    ip netns exec dunlin-blue ping 10.0.0.2         # answers
    ip netns exec dunlin-blue ping 10.0.0.3         # does not: another VLAN
    $bin/dunlin port set red --vlan 10     # now it does
    $bin/dunlin mac list
    $bin/dunlin watch
    curl -s localhost:9477/metrics | grep receive_frames
    make guests                                     # two QEMU guests join, with a console on one

Logs are in $log. Ctrl-C takes everything down.
EOF
wait
