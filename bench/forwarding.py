#!/usr/bin/env python3
"""Cycles per frame of plain learning and forwarding: Dunlin, the driver alone, Open vSwitch.

Two ports of DPDK's net_pcap driver receive a file of 60-byte frames for ever and drop what is sent
to them, so the one worker core is always busy, and cycles per frame is what switch and driver take.
The contenders run one after the other, round by round, on the same core and the same frames. How to
read the result is in README.md beside this file.
"""

import argparse
import contextlib
import fcntl
import json
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

sys.dont_write_bytecode = True  # leaves nothing beside the script

from contenders import Dunlin, Failed, OpenVSwitch, Run, Testpmd, tsc  # noqa: E402

HERE = Path(__file__).resolve().parent
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
MARGIN = 0.02  # of its core that a worker may miss, of its frames that it may lose, before it is said


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
    return path


# ---- the machine ---------------------------------------------------------------------------------

def meminfo(field):
    return int(re.search(rf"^{field}:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])


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


def alone():
    """Waits until no other run of this script measures on this machine."""
    alone.lock = open(NR_HUGEPAGES)  # what two runs would quarrel over; held until the process ends
    try:
        fcntl.flock(alone.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another run is measuring; waiting for its end", file=sys.stderr)
        fcntl.flock(alone.lock, fcntl.LOCK_EX)


def waited_s(tasks):
    """Seconds that these threads were ready to run and did not, because others had their core."""
    return sum(int((t / "schedstat").read_text().split()[1]) for t in tasks) / 1e9


# ---- measuring -----------------------------------------------------------------------------------

class Bench:
    def __init__(self, args, folder):
        self.args, self.dir = args, Path(folder)
        cores = os.sched_getaffinity(0)
        self.core = args.core if args.core in cores else max(cores)
        self.other_core = min(cores - {self.core}, default=self.core)
        self.hugepages, self.notes, self.runs = True, [], []
        if self.other_core == self.core:
            self.note("there is one core only: everything shares it, so these numbers compare nothing")
        os.sched_setaffinity(0, {self.other_core})
        every = {"io": Testpmd("io"), "macswap": Testpmd("macswap"), "dunlin": Dunlin(args.bin.resolve()),
                 "ovs": OpenVSwitch()}
        self.contenders = {n: every[n] for n in args.contenders if self.is_here(n, every[n].needs)}

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print("note:", text, file=sys.stderr)

    def is_here(self, name, needs):
        missing = [n for n in needs if not (shutil.which(n) or Path(n).is_file())]
        if missing:
            self.note(f"{name} left out: there is no {', '.join(missing)}")
        return not missing

    def run(self):
        need = max((c.memory_mb(2 * p) or 0 for c in self.contenders.values() for p in self.args.pairs), default=0)
        least = min((c.memory_mb(2) for c in self.contenders.values()), default=0)
        with hugepages(need) as free_mb:  # at once, while there are whole ones
            if free_mb < least:
                self.hugepages = False
                self.note("no hugepages to be had: all run on ordinary pages, which is slower for all")
            for pairs in self.args.pairs:
                files = [write_frames(self.dir / f"{side}.pcap", pairs, side) for side in (0, 1)]
                for round_ in range(1, self.args.rounds + 1):
                    for name in self.contenders:
                        self.attempt(name, pairs, round_, files)

    def memory(self, need_mb):
        """So much for one measurement; others may have taken some of it meanwhile."""
        return hugepages(need_mb) if self.hugepages else contextlib.nullcontext(meminfo("MemAvailable") // 1024)

    def attempt(self, name, pairs, round_, files):
        need = self.contenders[name].memory_mb(2 * pairs)
        if need is None:
            return self.note(f"{name} with {pairs:,} pairs left out: more frames than it has buffers")
        try:
            with self.memory(need) as free_mb:
                if need > free_mb:
                    return self.note(f"{name} with {pairs:,} pairs left out: needs {need} MiB, {free_mb} are free")
                result = self.measure(name, pairs, files)
        except (Failed, OSError, subprocess.SubprocessError) as e:
            return self.note(f"{name} with {pairs:,} pairs failed: {e}")
        self.runs.append({"contender": name, "pairs": pairs, "round": round_, **result})
        print(f"{pairs:>9,} pairs, round {round_}: {name:<8} {result['cycles_per_frame']:9.1f}", file=sys.stderr)

    def measure(self, name, pairs, files):
        """One contender, from its start to its end."""
        contender = self.contenders[name]
        with Run(self.dir, files, self.core, self.other_core, self.hugepages) as run:
            contender.start(run, 2 * pairs)
            workers = run.confine()
            time.sleep(self.args.warmup + contender.settle_s(2 * pairs))
            first, began, waited = contender.sample(run), time.monotonic(), waited_s(workers)
            time.sleep(self.args.seconds)
            second, seconds = contender.sample(run), time.monotonic() - began
            missed = (waited_s(workers) - waited) / seconds
        cycles, received, sent = (b - a for a, b in zip(first, second))
        if received == 0:
            raise Failed("no frame was received")
        if missed > MARGIN:
            self.note("other processes ran on the measured core (see core_missed in the file): measure again without")
        return {"cycles_per_frame": cycles / received, "lost": max(0, 1 - sent / received),
                "frames_per_s": received / seconds, "core_missed": missed}


# ---- the result ----------------------------------------------------------------------------------

def summarize(runs):
    """{pairs: {contender: what was measured of it}}"""
    table = {}
    for r in runs:
        table.setdefault(r["pairs"], {}).setdefault(r["contender"], []).append(r)
    for row in table.values():
        for name, of_one in row.items():
            cycles = {r["round"]: r["cycles_per_frame"] for r in of_one}
            row[name] = {"median": statistics.median(cycles.values()), "min": min(cycles.values()),
                         "max": max(cycles.values()), "lost": max(r["lost"] for r in of_one), "rounds": cycles}
    return table


def ratio(row, a, b):
    """The median of what the rounds say, each by itself: a machine's moods last longer than a round."""
    a, b = (row.get(n, {}).get("rounds", {}) for n in (a, b))
    both = [a[r] / b[r] for r in a.keys() & b.keys()]
    return f"{statistics.median(both):.2f}" if both else "-"


def cell(row, name):
    if name not in row:
        return "-"
    lost = f", {row[name]['lost']:.0%} lost" if row[name]["lost"] > MARGIN else ""
    return "{median:.1f} ({min:.1f}..{max:.1f}{})".format(lost, **row[name])


def show(table, names):
    head = ["pairs", *names, "dunlin/io", "ovs/dunlin"]
    rows = [[f"{p:,}", *(cell(row, n) for n in names), ratio(row, "dunlin", "io"), ratio(row, "ovs", "dunlin")]
            for p, row in table.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    print("\nCycles per frame: median (least..most)\n")
    for row in [head, *rows]:
        print("  ".join(text.rjust(w) for text, w in zip(row, widths)))
    ours = [(p, row["dunlin"]["median"]) for p, row in table.items() if "dunlin" in row]
    if len(ours) > 1:
        (few, a), (many, b) = min(ours), max(ours)
        print(f"\ndunlin with {many:,} pairs over {few:,}: {b / a:.2f}")


def tsc_hz():
    ticks, began = tsc(), time.monotonic()
    time.sleep(0.2)
    return round((tsc() - ticks) / (time.monotonic() - began))


def save(bench, table):
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    result = {
        "machine": {"cpu": cpu[1] if cpu else "", "kernel": platform.release(), "tsc_hz": tsc_hz(),
                    "hugepages": bench.hugepages},
        "settings": {k: getattr(bench.args, k) for k in ("rounds", "warmup", "seconds")} | {"core": bench.core},
        "notes": bench.notes, "summary": table, "runs": bench.runs}
    path = HERE / "results" / time.strftime("forwarding-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nWritten to {os.path.relpath(path)}")


def arguments():
    p = argparse.ArgumentParser(description="Cycles per frame of plain learning and forwarding, side by side.")
    p.add_argument("--bin", type=Path, default=HERE.parent / "target/release", metavar="DIR", help="Dunlin's binaries")
    p.add_argument("--pairs", type=lambda t: [int(n) for n in t.split(",")], default=[1, 1000, 10_000, 100_000],
                   metavar="N,N", help="numbers of address pairs (default 1,1000,10000,100000)")
    p.add_argument("--contenders", type=lambda t: t.split(","), default=["io", "macswap", "dunlin", "ovs"],
                   metavar="NAME,NAME", help="io and macswap (of testpmd), dunlin, ovs (default all)")
    p.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    p.add_argument("--warmup", type=float, default=3, metavar="S", help="seconds before a measurement (default 3)")
    p.add_argument("--seconds", type=float, default=3, metavar="S", help="seconds of a measurement (default 3)")
    p.add_argument("--core", type=int, default=1, help="the measured core (default 1)")
    args = p.parse_args()
    if unknown := set(args.contenders) - {"io", "macswap", "dunlin", "ovs"}:
        p.error(f"no contender is called {', '.join(sorted(unknown))}")
    if not all(1 <= n < 1 << 23 for n in args.pairs):
        p.error("pairs: from 1 to 8388607")
    return args


def interrupted(*_):
    """The first signal ends the run; more of them do not disturb the cleaning up."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    raise KeyboardInterrupt


def main():
    args = arguments()
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, interrupted)
    with tempfile.TemporaryDirectory(prefix="dunlin-bench-") as folder:
        bench = Bench(args, folder)
        try:
            alone()
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
