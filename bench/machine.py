"""The machine that is measured on: hugepages, cores, and whether anybody else is at work."""

import contextlib
import fcntl
import os
import platform
import re
import sys
import time
from pathlib import Path

from contenders import tsc

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


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


def tsc_hz():
    ticks, began = tsc(), time.monotonic()
    time.sleep(0.2)
    return round((tsc() - ticks) / (time.monotonic() - began))


def describe():
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {"cpu": cpu[1] if cpu else "", "cores": os.cpu_count(), "kernel": platform.release(),
            "tsc_hz": tsc_hz()}
