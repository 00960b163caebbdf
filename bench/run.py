#!/usr/bin/env python3
"""Dunlin, the driver alone and Open vSwitch side by side: cycles per frame, and frames per second.

The contenders run one after the other, round by round, on the same core and the same frames. What is
measured is in scenarios.py, how in here, who in contenders.py; how to read the result is in README.md.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True  # leaves nothing beside the script

import extra  # noqa: E402
import report  # noqa: E402
import scenarios  # noqa: E402
from contenders import Dunlin, Failed, Guests, OpenVSwitch, Plain, Run, Testpmd  # noqa: E402
from machine import alone, describe, hugepages, meminfo, waited_s  # noqa: E402

HERE = Path(__file__).resolve().parent
MARGIN = 0.02  # of its core that a worker may miss before it is said


class Bench:
    def __init__(self, args, folder):
        self.args, self.dir = args, Path(folder)
        cores = os.sched_getaffinity(0)
        self.core = args.core if args.core in cores else max(cores)
        self.other_core = min(cores - {self.core}, default=self.core)
        self.hugepages, self.notes = True, []
        if self.other_core == self.core:
            self.note("there is one core only: everything shares it, so these numbers compare nothing")
        os.sched_setaffinity(0, {self.other_core})
        every = {"io": Testpmd("io"), "macswap": Testpmd("macswap"), "plain": Plain(args.bin.resolve()),
                 "dunlin": Dunlin(args.bin.resolve()),
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

    def run(self, scenario):
        """The runs of one scenario."""
        runs = []
        for case in scenario.cases(self.dir, self.args):
            names = [n for n in self.contenders if n in case.contenders]
            for round_ in range(1, self.args.rounds + 1):
                for name in names:
                    if result := self.attempt(scenario, name, case):
                        runs.append({"contender": name, "x": case.x, "round": round_, **result})
                        print(f"{scenario.name}, {case.x:,} {scenario.x}, round {round_}: {name:<8}"
                              f"{result['cycles_per_frame']:9.1f} cycles", file=sys.stderr)
        return runs

    def memory(self, need_mb):
        return hugepages(need_mb) if self.hugepages else contextlib.nullcontext(meminfo("MemAvailable") // 1024)

    def attempt(self, scenario, name, case):
        what = f"{name} with {case.x:,} {scenario.x}"
        need = self.contenders[name].memory_mb(case)
        if need is None:
            return self.note(f"{what} left out: more frames than it has buffers")
        if case.workers > 1 and self.other_core == self.core:
            return self.note(f"{what} left out: there is no second core")
        need += Guests.MEMORY_MB if case.guests else 0
        try:
            with self.memory(need) as free_mb:
                if self.hugepages and free_mb < min(need, 300):
                    self.hugepages = False
                    self.note("no hugepages to be had: all run on ordinary pages, which is slower for all")
                elif need > free_mb:
                    return self.note(f"{what} left out: needs {need} MiB, {free_mb} are free")
                return self.measure(name, case)
        except (Failed, OSError, subprocess.SubprocessError) as e:
            return self.note(f"{what} failed: {e}")

    def measure(self, name, case):
        """One contender, from its start to its end."""
        contender = self.contenders[name]
        with Run(self.dir, case, self.core, self.other_core, self.hugepages) as run:
            guests = Guests(run, case) if case.guests else None
            contender.start(run, case)
            workers = run.confine()
            if guests:
                guests.start()
            time.sleep(self.args.warmup + contender.settle_s(case))
            first, began, waited = contender.sample(run), time.monotonic(), waited_s(workers)
            got = guests.received() if guests else 0
            time.sleep(self.args.seconds)
            second, seconds = contender.sample(run), time.monotonic() - began
            got = guests.received() - got if guests else 0
            missed = (waited_s(workers) - waited) / seconds
        cycles, received, sent = (b - a for a, b in zip(first, second))
        if received <= 0:
            raise Failed("no frame was received")
        if missed > MARGIN:
            self.note("other processes ran on the measured core (see core_missed in the file): measure again without")
        frames = got or (sent if case.per == "sent" else received)
        return {"cycles_per_frame": cycles / (received if case.per == "received" else sent),
                "lost": max(0, 1 - sent / received), "frames_per_s": frames / seconds, "core_missed": missed}


def arguments():
    names = [*(s.name for s in scenarios.ALL), *extra.ALL]
    p = argparse.ArgumentParser(description="Dunlin, the driver alone and Open vSwitch side by side.")
    p.add_argument("scenario", nargs="*", metavar="SCENARIO", help=f"{', '.join(names)} (default all)")
    p.add_argument("--bin", type=Path, default=HERE.parent / "target/release", metavar="DIR", help="Dunlin's binaries")
    p.add_argument("--pairs", type=lambda t: [int(n) for n in t.split(",")],
                   default=[1, 100, 1000, 10_000, 100_000, 500_000], metavar="N,N",
                   help="numbers of address pairs (default 1,100,1000,10000,100000,500000)")
    p.add_argument("--size", choices=list(scenarios.SIZES), default="60", help="octets of a frame (default 60)")
    p.add_argument("--contenders", type=lambda t: t.split(","), default=["io", "macswap", "plain", "dunlin", "ovs"],
                   metavar="NAME,NAME", help="io and macswap (of testpmd), plain (Dunlin without tunnel), dunlin, ovs "
                   "(default all)")
    p.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    p.add_argument("--warmup", type=float, default=3, metavar="S", help="seconds before a measurement (default 3)")
    p.add_argument("--seconds", type=float, default=3, metavar="S", help="seconds of a measurement (default 3)")
    p.add_argument("--core", type=int, default=1, help="the measured core (default 1)")
    p.add_argument("--quick", action="store_true", help="one short round, few cases")
    args = p.parse_args()
    if unknown := set(args.contenders) - {"io", "macswap", "plain", "dunlin", "ovs"}:
        p.error(f"no contender is called {', '.join(sorted(unknown))}")
    if unknown := set(args.scenario) - set(names):
        p.error(f"no scenario is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not all(1 <= n < 1 << 23 for n in args.pairs):
        p.error("pairs: from 1 to 8388607")
    if args.quick:
        args.pairs, args.rounds, args.warmup, args.seconds = [1, 1000, 100_000], 1, 1, 1
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
    measured = False
    with tempfile.TemporaryDirectory(prefix="dunlin-bench-") as folder:
        bench = Bench(args, folder)
        settings = {k: getattr(args, k) for k in ("rounds", "warmup", "seconds", "size")} | {"core": bench.core}
        try:
            alone()
            for scenario in scenarios.ALL:
                if args.scenario and scenario.name not in args.scenario:
                    continue
                if runs := bench.run(scenario):
                    measured, table = True, report.summarize(runs)
                    report.show(scenario, table)
                    result = {"machine": describe(), "hugepages": bench.hugepages, "settings": settings,
                              "notes": bench.notes, "runs": runs}
                    path = report.save(HERE / "results", scenario, result, table)
                    print(f"\nWritten to {os.path.relpath(path)}, and .svg")
            for name in extra.ALL:
                if args.scenario and name not in args.scenario or not bench.is_here(name, extra.NEEDS.get(name, [])):
                    continue
                try:
                    rows = extra.run(bench, name)
                except (Failed, OSError, subprocess.SubprocessError) as e:
                    bench.note(f"{name} failed: {e}")
                    continue
                measured = True
                report.write(HERE / "results", name, {"machine": describe(), "settings": settings, "rows": rows})
        except KeyboardInterrupt:
            print("interrupted: the scenario that was being measured is left out", file=sys.stderr)
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
