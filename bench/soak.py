#!/usr/bin/env python3
"""Everything at once, for a long time: does the switch keep its memory, its buffers and its books?

soak.py [--seconds 3600] [--bin target/release]

One worker forwards between namespaces: TCP both ways and fragmented UDP behind stateful lists, TCP through VXLAN to the
kernel, frames with invented addresses into port security, neighbors and connections without end. Meanwhile ports of all
kinds come and go, lists change, and guests that break the rules of virtio are killed. Every half a minute a line says what
the dataplane holds. At the end all traffic stops, and these must hold:

* received + cloned = transmitted + dropped + held, exactly;
* no worker has allocated memory while it forwarded;
* as many buffers in use as before the traffic, and as many descriptors open, but for a few;
* resident memory no more than 16 MiB above what it was after a tenth of the time.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOSTILE = HERE.parent / "control/cli/tests/e2e/hostile.py"
SPACES = ["c", "s", "up", "a", "g"]


def sh(command, check=True):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{command}: {done.stderr or done.stdout}")
    return done.stdout


def ns(name):
    return f"soak-{name}"


def outside(name):
    return f"soak{name}"


def inside(name, command):
    """Runs in a namespace, without waiting."""
    return subprocess.Popen(["ip", "netns", "exec", ns(name), *command.split()], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)


def clean():
    for name in SPACES:
        sh(f"ip link del {outside(name)}; ip netns del {ns(name)}", check=False)


def lay_out():
    for name in SPACES:
        sh(f"ip netns add {ns(name)} && ip link add {outside(name)} type veth peer name eth0 netns {ns(name)} && "
           f"ip link set {outside(name)} up && sysctl -qw net.ipv6.conf.{outside(name)}.disable_ipv6=1 && "
           f"ip -n {ns(name)} link set lo up && ip -n {ns(name)} link set eth0 up")
    for name, address in (("c", "10.1.0.1"), ("s", "10.1.0.2"), ("g", "10.1.0.3"), ("up", "10.50.0.2"), ("a", "192.168.9.5")):
        sh(f"ip -n {ns(name)} addr add {address}/24 dev eth0")
    sh(f"ip -n {ns('up')} link add vx type vxlan id 100 local 10.50.0.2 remote 10.50.0.1 dstport 4789 && "
       f"ip -n {ns('up')} addr add 192.168.9.2/24 dev vx && ip -n {ns('up')} link set vx mtu 1450 up")
    sh(f"ip -n {ns('a')} link set eth0 mtu 1450")


class Switch:
    def __init__(self, folder, binaries):
        self.folder, self.cli, self.processes = folder, [binaries / "dunlin", "--control", folder / "c.sock"], []
        log = open(folder / "log", "wb")
        for command in (["dunlin-dataplane", "--no-huge", "--memory", "768", "--cores", "1", "--socket", folder / "dp.sock",
                         "--vhost-dir", folder],
                        ["dunlin-control", "--socket", folder / "c.sock", "--dataplane", folder / "dp.sock", "--store",
                         folder / "state.redb", "--metrics", "127.0.0.1:0"]):
            self.processes.append(subprocess.Popen([binaries / command[0], *map(str, command[1:])], stdout=log, stderr=log))
        while subprocess.run([*self.cli, "status"], capture_output=True).returncode != 0:
            if any(p.poll() is not None for p in self.processes):
                sys.exit((folder / "log").read_text())
            time.sleep(0.1)

    def __call__(self, command, check=True):
        done = subprocess.run([*self.cli, *command.split()], capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"dunlin {command}: {done.stderr or done.stdout}")
        return done.stdout

    def state(self):
        """What the dataplane says of itself; on a machine that does other things too, perhaps not at once."""
        for _ in range(60):
            if state := json.loads(self("--json status", check=False))["dataplane"]:
                return state
            time.sleep(1)
        sys.exit("the dataplane has not answered for a minute")

    def configure(self):
        for name in ("c", "s", "g"):
            self(f"port add {name} --kind host --interface {outside(name)} --vlan 10")
        for acl in ("to-s", "from-s"):
            self(f"acl add {acl}")
            for rule in ("ethertype arp", "state established,related"):
                self(f"acl rule add {acl} allow {rule}")
        self("acl rule add to-s allow tcp to any port 5201 state new")
        self("acl rule add to-s allow udp to any port 5201 state new")
        self("port set s --egress-acls to-s --ingress-acls from-s")
        mac = sh(f"ip netns exec {ns('g')} cat /sys/class/net/eth0/address").strip()
        self(f"port set g --security all,dhcp-snooping --macs {mac} --ips 10.1.0.3")
        self(f"port add up --kind host --interface {outside('up')}")
        self("vtep add v --uplink up --address 10.50.0.1/24")
        self("network add blue --vni 100 --remotes 10.50.0.2")
        self(f"port add a --kind host --interface {outside('a')} --network blue --mtu 1450")

    def holds(self):
        """What it takes of the machine: KiB, buffers, descriptors."""
        pid, pools = self.processes[0].pid, self.state()["pools"]
        status = Path(f"/proc/{pid}/status").read_text()
        kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        return kb, sum(p["in_use"] for p in pools), len(os.listdir(f"/proc/{pid}/fd"))

    def books(self):
        """Frames that are in no book, and all there were."""
        s = self.state()
        counted = [p["counters"] for p in s["ports"]] + [s["removed_ports"]]
        counted += [r["counters"] for v in s["vteps"] for r in [v, *v["remotes"]]]
        total = {k: sum(c[k] for c in counted) for k in ("rx_frames", "clones", "tx_frames")}
        dropped = sum(d["frames"] for c in counted for d in c["drops"])
        held = sum(w["held_frames"] for w in s["workers"])
        return total["rx_frames"] + total["clones"] - total["tx_frames"] - dropped - held, total["rx_frames"]

    def end(self):
        for p in reversed(self.processes):
            p.terminate()
            p.wait(20)


class Traffic:
    """Processes that are started again when they end."""

    COMMANDS = [("s", "iperf3 -s"), ("up", "iperf3 -s"), ("c", "iperf3 -c 10.1.0.2 --bidir -t 60"),
                ("c", "iperf3 -u -c 10.1.0.2 -b 20M -l 3000 -t 20 -B 10.1.0.1"),
                ("a", "iperf3 -c 192.168.9.2 --bidir -t 60"),
                ("g", f"{sys.executable} {__file__} --invent eth0"), ("c", f"{sys.executable} {__file__} --call 10.1.0.2")]

    def __init__(self):
        self.running = [None] * len(self.COMMANDS)

    def tend(self):
        for i, (space, command) in enumerate(self.COMMANDS):
            if self.running[i] is None or self.running[i].poll() is not None:
                self.running[i] = inside(space, command)

    def stop(self):
        for p in self.running:
            if p:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(p.pid, signal.SIGKILL)
                p.wait()


def invent(interface):
    """Frames with addresses that are others' or nobody's, ARP among them, 2,000 a second."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind((interface, 0))
    while True:
        source = bytes([2]) + random.randbytes(5)
        ip = b"\x45\0\0\x1c" + random.randbytes(2) + b"\0\0\x40\x11\0\0" + random.randbytes(8) + random.randbytes(8)
        arp = b"\0\1\x08\0\6\4\0\1" + source + random.randbytes(4) + bytes(6) + random.randbytes(4)
        kind, payload = random.choice([(0x0800, ip), (0x0806, arp), (0x86DD, random.randbytes(60))])
        s.send(random.choice([b"\xff" * 6, random.randbytes(6)]) + source + struct.pack("!H", kind) + payload)
        time.sleep(0.0005)


