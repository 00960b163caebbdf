"""What is measured of Dunlin alone: its control, its learning, TCP between kernel hosts.

Each function takes the bench and yields (what, value, unit), to be shown and kept.
"""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

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
            flooded = sum(d["frames"] for p in now["ports"] for d in p["counters"]["drops"]
                          if d["reason"] == "no_other_port") + sum(p["counters"]["clones"] for p in now["ports"])
        yield f"of {n:,} addresses sent at once, kept", kept, ""
        yield f"cycles per frame with {n:,} new sources", cycles / max(frames, 1), ""
        yield "that is, addresses learned a second", tsc_hz() * frames / max(cycles, 1) / 1e6, "M/s"
        yield "frames flooded meanwhile", flooded, ""


def tcp(bench):
    """iperf3 between two namespaces, through ports of each kind that the kernel is behind."""
    for kind in ("host", "tap"):
        spaces = [f"dunlin-bench-{i}" for i in (0, 1)]
        try:
            for i, ns in enumerate(spaces):
                subprocess.run(f"ip netns add {ns} && ip -n {ns} link set lo up", shell=True, check=True)
                if kind == "host":
                    subprocess.run(f"ip link add dunlinb{i} type veth peer name eth0 netns {ns} && "
                                   f"ip link set dunlinb{i} up", shell=True, check=True)
            with dunlin(bench, Case(0, [], 0)) as (run, cli):
                for i, ns in enumerate(spaces):
                    cli("port", "add", f"b{i}", "--kind", kind, "--interface", f"dunlinb{i}")
                    name = "eth0" if kind == "host" else f"dunlinb{i}"
                    move = "" if kind == "host" else f"ip link set {name} netns {ns} && "
                    subprocess.run(f"{move}ip -n {ns} addr add 10.9.9.{i + 1}/24 dev {name} && "
                                   f"ip -n {ns} link set {name} up", shell=True, check=True)
                time.sleep(1)
                driver = next(p["driver"] for p in state(cli)["ports"] if p["name"] == "b0")
                run.daemon("ip", "netns", "exec", spaces[1], "iperf3", "-s", "-1", "--forceflush",
                           ready=lambda: b"listening" in (run.dir / f"{len(run.processes) - 1}.log").read_bytes())
                seconds = max(2, int(bench.args.seconds))
                report = json.loads(run.call("ip", "netns", "exec", spaces[0], "iperf3", "-J", "-c", "10.9.9.2",
                                             "-t", str(seconds)))
                yield f"TCP between namespaces over {driver}", report["end"]["sum_received"]["bits_per_second"] / 1e9, "Gbit/s"
        finally:
            for i, ns in enumerate(spaces):
                subprocess.run(f"ip netns del {ns}; ip link del dunlinb{i}", shell=True, stderr=subprocess.DEVNULL)


ALL = {"control": ("Control and memory", control), "learning": ("Learning", learning), "tcp": ("TCP", tcp)}
NEEDS = {"tcp": ["iperf3", "ip"]}


def run(bench, name):
    """The rows of one of them, shown as they come."""
    title, measure = ALL[name]
    os.write(1, f"\n{title}\n\n".encode())
    rows = []
    for what, value, unit in measure(bench):
        rows.append({"what": what, "value": value, "unit": unit})
        print(f"{value:>14,.{0 if float(value).is_integer() else 2}f} {unit:<7} {what}", flush=True)
    return rows
