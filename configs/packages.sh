#!/usr/bin/env bash
# Installs the Debian packages that the named groups need and that are not there yet.
# usage: packages.sh build|run|guests|test|bench ...
set -euo pipefail

declare -A groups=(
    [build]="gcc libc6-dev pkg-config libdpdk-dev dpdk libclang-dev clang protobuf-compiler"
    [run]="iproute2 iputils-ping ethtool procps"
    [guests]="qemu-system-x86 busybox-static cpio gzip iperf3 ethtool socat"
    [test]="valgrind python3 python3-scapy iperf3 tcpdump tshark arping prometheus iputils-ping curl openssl openvswitch-switch dnsmasq-base radvd isc-dhcp-client"
    [bench]="python3 dpdk-dev openvswitch-switch-dpdk iproute2 iperf3"
)
# The Rust that the workspace asks for; Debian has a new one for its browsers.
rust_needed=1.90

wanted=()
for group in "$@"; do
    for package in ${groups[$group]}; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || wanted+=("$package")
    done
done
rust=$( (cargo --version 2>/dev/null || echo cargo 0) | awk '{ print $2 }')
if [ "$(printf '%s\n%s\n' "$rust_needed" "$rust" | sort -V | head -n 1)" != "$rust_needed" ]; then
    wanted+=(cargo-web rustc-web)
fi
[ ${#wanted[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "these packages are missing, and only root can install them: apt-get install ${wanted[*]}" >&2
    exit 1
fi
echo "installing ${wanted[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# Daemons that come with test tools are not to run by themselves.
had_policy=1
if [ ! -e /usr/sbin/policy-rc.d ]; then
    had_policy=0
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
status=0
apt-get install -q -y --no-install-recommends "${wanted[@]}" >/dev/null || status=$?
[ $had_policy -eq 1 ] || rm -f /usr/sbin/policy-rc.d
exit $status
