"""What is measured in other units than cycles per frame: latency, control, learning, TCP between kernel hosts.

Each function takes the bench and yields (what, value, unit), to be shown and kept.
"""

import contextlib
import json
import os
import struct
import subprocess
import time
from pathlib import Path

import filters
from contenders import Failed, Run
from machine import tsc_hz
from scenarios import Case, Port, endless, frame, mac, shuffled, write


def resident_mb(process):
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@contextlib.contextmanager
def dunlin(bench, case, **options):
    """A switch that forwards; what runs it, and a function that runs the CLI."""
    contender = bench.contenders["dunlin"]
    contender.options = [a for k, v in options.items() for a in (f"--{k.replace('_', '-')}", v)]
    try:
        with bench.memory(contender.memory_mb(case)), \
                Run(bench.dir, case, bench.core, bench.other_core, bench.hugepages) as run:
            contender.start(run, case)
            run.confine()
            yield run, lambda *a: run.call(contender.cli, "--control", contender.socket, *a)
    finally:
        contender.options = []


def state(cli):
    return json.loads(cli("--json", "status"))["dataplane"]


def between_two_ports(bench, pairs=1000):
    files = [write(bench.dir / f"{side}.pcap", shuffled(pairs, side, [60])) for side in (0, 1)]
    return Case(pairs, [Port(endless(i, f)) for i, f in enumerate(files)], 2 * pairs)


def lost(before, after):
    """Frames of the two forwarding ports that were received and not sent."""
    def count(s):
        ports = [p["counters"] for p in s["ports"] if p["name"] in ("p0", "p1")]
        # A station that is not learned yet is no loss of the change's.
        return sum(d["frames"] for p in ports for d in p["drops"])
    return count(after) - count(before)


def control(bench):
    changes = 500 if bench.args.quick else 10_000
    with dunlin(bench, Case(0, [], 0), mac_table_size=65_536) as (run, cli):
        dataplane, controller = run.processes
        yield "resident at start, dataplane (65,536 addresses)", resident_mb(dataplane), "MiB"
        yield "resident at start, control", resident_mb(controller), "MiB"
        before = resident_mb(dataplane)
        for i in range(20):
            cli("port", "add", f"n{i}", "--kind", "nic", "--device", f"net_null{i},no-rx=1", "--queues", "1")
        yield "memory per port", (resident_mb(dataplane) - before) * 1024 / 20, "KiB"
    with dunlin(bench, Case(0, [], 0), mac_table_size=1_000_000) as (run, _):
        yield "memory per 100,000 addresses", (resident_mb(run.processes[0]) - before) / 9.34, "MiB"
    with dunlin(bench, between_two_ports(bench)) as (run, cli):
        cli("port", "add", "other", "--kind", "nic", "--device", "net_null9,no-rx=1", "--queues", "1")
        time.sleep(bench.args.warmup)
        before, began = state(cli), time.monotonic()
        for i in range(changes):
            cli("port", "set", "other", "--vlan", str(1 + i % 4000))
        seconds, after = time.monotonic() - began, state(cli)
        yield f"transactions a second, one by one, of {changes:,}, each stored durably", changes / seconds, "/s"
        yield "frames lost by other ports meanwhile", lost(before, after), ""
        yield "frames they forwarded meanwhile", after["workers"][0]["frames"] - before["workers"][0]["frames"], ""
        extra = write(bench.dir / "new.pcap", (frame(p, 0) for p in range(64)))
        began = time.monotonic()
        cli("port", "add", "new", "--kind", "nic", "--device", endless(7, extra), "--queues", "1")
        while not any(p["name"] == "new" and p["counters"]["rx_frames"] for p in state(cli)["ports"]):
            if time.monotonic() - began > 10:
                raise Failed("the new port receives nothing")
        yield "from 'port add' to frames forwarded, the command's own time included", (time.monotonic() - began) * 1e3, "ms"


