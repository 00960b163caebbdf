#!/usr/bin/env bash
# Adds two QEMU guests to the running demonstration and opens a console on the first.
set -euo pipefail
cd "$(dirname "$0")/../.."
dunlin=target/release/dunlin
image=target/guest
sockets=/run/dunlin/vhost

$dunlin status >/dev/null || { echo "start the demonstration first, in another shell: make run" >&2; exit 1; }
configs/demo/guest/image.sh $image
mkdir -p $sockets

cleanup() {
    trap - EXIT
    [ -z "${pid:-}" ] || kill "$pid" 2>/dev/null || true
    $dunlin port del web1 web2 >/dev/null 2>&1 || true
    rm -f $sockets/web1.sock $sockets/web2.sock
    stty sane 2>/dev/null || true
}
trap cleanup EXIT

$dunlin port add web1 --kind vhost-user --vlan 10
$dunlin port add web2 --kind vhost-user --vlan 10
configs/demo/guest/run.sh --name web2 --socket $sockets/web2.sock --ip 10.0.0.12/24 --image $image \
    --console unix:$sockets/web2.console </dev/null >/dev/null 2>&1 &
pid=$!
cat <<EOF
web1 is 10.0.0.11, web2 is 10.0.0.12, both in VLAN 10; the console of web1 follows.
Try: ping 10.0.0.12, ping 10.0.0.1, iperf3 -s. Leave with 'poweroff' or Ctrl-A x.
EOF
configs/demo/guest/run.sh --name web1 --socket $sockets/web1.sock --ip 10.0.0.11/24 --image $image --console stdio
