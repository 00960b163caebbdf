#!/usr/bin/env python3
"""Instructions per frame of the engine, counted by callgrind, against the committed figures.

A count does not depend on the machine's mood, so a change that makes the hot path longer shows here
even where no time can be measured. Each scenario runs twice, with different numbers of bursts; the
difference is the bursts' alone. Fails if a figure has grown by more than 5 %.

usage: instructions.py [--write]     --write takes what was counted for the new figures
"""

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "instructions.json"
# And address pairs.
SCENARIOS = {"forward": 1000, "trunk_to_access": 1000, "spread": 1000, "flood": 8, "filter": 1000, "track": 1000, "secure": 1, "full": 1000}
BURST, FEWER, MORE = 128, 125, 375
# Compilers differ by themselves: beside another one than the figures were made with, only a large growth counts.
ALLOWED, ALLOWED_OTHER_COMPILER = 1.05, 1.20


def built():
    """The program that runs the scenarios, built as the switch is."""
    command = ["cargo", "build", "--release", "--locked", "-p", "dunlin-engine", "--bench", "instructions",
               "--message-format=json"]
    lines = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines]
    return next(a["executable"] for a in artifacts if a.get("target", {}).get("name") == "instructions")


def counted(program, scenario, pairs, bursts):
    with tempfile.NamedTemporaryFile() as out:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", program, scenario,
                   str(pairs), str(bursts)]
        run = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return int(re.search(r"Collected : (\d+)", run.stderr)[1])


def per_frame(program, scenario, pairs):
    more, fewer = (counted(program, scenario, pairs, n) for n in (MORE, FEWER))
    return round((more - fewer) / (MORE - FEWER) / BURST, 1)


def main():
    compiler = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
    program = built()
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(SCENARIOS, pool.map(lambda s: per_frame(program, *s), SCENARIOS.items())))
    if "--write" in sys.argv[1:]:
        FIGURES.write_text(json.dumps({"rustc": compiler, "per_frame": found}, indent=1) + "\n")
    figures = json.loads(FIGURES.read_text())
    allowed = ALLOWED if figures["rustc"] == compiler else ALLOWED_OTHER_COMPILER
    grown = []
    for scenario, count in found.items():
        figure = figures["per_frame"][scenario]
        print(f"{scenario:<16} {count:7.1f} instructions per frame, committed {figure:.1f}")
        if count > figure * allowed:
            grown.append(scenario)
    if allowed != ALLOWED:
        print(f"(counted with rustc {compiler}, the figures with {figures['rustc']}: up to {allowed - 1:.0%} more is allowed)")
    if grown:
        print(f"{', '.join(grown)}: more than {allowed - 1:.0%} over the committed figure. Make it shorter, or, if it is "
              "worth it, say why and run bench/instructions.py --write", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
