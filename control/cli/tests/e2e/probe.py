#!/usr/bin/env python3
"""Sends and receives numbered frames of EtherType 0x88b5 (IEEE 802 local experimental).

send IFACE [--count N | --stream] [--first SEQ] [--rate FPS] [--dst MAC] [--src MAC] [--tags TPID:TCI,...] [--size OCTETS]
receive IFACE [--count N] [--frames]

`send --stream` sends until its standard input is closed, and then prints how many it has sent. With --progress FILE on
both sides, at most 200 frames are on their way, however slow the machine is: it waits for the receiver.

`receive` prints "listening" first, and listens for as long as its standard input is open. A number written there is
the --count. Then it waits for that many frames, or for as long as they come, and shortly for more than that. Nothing
depends on how long a frame takes: only a time without any ends it. At the end, with --frames, a line a frame (tags, seq, size),
and always a summary: received, distinct, lost (between the first and the last), out of order, and
the longest gap between two frames in milliseconds.
"""
import argparse
import itertools
import os
import select
import socket
import struct
import time

ETHERTYPE = 0x88B5
SOL_PACKET, PACKET_AUXDATA = 263, 8
SO_RCVBUFFORCE = 33
TAGGED = 1 << 4  # TP_STATUS_VLAN_VALID
TPID_VALID = 1 << 6
SLOWER = float(os.environ.get("DUNLIN_SLOWER", "1"))
# Seconds without a frame: while some are missing, when nobody knows how many there will be, and for one too many.
MISSING_S, QUIET_S, MORE_S = 30 * SLOWER, 2 * SLOWER, 0.3
WINDOW = 200


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def own_mac(iface):
    with open(f"/sys/class/net/{iface}/address") as f:
        return f.read().strip()


def wait_for_receiver(path, sent):
    """Until enough of `sent` have arrived, or nothing arrives any more: then they are lost, and the test says so."""
    received, since = -1, time.monotonic()
    while time.monotonic() - since < MISSING_S:
        with open(path, "rb") as f:
            now = int.from_bytes(f.read(8), "little")
        if sent - now < WINDOW:
            return
        if now != received:
            received, since = now, time.monotonic()
        time.sleep(0.01)


def send(a):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.bind((a.iface, 0))
    head = octets(a.dst) + octets(a.src or own_mac(a.iface))
    for tag in filter(None, a.tags.split(",")):
        tpid, tci = tag.split(":")
        head += struct.pack("!HH", int(tpid, 16), int(tci, 16))
    head += struct.pack("!H", ETHERTYPE)
    begun = time.monotonic()
    sent = 0
    for seq in itertools.count() if a.stream else range(a.count):
        if a.stream and seq % 16 == 0 and select.select([0], [], [], 0)[0]:
            break
        if a.progress and seq % 32 == 0:
            wait_for_receiver(a.progress, seq)
        frame = head + struct.pack("!I", a.first + seq)
        while True:
            try:
                s.send(frame.ljust(a.size, b"\0"))
                break
            except OSError:  # the interface's queue is full
                time.sleep(0.0005)
        ahead = seq / a.rate - (time.monotonic() - begun)
        if ahead > 0.001:
            time.sleep(ahead)
        sent += 1
    if a.stream:
        print(f"sent={sent}")


def tags_of(frame, ancillary):
    """Tags as TPID:TCI, the one that the kernel took out among them, and what follows."""
    tags, at = [], 12
    for level, kind, data in ancillary:
        if level == SOL_PACKET and kind == PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", data[:20])
            if status & TAGGED:
                tags.append(f"{tpid if status & TPID_VALID else 0x8100:04x}:{tci:04x}")
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        tags.append(f"{frame[at:at+2].hex()}:{frame[at+2:at+4].hex()}")
        at += 4
    return tags, at


def receive(a):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    s.bind((a.iface, 3))
    s.setblocking(False)
    progress = open(a.progress, "wb", buffering=0) if a.progress else None
    print("listening", flush=True)
    count, told, is_open = a.count, b"", True
    seen, lines, gap, last_time, quiet_since = [], [], 0.0, None, time.monotonic()
    while True:
        try:
            frame, ancillary, _, address = s.recvmsg(65536, 256)
        except BlockingIOError:
            patience = MORE_S if 0 < count <= len(seen) else MISSING_S if count else QUIET_S
            if not is_open and time.monotonic() - quiet_since > patience:
                break
            if 0 in select.select([s, 0] if is_open else [s], [], [], 0.1)[0]:
                part = os.read(0, 64)
                told += part
                if not part:
                    count, is_open, quiet_since = int(told or count), False, time.monotonic()
            continue
        if address[2] == socket.PACKET_OUTGOING:
            continue
        tags, at = tags_of(frame, ancillary)
        if frame[at : at + 2] != struct.pack("!H", ETHERTYPE):
            continue
        now = time.monotonic()
        gap, last_time, quiet_since = max(gap, now - (last_time or now)), now, now
        seq = struct.unpack("!I", frame[at + 2 : at + 6])[0]
        seen.append(seq)
        if progress:
            os.pwrite(progress.fileno(), len(seen).to_bytes(8, "little"), 0)
        if a.frames:
            lines.append(f"seq={seq} tags={','.join(tags) or 'none'} size={len(frame)} src={frame[6:12].hex(':')}")
    for line in lines:
        print(line)
    distinct = set(seen)
    lost = max(distinct) - min(distinct) + 1 - len(distinct) if seen else 0
    disorder = sum(b < a for a, b in zip(seen, seen[1:]))
    print(f"received={len(seen)} distinct={len(distinct)} lost={lost} disorder={disorder} gap_ms={int(gap * 1000)}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["send", "receive"])
    p.add_argument("iface")
    p.add_argument("--count", type=int, default=0)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--rate", type=float, default=2000)
    p.add_argument("--stream", action="store_true")
    p.add_argument("--progress", default="")
    p.add_argument("--dst", default="ff:ff:ff:ff:ff:ff")
    p.add_argument("--src", default="")
    p.add_argument("--tags", default="")
    p.add_argument("--size", type=int, default=60)
    p.add_argument("--frames", action="store_true")
    a = p.parse_args()
    if a.what == "send":
        a.count = a.count or 1
        send(a)
    else:
        receive(a)


main()