def call(address):
    """Connections that are begun and left alone, and datagrams of which fragments are missing, 500 a second."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    while True:
        t = socket.socket()
        t.setblocking(False)
        t.connect_ex((address, 5201))
        t.close()
        part = b"\x45\0\0\x24" + random.randbytes(2) + random.choice([b"\x20\0", b"\0\2", b"\x20\3"]) + b"\x40\x11\0\0"
        raw.sendto(part + bytes(4) + socket.inet_aton(address) + b"\0\1\x14\x51\0\x10\0\0" + bytes(8), (address, 0))
        time.sleep(0.002)


def churn(d, folder, n):
    """One round of ports, lists and guests that come and go."""
    d("port add tap --kind tap --interface soaktap --vlan 10")
    d("port add guest --kind vhost-user --server --vlan 10 --socket " + str(folder / "g.sock"))
    guest = subprocess.Popen([sys.executable, HOSTILE, folder / "g.sock", "60", str(n)], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    d("port del c" if n % 10 == 0 else "port list")
    d("acl rule add --at 1 to-s deny tcp to any port 22")
    time.sleep(1)
    guest.kill()
    guest.wait()
    d("acl rule del to-s 1")
    if n % 10 == 0:
        d(f"port add c --kind host --interface {outside('c')} --vlan 10 --driver {'af_xdp' if n % 20 == 0 else 'auto'}")
    d("port del tap")
    d("port del guest")


def soak(args, folder):
    d = Switch(folder, args.bin.resolve())
    traffic, failures = Traffic(), []
    try:
        d.configure()
        before, began, warm, reported, n = d.holds(), time.monotonic(), None, 0, 0
        print("   time      frames  KiB resident  buffers  descriptors", flush=True)
        while (now := time.monotonic() - began) < args.seconds:
            traffic.tend()
            churn(d, folder, n)
            n += 1
            if warm is None and now > args.seconds / 10:
                warm = d.holds()
            if now >= reported:
                print(f"{now:6.0f} s {d.books()[1]:11,} {d.holds()[0]:13,} {d.holds()[1]:8,} {d.holds()[2]:12}", flush=True)
                reported += 30
        traffic.stop()
        # As it was in the beginning.
        d("port del c")
        d(f"port add c --kind host --interface {outside('c')} --vlan 10")
        end = time.monotonic() + 60
        while time.monotonic() < end and (d.books()[0] != 0 or d.holds()[1] > before[1] + 1000):
            time.sleep(1)
        after, (lost, frames) = d.holds(), d.books()
        print(f"{frames:,} frames, {n} rounds of ports that came and went; in no book: {lost}")
        print(f"KiB, buffers, descriptors: before {before}, warm {warm}, after {after}")
        allocated = sum(w["allocations"] for w in d.state()["workers"])
        if allocated != 0:
            failures.append(f"workers allocated {allocated} times")
        if lost != 0:
            failures.append(f"{lost} frames are in no book")
        if after[1] > before[1] + 1000:
            failures.append(f"{after[1] - before[1]} buffers more in use than before")
        if after[2] > before[2] + 8:
            failures.append(f"{after[2] - before[2]} descriptors more than before")
        if after[0] > warm[0] + 16 * 1024:
            failures.append(f"{after[0] - warm[0]} KiB more resident than when warm")
    finally:
        traffic.stop()
        d.end()
    log = (folder / "log").read_text(errors="replace")
    if "panicked" in log:
        failures.append("a thread panicked: " + next(line for line in log.splitlines() if "panicked" in line))
    print("\n".join(failures) or "passed")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--bin", type=Path, default=HERE.parent / "target/release")
    parser.add_argument("--invent", help=argparse.SUPPRESS)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.invent:
        return invent(args.invent)
    if args.call:
        return call(args.call)
    folder = Path(tempfile.mkdtemp(prefix="dunlin-soak-"))
    clean()
    try:
        lay_out()
        return soak(args, folder)
    finally:
        clean()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
