#!/usr/bin/env python3
"""Cycles per frame of plain learning and forwarding: Dunlin, the driver alone, Open vSwitch.

Two ports of DPDK's net_pcap driver receive a file of 60-byte frames for ever and drop what is sent
to them, so the one worker core is always busy and cycles per frame is what the switch and the
driver take. The contenders run one after the other, round by round, on the same core and the same
frames. What a result means is in README.md beside this file.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import platform
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OVS_SWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
OVS_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


class Failed(Exception):
    """A contender could not be measured; the text says why."""


# ---- the machine ---------------------------------------------------------------------------------

def tsc_reader():
    """A function that reads the time-stamp counter, the unit of all cycles here."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31" "48c1e220" "4809d0" "c3"))  # rdtsc; shl rdx,32; or rax,rdx; ret
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    read.code = code  # lives as long as the function
    return read


def meminfo(field):
    text = Path("/proc/meminfo").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.M).group(1))


@contextlib.contextmanager
def hugepages(need_mb):
    """Asks the kernel for pages; yields how many MiB are free, and puts the former number back."""
    size_kb, former = meminfo("Hugepagesize"), meminfo("HugePages_Total")
    missing = -(-need_mb * 1024 // size_kb) - meminfo("HugePages_Free")
    if missing > 0:
        with contextlib.suppress(OSError):
            NR_HUGEPAGES.write_text(str(former + missing))
    reached = meminfo("HugePages_Total")
    try:
        yield meminfo("HugePages_Free") * size_kb // 1024
    finally:
        # Unless somebody else has changed it since.
        if reached != former and meminfo("HugePages_Total") == reached:
            NR_HUGEPAGES.write_text(str(former))


# ---- the frames ----------------------------------------------------------------------------------

def frame(pair, side):
    """60 octets of UDP from station `pair` behind port `side` to its peer behind the other port."""
    def mac(s):
        return bytes([2, s]) + pair.to_bytes(4, "big")

    def ip(s):
        return bytes([10, s << 7 | pair >> 16, pair >> 8 & 255, pair & 255])

    head = struct.pack("!BBHHHBBH", 0x45, 0, 46, 0, 0, 64, 17, 0) + ip(side) + ip(1 - side)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return mac(1 - side) + mac(side) + b"\x08\x00" + head + struct.pack("!4H", 4000, 4000, 26, 0) + bytes(18)


def write_frames(path, pairs, side):
    """One frame of each pair, in an order of this direction's own."""
    order = list(range(pairs))
    random.Random(side + 1).shuffle(order)
    with open(path, "wb") as f:
        f.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for i in order:
            f.write(struct.pack("<IIII", 0, 0, 60, 60) + frame(i, side))


# ---- processes -----------------------------------------------------------------------------------

class Processes:
    """What one contender started, with its folder; all gone at the end of the block."""

    def __init__(self, bench, pairs):
        self.bench, self.pairs, self.running = bench, pairs, []

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(dir=self.bench.dir))
        return self

    def __exit__(self, *_):
        for p in reversed(self.running):
            p.terminate()
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        shutil.rmtree(self.dir)

    def start(self, *command, stdin=subprocess.DEVNULL):
        """Starts a daemon in the foreground; its output goes to a log in the folder."""
        command = [str(c) for c in command]
        self.log = self.dir / f"{len(self.running)}.log"
        with open(self.log, "wb") as log:
            p = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, cwd=self.dir,
                                 env={**os.environ, "OVS_RUNDIR": str(self.dir)},
                                 # Ctrl-C is this script's, and the daemons go in their order.
                                 start_new_session=True,
                                 preexec_fn=lambda: os.sched_setaffinity(0, self.bench.all_cores))
        self.running.append(p)
        return p

    def run(self, *command):
        """Runs a command to its end; its output."""
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120,
                              start_new_session=True, env={**os.environ, "OVS_RUNDIR": str(self.dir)})
        if done.returncode != 0:
            raise Failed(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def wait_for(self, what, ready, seconds=30):
        """Polls until `ready()` is true; a daemon that ended, or that takes too long, is a failure."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            dead = [p for p in self.running if p.poll() is not None]
            if not dead and ready():
                return
            if dead:
                break
            time.sleep(0.05)
        log = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        raise Failed(f"{what}: not ready; its last words: {' | '.join(log) or 'none'}")

    def confine(self):
        """Moves every thread that is not pinned to the measured core off it."""
        for p in self.running:
            for tid in map(int, os.listdir(f"/proc/{p.pid}/task")):
                with contextlib.suppress(OSError):
                    if os.sched_getaffinity(tid) != {self.bench.core}:
                        os.sched_setaffinity(tid, {self.bench.house})

    def device(self, side):
        return f"net_pcap{side},rx_pcap={self.bench.frames(self.pairs, side)},infinite_rx=1"


# ---- the contenders ------------------------------------------------------------------------------
#
# needs       programs that must be there
# memory_mb   hugepages for so many pairs; None if it cannot have so many
# start       brings it to forwarding
# sample      cumulative (cycles, frames received, frames sent)

class Dunlin:
    def __init__(self, bench):
        self.bench = bench
        self.needs = [str(bench.bin / b) for b in ("dunlin-dataplane", "dunlin-control", "dunlin")]

    def memory_mb(self, pairs):
        # The driver keeps every frame of its file in a buffer; a third of the memory is not for buffers.
        return 256 + 2 * pairs * 4 // 1024

    def start(self, run):
        dataplane, control, self.cli = self.needs
        api = run.dir / "dataplane.sock"
        huge = [] if self.bench.huge else ["--no-huge"]
        run.start(dataplane, "--cores", self.bench.core, "--memory", self.memory_mb(run.pairs), *huge,
                  "--socket", api, "--mac-table-size", 1_000_000)
        run.wait_for("dunlin-dataplane", api.exists)
        run.start(control, "--socket", run.dir / "control.sock", "--dataplane", api,
                  "--store", run.dir / "state.redb", "--metrics", "127.0.0.1:0")
        run.wait_for("dunlin-control", lambda: (run.dir / "control.sock").exists() and self.status(run)["dataplane_up"])
        ports = [f'[[port]]\nname = "p{s}"\nkind = "nic"\nqueues = 1\ndevice = "{run.device(s)}"\n' for s in (0, 1)]
        (run.dir / "bench.toml").write_text('[dataplane]\nidle = "poll"\n' + "".join(ports))
        self.dunlin(run, "apply", "-f", run.dir / "bench.toml")

    def dunlin(self, run, *args):
        return run.run(self.cli, "--control", run.dir / "control.sock", *args)

    def status(self, run):
        return json.loads(self.dunlin(run, "--json", "status"))

    def sample(self, run):
        state = self.status(run)["dataplane"]
        if errors := [p["error"] for p in state["ports"] if p["error"]]:
            raise Failed(errors[0])
        worker, counters = state["workers"][0], [p["counters"] for p in state["ports"]]
        return worker["busy_cycles"], worker["frames"], sum(c["tx_frames"] for c in counters)


class Testpmd:
    needs = ["dpdk-testpmd"]

    def __init__(self, bench, mode):
        self.bench, self.mode = bench, mode

    def memory_mb(self, pairs):
        return 256 + 2 * pairs * 4 // 1024

    def start(self, run):
        memory = ["--in-memory"] if self.bench.huge else ["--no-huge", "--no-shconf", "-m", self.memory_mb(run.pairs)]
        self.process = run.start(
            # Line by line, or what it prints into a file comes late.
            "stdbuf", "-oL", "dpdk-testpmd", f"--lcores=0@{self.bench.house},1@{self.bench.core}", "--no-pci", "--no-telemetry", *memory,
            "--vdev", run.device(0), "--vdev", run.device(1), "--", "--interactive", "--auto-start", "--nb-cores=1",
            "--no-flush-rx", f"--forward-mode={self.mode}", f"--total-num-mbufs={2 * run.pairs + 16384}",
            stdin=subprocess.PIPE)
        run.wait_for("dpdk-testpmd", lambda: "testpmd>" in run.log.read_text(errors="replace"))

    def sample(self, run):
        # One core that never idles: its cycles are the counter's.
        before, seen = self.bench.tsc(), run.log.stat().st_size
        self.process.stdin.write(b"show port stats all\n")
        self.process.stdin.flush()

        def count(which):
            text = run.log.read_bytes()[seen:].decode(errors="replace")
            return [int(n) for n in re.findall(rf"{which}-packets:\s*(\d+)", text)]

        run.wait_for("dpdk-testpmd", lambda: len(count("TX")) == 2)
        return before, sum(count("RX")), sum(count("TX"))


class OpenVSwitch:
    needs = ["ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-appctl", OVS_SWITCHD, OVS_SCHEMA]

    def __init__(self, bench):
        self.bench = bench

    def memory_mb(self, pairs):
        # Its pool has 262,144 buffers at most, whatever the memory.
        return 1024 if pairs <= 125_000 else None

    def start(self, run):
        db, self.control = f"unix:{run.dir}/db.sock", run.dir / "switchd.ctl"
        run.run("ovsdb-tool", "create", run.dir / "conf.db", OVS_SCHEMA)
        run.start("ovsdb-server", run.dir / "conf.db", f"--remote=p{db}", f"--unixctl={run.dir}/ovsdb.ctl")
        run.wait_for("ovsdb-server", (run.dir / "db.sock").exists)
        memory = "--in-memory" if self.bench.huge else f"--no-huge --no-shconf -m {self.memory_mb(run.pairs)}"
        run.run("ovs-vsctl", f"--db={db}", "--no-wait", "--", "init", "--", "set", "Open_vSwitch", ".",
                "other_config:dpdk-init=true", f"other_config:dpdk-extra=\"--no-pci --no-telemetry {memory}\"",
                f"other_config:pmd-cpu-mask={1 << self.bench.core:#x}")
        # In a network namespace of its own: its bridge's interface is nobody else's business.
        run.start("unshare", "--net", OVS_SWITCHD, db, f"--unixctl={self.control}")
        run.wait_for("ovs-vswitchd-dpdk", self.control.exists)
        ports = [a for s in (0, 1) for a in (
            "--", "add-port", "bench", f"p{s}", "--", "set", "interface", f"p{s}", "type=dpdk",
            f"options:dpdk-devargs=\"{run.device(s)}\"")]
        # The default flow is NORMAL: learning and forwarding.
        run.run("ovs-vsctl", f"--db={db}", "--timeout=60", "add-br", "bench", "--", "set", "bridge", "bench",
                "datapath_type=netdev", "other_config:mac-table-size=1000000", *ports)
        for s in (0, 1):
            if (error := run.run("ovs-vsctl", f"--db={db}", "get", "interface", f"p{s}", "error").strip()) != "[]":
                raise Failed(error)

    def appctl(self, run, *args):
        return run.run("ovs-appctl", "--timeout=60", "-t", self.control, *args)

    def sample(self, run):
        worker = self.appctl(run, "dpif-netdev/pmd-stats-show").split("main thread:")[0]
        if not (total := re.search(r"avg cycles per packet: \S+ \((\d+)/(\d+)\)", worker)):
            raise Failed("no packets were received")
        sent = re.findall(r"TX packets:(\d+)", self.appctl(run, "dpctl/show", "-s"))
        return int(total[1]), int(total[2]), sum(map(int, sent))


# ---- measuring -----------------------------------------------------------------------------------

class Bench:
    def __init__(self, args, folder):
        self.args, self.dir, self.bin = args, Path(folder), args.bin.resolve()
        self.tsc = tsc_reader()
        self.all_cores = os.sched_getaffinity(0)
        self.core = args.core if args.core in self.all_cores else max(self.all_cores)
        self.house = min(self.all_cores - {self.core}, default=self.core)
        self.huge, self.notes, self.runs = True, [], []
        if self.house == self.core:
            self.note("only one core: control processes share it, so the numbers are no measurement")
        os.sched_setaffinity(0, {self.house})
        every = {"testpmd io": Testpmd(self, "io"), "testpmd macswap": Testpmd(self, "macswap"),
                 "dunlin": Dunlin(self), "ovs": OpenVSwitch(self)}
        self.contenders = {n: c for n, c in every.items() if n.split()[0] in args.contenders and self.have(n, c)}

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print("note:", text, file=sys.stderr)

    def have(self, name, contender):
        missing = [n for n in contender.needs if not (shutil.which(n) or Path(n).is_file())]
        if missing:
            self.note(f"{name} left out: there is no {', '.join(missing)}")
        return not missing

    def frames(self, pairs, side):
        path = self.dir / f"{pairs}-{side}.pcap"
        if not path.exists():
            write_frames(path, pairs, side)
        return path

    def measure(self, name, pairs):
        """One measurement of one contender, from its start to its end."""
        contender = self.contenders[name]
        with Processes(self, pairs) as run:
            contender.start(run)
            run.confine()
            time.sleep(self.args.warmup)
            first, began = contender.sample(run), time.monotonic()
            time.sleep(self.args.seconds)
            second, ended = contender.sample(run), time.monotonic()
        cycles, received, sent = (b - a for a, b in zip(first, second))
        if received == 0:
            raise Failed("no frame was received")
        return {"cycles_per_frame": cycles / received, "sent_share": min(sent / received, 1.0),
                "frames_per_s": received / (ended - began)}

    def attempt(self, name, pairs, round_, free_mb):
        need = self.contenders[name].memory_mb(pairs)
        if need is None or need > free_mb:
            why = "more than it has buffers for" if need is None else f"needs {need} MiB, there are {free_mb}"
            return self.note(f"{name} with {pairs:,} pairs left out: {why}")
        try:
            result = self.measure(name, pairs)
        except (Failed, OSError, subprocess.SubprocessError) as e:
            return self.note(f"{name} with {pairs:,} pairs failed: {e}")
        self.runs.append({"contender": name, "pairs": pairs, "round": round_, **result})
        print(f"{pairs:>9,} pairs  round {round_}  {name:<16} {result['cycles_per_frame']:9.1f} cycles/frame",
              file=sys.stderr)

    def run(self):
        need = max((c.memory_mb(p) or 0 for c in self.contenders.values() for p in self.args.pairs), default=0)
        with hugepages(need) as free_mb:
            smallest = min((c.memory_mb(1) for c in self.contenders.values()), default=0)
            if free_mb < smallest:
                self.huge, free_mb = False, meminfo("MemAvailable") // 1024
                self.note("no hugepages to be had: all run on ordinary pages, which is slower for everyone")
            for pairs in self.args.pairs:
                for round_ in range(1, self.args.rounds + 1):
                    for name in self.contenders:
                        self.attempt(name, pairs, round_, free_mb)
                for side in (0, 1):
                    self.frames(pairs, side).unlink()


# ---- the result ----------------------------------------------------------------------------------

def summarize(runs):
    """{pairs: {contender: median, least, most, share of frames that were sent on}}"""
    table = {}
    for r in runs:
        table.setdefault(r["pairs"], {}).setdefault(r["contender"], []).append(r)
    for row in table.values():
        for name, rs in row.items():
            c = [r["cycles_per_frame"] for r in rs]
            row[name] = {"median": statistics.median(c), "min": min(c), "max": max(c),
                         "sent_share": min(r["sent_share"] for r in rs)}
    return table


def ratio(row, a, b):
    return f"{row[a]['median'] / row[b]['median']:.2f}" if a in row and b in row else "-"


def cell(row, name):
    if name not in row:
        return "-"
    s = row[name]
    lost = f", {1 - s['sent_share']:.0%} lost" if s["sent_share"] < 0.995 else ""
    return f"{s['median']:.1f} ({s['min']:.1f}..{s['max']:.1f}{lost})"


def show(table, names):
    head = ["pairs", *names, "dunlin/io", "ovs/dunlin"]
    rows = [[f"{p:,}", *(cell(row, n) for n in names), ratio(row, "dunlin", "testpmd io"), ratio(row, "ovs", "dunlin")]
            for p, row in table.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    print("\ncycles per frame: median (least..most)\n")
    for row in [head, *rows]:
        print("  ".join(text.rjust(w) for text, w in zip(row, widths)))
    ours = [(p, row["dunlin"]["median"]) for p, row in table.items() if "dunlin" in row]
    if len(ours) > 1:
        (few, a), (many, b) = min(ours), max(ours)
        print(f"\ndunlin with {many:,} pairs over {few:,}: {b / a:.2f}")


def save(bench, table):
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    tsc, began = bench.tsc(), time.monotonic()
    time.sleep(0.2)
    tsc_hz = round((bench.tsc() - tsc) / (time.monotonic() - began))
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("forwarding-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({
        "machine": {"cpu": cpu[1] if cpu else "", "kernel": platform.release(), "tsc_hz": tsc_hz, "hugepages": bench.huge},
        "settings": {k: getattr(bench.args, k) for k in ("rounds", "warmup", "seconds")} | {"core": bench.core},
        "notes": bench.notes, "summary": table, "runs": bench.runs}, indent=1) + "\n")
    print(f"\nwritten to {path}")


def arguments():
    p = argparse.ArgumentParser(description="Cycles per frame of plain learning and forwarding.")
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    p.add_argument("--bin", type=Path, default=HERE.parent / "target/release", metavar="DIR", help="where Dunlin's binaries are")
    p.add_argument("--pairs", type=numbers, default=[1, 1000, 10000, 100000], metavar="N,N", help="address pairs")
    p.add_argument("--rounds", type=int, default=3, help="measurements of each contender (default 3)")
    p.add_argument("--warmup", type=float, default=3, metavar="S", help="seconds before a measurement (default 3)")
    p.add_argument("--seconds", type=float, default=3, metavar="S", help="seconds of a measurement (default 3)")
    p.add_argument("--core", type=int, default=1, help="the measured core (default 1)")
    p.add_argument("--contenders", type=lambda t: t.split(","), default=["testpmd", "dunlin", "ovs"], metavar="NAME,NAME",
                   help="of testpmd, dunlin, ovs (default all)")
    return p.parse_args()


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    with tempfile.TemporaryDirectory(prefix="dunlin-bench-") as folder:
        bench = Bench(args, folder)
        try:
            bench.run()
        except KeyboardInterrupt:
            bench.note("interrupted: only what was measured until then")
        if bench.runs:
            table = summarize(bench.runs)
            show(table, list(bench.contenders))
            save(bench, table)
    return 0 if bench.runs else 1


if __name__ == "__main__":
    sys.exit(main())