def learning(bench):
    """RFC 2889, 5.7 and 5.8: how many addresses are kept, and how fast they are learned."""
    for n in (100_000, 1_000_000):
        if bench.args.quick and n > 100_000:
            break
        # One pass over a file whose frames all have another source, to an address that is known.
        sources = write(bench.dir / "sources.pcap", (frame(p, 0, to=mac(9, 0)) for p in range(n - 1)))
        # And one whose frames are to each of them.
        back = write(bench.dir / "back.pcap", (frame(0, 3, to=mac(0, p)) for p in range(n - 1)))
        with dunlin(bench, Case(n, [], n)) as (run, cli):
            cli("port", "add", "sink", "--kind", "nic", "--device", "net_null0,no-rx=1", "--queues", "1")
            cli("mac", "add", mac(9, 0).hex(":"), "--port", "sink")
            before = state(cli)
            cli("port", "add", "new", "--kind", "nic", "--device", f"net_pcap5,rx_pcap={sources}", "--queues", "1")
            learned = -1
            while (now := state(cli))["macs"]["learned"] != learned:
                learned = now["macs"]["learned"]
                time.sleep(0.5)
            worker = [s["workers"][0] for s in (before, now)]
            frames = worker[1]["frames"] - worker[0]["frames"]
            cycles = worker[1]["busy_cycles"] - worker[0]["busy_cycles"]
            kept = now["macs"]["entries"]
            cli("port", "add", "back", "--kind", "nic", "--device", f"net_pcap6,rx_pcap={back}", "--queues", "1")

            def received():
                return next(p["counters"] for p in state(cli)["ports"] if p["name"] == "back")

            while (asked := received())["rx_frames"] < n - 1:
                time.sleep(0.5)
        yield f"of {n:,} addresses sent at once, kept", kept, ""
        yield f"cycles per frame with {n:,} new sources", cycles / max(frames, 1), ""
        yield "that is, addresses learned a second", tsc_hz() * frames / max(cycles, 1) / 1e6, "M/s"
        yield f"of {asked['rx_frames']:,} frames to each of them afterwards, flooded", asked["clones"], ""


def syn(n):
    """A TCP SYN of a client of its own to a server behind the sink."""
    ip = bytes([10, 64 | n >> 16 & 63, n >> 8 & 255, n & 255])
    tcp = struct.pack("!HHIIBBHHH", 1024 + (n & 0x7FFF), 80, 1, 0, 0x50, 2, 1024, 0, 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, ip, bytes([10, 0, 0, 9]))
    return mac(9, 0) + mac(7, 0) + b"\x08\x00" + head + tcp + bytes(6)


def arp(n):
    """An ARP request of a sender of its own."""
    return (b"\xff" * 6 + mac(7, n) + bytes([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]) + mac(7, n) + bytes([10, 65 + (n >> 16)])
            + struct.pack("!H", n & 0xFFFF) + bytes(6) + bytes([10, 0, 0, 9]) + bytes(18))


