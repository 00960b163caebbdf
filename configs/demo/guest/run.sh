#!/usr/bin/env bash
# run.sh: start a demo guest on a vhost-user socket. The script becomes QEMU, so killing its pid kills
# the guest; so does `poweroff` in the guest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'USAGE'
run.sh --name NAME --socket PATH [options]
  --name NAME          the guest's hostname and prompt
  --socket PATH        the vhost-user socket
  --ip ADDR/LEN        address of eth0 (or of eth0.N with --vlan); none when left out
  --mac MAC            default: made from the name, always the same
  --vlan N             put the address on a VLAN device, so that frames leave tagged
  --mtu N              announce this MTU to the guest, which sets it
  --queues N           queue pairs, and processors to serve them (default 1)
  --packed on|off      offer the guest packed rings, if the switch does (default off, as QEMU's)
  --memory MB          default 192
  --image DIR          where image.sh put the kernel and the initrd
  --vhost server|client
                       server (default): QEMU listens, the switch connects, again after a restart;
                       client: the switch listens, QEMU connects, again every second.
                       Either way QEMU starts the guest once the two have met.
  --console stdio|unix:PATH
                       stdio (default): Ctrl-A x ends the guest, Ctrl-A c is QEMU's monitor;
                       unix: QEMU listens, what the guest writes while nobody is connected is lost
  --monitor PATH       QEMU's monitor (HMP) on a Unix socket
  --incoming URI       wait for a guest that migrates here, for example tcp:127.0.0.1:4444
USAGE
}

die() { echo "run.sh: $*" >&2; exit 1; }

name='' socket='' ip='' mac='' vlan='' mtu='' queues=1 packed=off memory=192 image=$here/../../../target/guest
vhost=server console=stdio monitor='' incoming=''
while (($#)); do
    case $1 in -h | --help) usage; exit 0 ;; esac
    (($# >= 2)) || die "$1: an option with its value is expected (--help lists them)"
    case $1 in
        --name) name=$2 ;;
        --socket) socket=$2 ;;
        --ip) ip=$2 ;;
        --mac) mac=$2 ;;
        --vlan) vlan=$2 ;;
        --mtu) mtu=$2 ;;
        --queues) queues=$2 ;;
        --packed) packed=$2 ;;
        --memory) memory=$2 ;;
        --image) image=$2 ;;
        --vhost) vhost=$2 ;;
        --console) console=$2 ;;
        --monitor) monitor=$2 ;;
        --incoming) incoming=$2 ;;
        *) die "unknown option $1 (--help lists them)" ;;
    esac
    shift 2
done
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9-]*$ ]] || die "--name: letters, digits and hyphens are needed, not '$name'"
[[ -n $socket ]] || die "--socket is missing"
[[ $queues =~ ^[1-9][0-9]*$ ]] || die "--queues: not a number: '$queues'"
command -v qemu-system-x86_64 >/dev/null || die "no QEMU (apt-get install qemu-system-x86)"
[[ -f $image/vmlinuz && -f $image/initrd ]] || die "no guest in $image (image.sh makes it)"

if [[ -z $mac ]]; then
    hash=$(printf %s "$name" | md5sum)
    mac=52:54:00:${hash:0:2}:${hash:2:2}:${hash:4:2}
fi

append="console=ttyS0 quiet panic=-1 mitigations=off dunlin.name=$name"
append+="${ip:+ dunlin.ip=$ip}${vlan:+ dunlin.vlan=$vlan}${mtu:+ dunlin.mtu=$mtu}"

# In server mode QEMU removes a socket file that an earlier run left behind.
case $vhost in
    server) chardev=server=on,wait=off ;;
    client) chardev=reconnect=1 ;;
    *) die "--vhost: server or client, not '$vhost'" ;;
esac

# vectors=0: QEMU 7.2 crashes with vhost-user and MSI-X when it emulates the processor. romfile: no
# network boot, which only costs time.
device=virtio-net-pci,netdev=net0,mac=$mac,vectors=0,mrg_rxbuf=on,packed=$packed,romfile=${mtu:+,host_mtu=$mtu}
if ((queues > 1)); then
    device+=,mq=on
    append+=" dunlin.queues=$queues"
fi

# As -chardev, not by -serial alone: so the socket is there at once, not only after the switch has connected.
case $console in
    stdio) terminal=stdio,id=console,mux=on,signal=off ;;
    unix:*) terminal=socket,id=console,path=${console#unix:},server=on,wait=off ;;
    *) die "--console: stdio or unix:PATH, not '$console'" ;;
esac

# The guest's memory is a memfd that the switch maps: vhost-user hands it over. tcg: works on any machine,
# also inside a virtual one.
args=(
    -name "$name" -nodefaults -no-user-config -nographic -no-reboot
    -accel tcg -cpu max -smp "$queues" -m "$memory"
    -object "memory-backend-memfd,id=mem,size=${memory}M,share=on"
    -machine "q35,memory-backend=mem"
    -kernel "$image/vmlinuz" -initrd "$image/initrd" -append "$append"
    -chardev "socket,id=vhost0,path=$socket,$chardev"
    -netdev "vhost-user,id=net0,chardev=vhost0,queues=$queues"
    -device "$device"
    -chardev "$terminal" -serial chardev:console
)
[[ $console != stdio ]] || args+=(-mon chardev=console)
[[ -z $monitor ]] || args+=(-chardev "socket,id=monitor,path=$monitor,server=on,wait=off" -mon chardev=monitor)
[[ -z $incoming ]] || args+=(-incoming "$incoming")
exec qemu-system-x86_64 "${args[@]}"
