#!/usr/bin/env bash
# image.sh [OUTDIR]: make the kernel and the initramfs of a demo guest, OUTDIR/vmlinuz and OUTDIR/initrd.
#
# With dunlin.host=PROGRAM it is no guest but another host, for what this one's kernel can't do: the root of this host,
# shared by virtiofsd as "root", is its own, and what it writes there is gone with it. It runs the program and ends.
#
# The kernel is Debian's cloud kernel, downloaded and unpacked but not installed. The initramfs holds
# busybox, the virtio-net and VLAN drivers, and iperf3, ethtool and tcpdump of the host. The guest reads
# its settings from the kernel's command line, so that one image serves all guests; run.sh writes them:
#   dunlin.name=web1 dunlin.ip=10.0.0.1/24 dunlin.vlan=30 dunlin.mtu=9000 dunlin.queues=2
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/../../../target/guest}

die() { echo "image.sh: $*" >&2; exit 1; }

# The initrd is moved into place last, so it is never newer than the script without being whole.
if [[ -f $out/vmlinuz && $out/vmlinuz -nt ${BASH_SOURCE[0]} &&
      -f $out/initrd && $out/initrd -nt ${BASH_SOURCE[0]} ]]; then
    exit 0
fi

missing=()
for need in busybox:busybox-static cpio:cpio gzip:gzip iperf3:iperf3 ethtool:ethtool; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
((${#missing[@]} == 0)) || die "not installed: ${missing[*]} (apt-get install ${missing[*]})"
busybox=$(command -v busybox)
# Debian's other package of busybox has the same command but is linked dynamically and lacks applets.
if ldd "$busybox" >/dev/null 2>&1; then
    die "$busybox is not static (apt-get install busybox-static)"
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# linux-image-cloud-amd64 itself is empty and depends on the current kernel.
package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9].*-cloud-amd64$/ { print $2 }') || true
[[ -n $package ]] || die "apt does not know linux-image-cloud-amd64 (apt-get update)"
# As root, apt would download as the user _apt, who may not write here, and warn about it.
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package")
dpkg -x "$work/$package"_*.deb "$work/kernel"

mkdir -p "$root"/{bin,sbin,dev,etc,lib,proc,root,run,sys,tmp,var/log,modules}
cp "$busybox" "$root/bin/busybox"

# The numbers keep the order, which /init follows.
number=10
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
              failover net_failover virtio_net llc stp garp mrp 8021q; do
    file=$(find "$work/kernel" -name "$module.ko")
    [[ -n $file ]] || die "$package has no module $module"
    cp "$file" "$root/modules/$((number++))-$module.ko"
done

# For another host: its root, interfaces as they are in tests, what the kernel steers a tap's frames by, and what gives
# DPDK a NIC.
for module in fuse virtiofs overlay tun veth sch_multiq sch_ingress cls_flower act_skbedit \
              irqbypass vfio vfio_virqfd vfio_iommu_type1 vfio-pci-core vfio-pci; do
    file=$(find "$work/kernel" -name "$module.ko")
    [[ -n $file ]] || die "$package has no module $module"
    install -D "$file" "$root/modules/host/$((number++))-$module.ko"
done

# A program and its libraries keep their paths, so that the loader finds them as it does on the host.
for tool in iperf3 ethtool tcpdump; do
    program=$(command -v "$tool") || continue
    for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
        install -D "$file" "$root$file"
    done
done

# tcpdump becomes the user tcpdump before it opens files; here that is root again.
printf '%s::0:0::/root:/bin/sh\n' root tcpdump >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

# busybox init runs the shell: it gives it a terminal (job control), starts it again when it exits, and
# makes poweroff and reboot work.
echo 'ttyS0::respawn:-/bin/sh' >"$root/etc/inittab"
cat >"$root/etc/profile" <<'PROFILE'
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=vt100
PS1="$(hostname)# "
cd /root
PROFILE

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

name=guest ip='' vlan='' mtu='' queues='' program=''
for word in $(cat /proc/cmdline); do
    value=${word#*=}
    case $word in
        dunlin.name=*) name=$value ;;
        dunlin.ip=*) ip=$value ;;
        dunlin.vlan=*) vlan=$value ;;
        dunlin.mtu=*) mtu=$value ;;
        dunlin.queues=*) queues=$value ;;
        dunlin.host=*) program=$value ;;
    esac
done
hostname "$name"
[ -n "$program" ] && mv /modules/host/*.ko /modules

# insmod loads nothing that a module needs, and the right order may differ in another kernel: a module
# that fails is tried again once the others are in.
for _ in 1 2 3; do
    for module in /modules/*.ko; do
        [ -e "$module" ] && insmod "$module" 2>/dev/null && rm "$module"
    done
done

# IPv6 stays usable, but an interface makes no address of its own and sends nothing unasked: a test that
# counts frames wants to see its own. An address added by hand works at once (no duplicate detection).
for conf in default eth0; do
    [ -d /proc/sys/net/ipv6/conf/$conf ] || continue
    echo 1 >/proc/sys/net/ipv6/conf/$conf/addr_gen_mode
    echo 0 >/proc/sys/net/ipv6/conf/$conf/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/$conf/router_solicitations
done

ip link set lo up
if [ -n "$program" ]; then
    mkdir /lower /writes /host
    mount -t virtiofs -o ro root /lower
    mount -t tmpfs tmpfs /writes
    mkdir /writes/upper /writes/work
    mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work overlay /host
    for dir in dev proc sys; do mount --bind /$dir /host/$dir; done
    mkdir -p /host/dev/shm /host/dev/net
    mount -t tmpfs tmpfs /host/dev/shm
    mount -t tmpfs tmpfs /host/run
    chroot /host "$program"
    echo "DUNLIN-HOST-ENDED $?"
    poweroff -f
fi
[ -n "$queues" ] && ethtool -L eth0 combined "$queues"
[ -n "$mtu" ] && ip link set eth0 mtu "$mtu"
ip link set eth0 up
dev=eth0
if [ -n "$vlan" ]; then
    dev=eth0.$vlan
    ip link add link eth0 name "$dev" type vlan id "$vlan"
    ip link set "$dev" up
fi
[ -n "$ip" ] && ip addr add "$ip" dev "$dev"

# IPv6, unlike IPv4, sends nothing before the kernel has noticed the link, which takes up to a second.
case $ip in *:*)
    for _ in $(seq 30); do
        [ "$(cat /sys/class/net/eth0/operstate)" = up ] && break
        usleep 100000
    done
esac

echo "DUNLIN-GUEST-READY $name"
exec init
INIT
chmod +x "$root/init"

(cd "$root" && find . -print0 | cpio --null --quiet -o -H newc -R 0:0 | gzip -9n) >"$work/initrd"
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
mv "$work/vmlinuz" "$work/initrd" "$out/"