def fragment(n):
    """The last fragment of a UDP datagram of its own, whose first one never comes."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, n & 0xFFFF, 185, 0, 17, 0, bytes([10, 64 | n >> 16 & 63, 0, 1]), bytes([10, 0, 0, 9]))
    return mac(9, 0) + mac(7, 0) + b"\x08\x00" + head + bytes(26)


def first_fragment(n):
    """The first fragment of such a datagram, to a port that is permitted."""
    f = fragment(n)
    return f[:20] + b"\x20\x00" + f[22:34] + struct.pack("!HHHH", 1000, 53, 1488, 0) + bytes(18)


STATEFUL = (("acl", "add", "flood", "--default", "deny"), ("acl", "rule", "add", "flood", "allow", "state", "new,established"))
OVERLAY = (("port", "add", "up", "--kind", "nic", "--device", "net_null8,no-rx=1", "--queues", "1", "--mtu", "1600"),
           ("vtep", "add", "v", "--uplink", "up", "--address", "10.50.0.1/24"),
           ("network", "add", "blue", "--vni", "100", "--remotes", "10.50.0.2"))
PORTS = (("acl", "add", "flood", "--default", "deny"), ("acl", "rule", "add", "flood", "allow", "udp", "to", "any", "port", "53"))
REJECT, DENY = ((("acl", "add", "flood", "--default", what),) for what in ("reject", "deny"))
# What a port does to its neighbours: its frames by number, how it is set up, the same for a port that does no harm, and the
# settings of both.
ATTACKS = {
    "new MAC addresses": (lambda n: frame(n, 7, to=mac(9, 0)), (), (), ()),
    "new senders of ARP": (arp, OVERLAY, OVERLAY, ("--network", "blue")),
    "new connections": (syn, STATEFUL, STATEFUL, ("--ingress-acls", "flood")),
    "fragments that wait, to denied ones": (fragment, PORTS, DENY, ("--ingress-acls", "flood")),
    "first fragments": (first_fragment, PORTS, PORTS, ("--ingress-acls", "flood")),
    "rejected frames, to denied ones": (syn, REJECT, DENY, ("--ingress-acls", "flood")),
}


def overload(bench):
    """What frames cost while a table is full, and what a port that fills one takes from its neighbours."""
    pairs, cost = 100_000, {}
    for size in (1_000_000, pairs):
        with dunlin(bench, between_two_ports(bench, pairs), mac_table_size=size) as (_, cli):
            time.sleep(bench.args.warmup)
            before, _, after = state(cli)["workers"][0], time.sleep(bench.args.seconds), state(cli)["workers"][0]
            cost[size] = (after["busy_cycles"] - before["busy_cycles"]) / (after["frames"] - before["frames"])
        yield f"cycles per frame of {2 * pairs:,} addresses, table for {size:,}", cost[size], ""
    yield "the smaller table over the larger (at most 2)", cost[pairs] / cost[1_000_000], "times"
    for name, attack in ATTACKS.items():
        # Alternately, because machines are noisy.
        rates = [beside(bench, *attack) for _ in range(bench.args.rounds)]
        ratios = sorted(new / one for one, new in rates)
        yield (f"neighbours' rate beside {name}; over that beside one sender's ({ratios[0]:.2f} to {ratios[-1]:.2f})",
               ratios[len(ratios) // 2], "")


def beside(bench, attack, harmful, harmless, settings):
    """Frames a second of two neighbours beside a port that sends as fast as it is polled: one sender's, ever new ones'."""
    for what, numbers, setup in (("one", [0] * 150_000, harmless), ("new", range(150_000), harmful)):
        file = write(bench.dir / f"{what}.pcap", map(attack, numbers))
        case = between_two_ports(bench)
        case.frames += 150_000
        with dunlin(bench, case, mac_table_size=65_536) as (run, cli):
            for command in setup:
                cli(*command)
            cli("port", "add", "sink", "--kind", "nic", "--device", "net_null0,no-rx=1", "--queues", "1")
            cli("mac", "add", mac(9, 0).hex(":"), "--port", "sink")
            cli("port", "add", "attacker", "--kind", "nic", "--device", endless(5, file), "--queues", "1", *settings)
            time.sleep(bench.args.warmup)

            def neighbours():
                ports = state(cli)["ports"]
                return sum(p["counters"]["tx_frames"] for p in ports if p["name"] in ("p0", "p1"))
            began, before = time.monotonic(), neighbours()
            time.sleep(bench.args.seconds)
            yield (neighbours() - before) / (time.monotonic() - began)


def churn(bench):
    """What forwarding costs while a third port brings 10,000 new addresses a second, and without."""
    ns, seconds = "dunlin-bench-0", max(2, bench.args.seconds)
    code = ("import socket, sys, time; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0))\n"
            "i, began = 0, time.monotonic()\n"
            "while True:\n"
            "    while i < (time.monotonic() - began) * 10000:\n"
            "        s.send(bytes([2, 9, 0, 0, 0, 0, 2, 8]) + i.to_bytes(4, 'big') + b'\\x88\\xb5' + bytes(46)); i += 1\n"
            "    time.sleep(0.001)\n")
    try:
        subprocess.run(f"ip netns add {ns} && ip link add dunlinb0 type veth peer name eth0 netns {ns} && "
                       f"ip link set dunlinb0 up && ip -n {ns} link set eth0 up", shell=True, check=True)
        with dunlin(bench, between_two_ports(bench)) as (run, cli):
            cli("port", "add", "new", "--kind", "host", "--interface", "dunlinb0")
            cli("port", "add", "known", "--kind", "nic", "--device", "net_null9,no-rx=1", "--queues", "1")
            cli("mac", "add", "02:09:00:00:00:00", "--port", "known")
            time.sleep(bench.args.warmup)

            def measure():
                before = state(cli)
                time.sleep(seconds)
                after = state(cli)
                cycles, frames = (after["workers"][0][k] - before["workers"][0][k] for k in ("busy_cycles", "frames"))
                return cycles / frames, (after["macs"]["learned"] - before["macs"]["learned"]) / seconds, lost(before, after)

            quiet, _, _ = measure()
            run.daemon("ip", "netns", "exec", ns, "python3", "-c", code, ready=lambda: True)
            busy, learned, dropped = measure()
            yield "cycles per frame, 1,000 pairs, beside a port of the kernel's that is silent", quiet, ""
            yield "the same while it brings new addresses", busy, ""
            yield "that many a second were learned", learned, "/s"
            yield "frames lost meanwhile", dropped, ""
    finally:
        subprocess.run(f"ip netns del {ns}; ip link del dunlinb0", shell=True, stderr=subprocess.DEVNULL)


def new_connections(bench):
    """What a frame costs that begins a connection: a million of them, each once."""
    n = 100_000 if bench.args.quick else 1_000_000
    file = write(bench.dir / "new.pcap", filters.connections(mac, 0, n))
    silent = "net_null1,no-rx=1"
    case = Case(n, [Port("net_null0,no-rx=1"), Port(silent)], 0, filter=filters.acl("bench", filters.STATEFUL),
                sessions=2 * n)
    costs = []
    for _ in range(bench.args.rounds):
        with dunlin(bench, case) as (run, cli):
            before = state(cli)["workers"][0]
            cli("port", "add", "new", "--kind", "nic", "--device", f"net_pcap7,rx_pcap={file}", "--queues", "1",
                "--ingress-acls", "bench")
            run.wait(run.processes[0], lambda: state(cli)["workers"][0]["frames"] - before["frames"] >= n)
            after, sessions = state(cli)["workers"][0], state(cli)["sessions"]
            if sessions["begun"] != n:
                raise Failed(f"{sessions['begun']:,} connections begun of {n:,}")
            costs.append((after["busy_cycles"] - before["busy_cycles"]) / n)
    cost = sorted(costs)[len(costs) // 2]
    yield f"a frame that begins a connection, flooded, of {n:,} ({min(costs):.0f} to {max(costs):.0f})", cost, "cycles"
    yield "new connections a second on one worker (bar 1,000,000)", tsc_hz() / cost, "/s"
    yield "octets of a connection, IPv4", sessions["octets_v4"], ""
    yield "octets of a connection, IPv6", sessions["octets_v6"], ""


def latency(bench):
    """Round trips guest to guest and back, at shares of the highest rate without loss."""
    contenders = [("dunlin, idle poll", "dunlin", "poll"), ("dunlin, idle adaptive", "dunlin", "adaptive"),
                  ("ovs", "ovs", "poll")]
    seconds = 0.5 if bench.args.quick else 2
    for title, name, idle in contenders:
        if name not in bench.contenders:
            continue
        sockets = tuple(bench.dir / f"guest{i}" for i in (0, 1))
        case = Case(0, [Port(str(s)) for s in sockets], 0, guests=sockets, idle=idle)
        contender = bench.contenders[name]
        with bench.memory(contender.memory_mb(case)), \
                Run(bench.dir, case, bench.core, bench.other_core, bench.hugepages) as run:
            guests = run.daemon("nice", "-n", "-20", bench.args.bin.resolve() / "dunlin-bench-latency", "--near", sockets[0],
                                "--far", sockets[1], "--core", bench.other_core, "--seconds", seconds,
                                ready=sockets[0].exists)
            contender.start(run, case)
            run.confine()
            try:
                failed = guests.wait(180)
            except subprocess.TimeoutExpired:
                failed = "no end after 180 s"
            words = guests.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            if failed:
                raise Failed(f"{title}: the guests said: {words[-1]}")
            report = json.loads(words[-1])
            yield f"{title}: highest rate without loss, there and back", report["lossless_fps"] / 1e3, "kf/s"
            for load in report["loads"]:
                for p in ("p50", "p99", "p99_9"):
                    yield f"{title}: {p.replace('_', '.')} at {load['percent']:.0f} % of it", load[f"{p}_us"], "us"
                if load["lost"]:
                    yield f"{title}: frames lost at {load['percent']:.0f} %, of {load['sent']:,}", load["lost"], ""
            for s in sockets:
                s.unlink(missing_ok=True)


def tcp(bench):
    """iperf3 between two namespaces, through ports of each kind that the kernel is behind, and through its own bridge."""
    yield "TCP between namespaces over the kernel's bridge", tcp_through_bridge(bench) / 1e9, "Gbit/s"
    for kind, driver in (("host", "af_packet"), ("host", "af_xdp"), ("tap", "")):
        for name in ("dunlin", "ovs"):
            # Open vSwitch is given DPDK's AF_XDP ports and taps.
            if name in bench.contenders and (name == "dunlin" or driver != "af_packet"):
                driver, bits = tcp_through(bench, bench.contenders[name], kind, name, driver)
                yield f"TCP between namespaces over {driver}, {name}", bits / 1e9, "Gbit/s"
    yield "TCP between namespaces over the kernel's bridge, again", tcp_through_bridge(bench) / 1e9, "Gbit/s"


SPACES = [f"dunlin-bench-{i}" for i in (0, 1)]


def veths(spaces):
    for i, ns in enumerate(spaces):
        subprocess.run(f"ip link add dunlinb{i} type veth peer name eth0 netns {ns} && ip link set dunlinb{i} up",
                       shell=True, check=True)


def address(i, ns, end):
    subprocess.run(f"ip -n {ns} addr add 10.9.9.{i + 1}/24 dev {end} && ip -n {ns} link set {end} up", shell=True, check=True)


@contextlib.contextmanager
def made(spaces):
    """Network namespaces, for as long as they are needed."""
    try:
        for ns in spaces:
            subprocess.run(f"ip netns add {ns} && ip -n {ns} link set lo up", shell=True, check=True)
        yield
    finally:
        for i, ns in enumerate(spaces):
            # The namespace takes its interfaces along when the kernel has time for it.
            subprocess.run(f"ip link del dunlinb{i}; ip netns del {ns}", shell=True, stderr=subprocess.DEVNULL)


def iperf(bench, run, spaces):
    """Bits per second from the first to the second, on the cores that no worker has."""
    run.daemon("ip", "netns", "exec", spaces[1], "iperf3", "-s", "-1", "--forceflush",
               ready=lambda: b"listening" in (run.dir / f"{len(run.processes) - 1}.log").read_bytes())
    report = json.loads(run.call("ip", "netns", "exec", spaces[0], "iperf3", "-J", "-c", "10.9.9.2",
                                 "-t", str(max(2, int(bench.args.seconds)))))
    if "sum_received" not in report["end"]:
        raise Failed(f"iperf3: {report.get('error', report)}")
    return report["end"]["sum_received"]["bits_per_second"]


def tcp_through_bridge(bench):
    with made(SPACES):
        try:
            veths(SPACES)
            subprocess.run("ip link add dunlinbr type bridge && ip link set dunlinbr up && ip link set dunlinb0 master dunlinbr "
                           "&& ip link set dunlinb1 master dunlinbr", shell=True, check=True)
            for i, ns in enumerate(SPACES):
                address(i, ns, "eth0")
            with Run(bench.dir, Case(0, [], 0), bench.core, bench.other_core, bench.hugepages) as run:
                return iperf(bench, run, SPACES)
        finally:
            subprocess.run(["ip", "link", "del", "dunlinbr"], stderr=subprocess.DEVNULL)


def tcp_through(bench, contender, kind, name, driver):
    """What drives the ports, and bits per second."""
    with namespaces(bench, contender, kind, name, driver=driver) as (run, spaces):
        bits = iperf(bench, run, spaces)
        return contender.driver(run, kind), bits


@contextlib.contextmanager
def namespaces(bench, contender, kind, name, idle="adaptive", driver=""):
    """A switch between two network namespaces, 10.9.9.1 and 10.9.9.2, on ports of a kind that the kernel is behind."""
    devices = [f"net_af_xdp{i},iface=dunlinb{i}" if kind == "host" else f"dunlinb{i}" for i in (0, 1)]
    words = f'kind = "{kind}"\ninterface = "{{device}}"' + (f'\ndriver = "{driver}"' if driver else "")
    case = Case(0, [Port(d if name == "ovs" else f"dunlinb{i}", kind=(words, "tap" if kind == "tap" else "dpdk"))
                    for i, d in enumerate(devices)], 0, idle=idle)
    with made(SPACES):
        if kind == "host":
            veths(SPACES)
        with bench.memory(contender.memory_mb(case)), \
                Run(bench.dir, case, bench.core, bench.other_core, bench.hugepages) as run:
            contender.start(run, case)
            run.confine()
            for i, ns in enumerate(SPACES):
                end = "eth0" if kind == "host" else f"dunlinb{i}"
                if kind != "host":
                    subprocess.run(f"ip link set {end} netns {ns}", shell=True, check=True)
                address(i, ns, end)
                if name == "ovs":
                    # It does not finish the checksums that a kernel leaves to its device.
                    subprocess.run(f"ip netns exec {ns} ethtool -K {end} tx off", shell=True, check=True,
                                   stdout=subprocess.DEVNULL)
            time.sleep(1)
            yield run, SPACES


def wake_us(bench):
    """How long this machine takes to wake a thread on the measured core that waits for a pipe: p50 and p99."""
    program = ("import os, threading, time\nr, w = os.pipe(); t = []\ndef wait():\n"
               f" os.sched_setaffinity(0, {{{bench.core}}})\n"
               " for _ in range(500): sent = int(os.read(r, 32)); t.append(time.perf_counter_ns() - sent)\n"
               f"b = threading.Thread(target=wait); b.start(); os.sched_setaffinity(0, {{{bench.other_core}}})\n"
               "for _ in range(500): time.sleep(.01); os.write(w, b'%d' % time.perf_counter_ns())\n"
               "b.join(); t.sort(); print(t[250] / 1e3, t[495] / 1e3)")
    return map(float, subprocess.run(["python3", "-c", program], check=True, stdout=subprocess.PIPE, text=True).stdout.split())


def idle(bench):
    """Round trips of lone packets, 10 ms apart, and what the worker takes of its core between them: each passes twice."""
    contender, hz = bench.contenders["dunlin"], os.sysconf("SC_CLK_TCK")
    for kind in ("host", "tap"):
        for how in ("poll", "adaptive"):
            with namespaces(bench, contender, kind, "dunlin", how) as (run, spaces):
                workers = run.confine()
                ticks = lambda: sum(sum(map(int, (w / "stat").read_text().split()[13:15])) for w in workers)
                before, since = ticks(), time.monotonic()
                time.sleep(max(2, bench.args.seconds))
                share = (ticks() - before) / hz / (time.monotonic() - since)
                pings = run.call("ip", "netns", "exec", spaces[0], "ping", "-c", "520", "-i", "0.01", "10.9.9.2")
                us = sorted(float(line.split("time=")[1].split()[0]) * 1e3 for line in pings.splitlines()[20:] if "time=" in line)
                for p in (50, 99):
                    yield f"{kind}, {how}: round trip, p{p}", us[len(us) * p // 100], "us"
                yield f"{kind}, {how}: of its core while nothing comes", share * 100, "%"
    for what, us in zip(("p50", "p99"), wake_us(bench)):
        yield f"the machine wakes a thread, {what}", us, "us"


ALL = {"new-connections": ("Connections that begin", new_connections), "latency": ("Latency, round trip", latency), "churn": ("Learning while forwarding", churn),
       "control": ("Control and memory", control), "learning": ("Learning", learning),
       "idle": ("An idle worker", idle),
       "overload": ("Overload: full tables, and the neighbours of a port that fills them", overload), "tcp": ("TCP", tcp)}
NEEDS = {"tcp": ["iperf3", "ip", "ethtool"], "idle": ["ip", "ping"], "churn": ["ip"]}


def run(bench, name):
    """The rows of one of them, shown as they come."""
    title, measure = ALL[name]
    os.write(1, f"\n{title}\n\n".encode())
    rows = []
    for what, value, unit in measure(bench):
        rows.append({"what": what, "value": value, "unit": unit})
        print(f"{value:>14,.{0 if float(value).is_integer() else 2}f} {unit:<7} {what}", flush=True)
    return rows
