#!/usr/bin/env python3
"""A vhost-user guest that means harm: it negotiates like any other, then fills its rings with
garbage: descriptors outside of its memory, loops, absurd lengths, indices that jump.

hostile.py SOCKET SECONDS [SEED]             SOCKET is made by the switch (server mode)
hostile.py SOCKET broadcast LENGTH COUNT [TAGS]   COUNT TCP segments to everyone instead, large ones to be cut,
                                             behind TAGS (hexadecimal): unusual, but each receiver must get
                                             them, cut to its own size

Prints "running" once its device is started, "done" at the end. The protocol is QEMU's
docs/interop/vhost-user; rings are split ones (virtio 1.1, 2.6).
"""
import array
import mmap
import os
import random
import socket
import struct
import sys
import time

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ENABLE = 12, 13, 18
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
PROTOCOL_FEATURES, VERSION_1, MRG_RXBUF, CSUM, HOST_TSO4 = 30, 32, 15, 0, 11
MEMORY, RING = 16 << 20, 256
DESC, AVAIL, USED, BUFFERS = 0x0, 0x2000, 0x4000, 0x100000
GUEST, USER = 0x0, 0x7F0000000000  # where the memory is, for the guest and for its process


class Guest:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, MEMORY)
        self.memory = mmap.mmap(self.fd, MEMORY)

    def send(self, request, payload=b"", fds=()):
        message = struct.pack("<III", request, 1, len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([message], ancillary)

    def ask(self, request):
        self.send(request)
        answer = self.sock.recv(20)
        if len(answer) < 20:
            raise ConnectionResetError
        return struct.unpack("<Q", answer[12:20])[0]

    def start(self, pairs=1):
        offered = self.ask(GET_FEATURES)
        wanted = sum(1 << b for b in (PROTOCOL_FEATURES, VERSION_1, MRG_RXBUF, CSUM, HOST_TSO4))
        if offered & (1 << PROTOCOL_FEATURES):
            self.ask(GET_PROTOCOL_FEATURES)
            self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", 0))
        self.send(SET_OWNER)
        self.send(SET_FEATURES, struct.pack("<Q", offered & wanted))
        region = struct.pack("<QQQQ", GUEST, MEMORY, USER, 0)
        self.send(SET_MEM_TABLE, struct.pack("<II", 1, 0) + region, [self.fd])
        for ring in range(2 * pairs):
            base = ring * 0x10000
            self.send(SET_VRING_NUM, struct.pack("<II", ring, RING))
            self.send(SET_VRING_BASE, struct.pack("<II", ring, 0))
            addresses = [USER + base + DESC, USER + base + USED, USER + base + AVAIL]
            self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", ring, 0, *addresses, 0))
            self.send(SET_VRING_CALL, struct.pack("<Q", ring), [os.eventfd(0)])
            self.send(SET_VRING_KICK, struct.pack("<Q", ring), [os.eventfd(0)])
        for ring in range(2 * pairs):
            self.send(SET_VRING_ENABLE, struct.pack("<II", ring, 1))

    def garbage(self, rng):
        """One round of harm in both rings."""
        for base in (0x0, 0x10000):
            for i in range(RING):
                address = rng.choice([BUFFERS + i * 4096, rng.getrandbits(64), MEMORY - 8, MEMORY, (1 << 64) - 16, 0])
                length = rng.choice([0, 1, 11, 12, 13, 60, 1500, 65535, 65536, 1 << 31, (1 << 32) - 1])
                flags = rng.choice([0, 1, 1, 2, 3, 4, 7, rng.getrandbits(16)])
                following = rng.choice([(i + 1) % RING, i, rng.getrandbits(16)])
                struct.pack_into("<QIHH", self.memory, base + DESC + 16 * i, address, length, flags, following)
                head = rng.choice([i, rng.randrange(RING), rng.getrandbits(16)])
                struct.pack_into("<H", self.memory, base + AVAIL + 4 + 2 * i, head)
            index = struct.unpack_from("<H", self.memory, base + AVAIL + 2)[0]
            step = rng.choice([1, 32, 255, 256, 257, 65535, rng.getrandbits(16)])
            struct.pack_into("<H", self.memory, base + AVAIL + 2, (index + step) & 0xFFFF)
        # virtio-net headers that promise what the frames don't hold, and frames of any content.
        for i in range(RING):
            header = struct.pack(
                "<BBHHHHH", rng.getrandbits(2), rng.choice([0, 1, 3, 4, 0x81]), rng.getrandbits(16), rng.choice([0, 1, 1460]),
                rng.choice([14, 34, 54, rng.getrandbits(16)]), rng.choice([6, 16, rng.getrandbits(16)]), rng.getrandbits(4)
            )
            frame = bytes.fromhex("ffffffffffff02000000") + rng.randbytes(2) + rng.choice([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\x00"])
            self.memory[BUFFERS + i * 4096 : BUFFERS + i * 4096 + 64] = (header + frame + rng.randbytes(64))[:64]


    def broadcast(self, length, count, tags=""):
        """TCP over IPv4 to the broadcast address, to be segmented (mss 1448) if it is large, checksum left open."""
        ethernet = bytes.fromhex("ffffffffffff020000000001" + tags + "0800")
        l3 = len(ethernet)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, length - l3, 1, 0x4000, 64, 6, 0) + bytes([10, 99, 0, 9, 10, 99, 0, 1])
        ip = ip[:10] + struct.pack(">H", ~folded(ip) & 0xFFFF) + ip[12:]
        open_sum = folded(ip[12:20] + struct.pack(">HH", 6, length - l3 - 20))
        tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 100, open_sum, 0)
        frame = (ethernet + ip + tcp).ljust(length, b"A")
        gso = (1, l3 + 40, 1448) if length > l3 + 1500 else (0, 0, 0)
        buffer = struct.pack("<BBHHHHH", 1, *gso, l3 + 20, 16, 0) + frame
        for n in range(count):
            at, i, base = BUFFERS + n % 64 * 0x10000, n % RING, 0x10000
            self.memory[at : at + len(buffer)] = buffer
            struct.pack_into("<QIHH", self.memory, base + DESC + 16 * i, at, len(buffer), 0, 0)
            struct.pack_into("<H", self.memory, base + AVAIL + 4 + 2 * i, i)
            struct.pack_into("<H", self.memory, base + AVAIL + 2, (n + 1) & 0xFFFF)
            time.sleep(0.002)
        time.sleep(0.5)


def folded(octets):
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def main():
    if sys.argv[2] == "broadcast":
        guest = Guest(sys.argv[1])
        guest.start()
        print("running", flush=True)
        time.sleep(0.5)
        guest.broadcast(int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:6])
        return
    if sys.argv[2] in ("stuck", "flap"):
        end, guest = time.monotonic() + float(sys.argv[3]), None
        while time.monotonic() < end:
            try:
                if sys.argv[2] == "flap" or guest is None:
                    guest = Guest(sys.argv[1])
                    guest.start()
                    print("running", flush=True)
            except OSError:
                # The connection before is not gone yet.
                guest = None
            time.sleep(0.1)
            if sys.argv[2] == "flap" and guest is not None:
                guest.sock.close()
        return
    path, seconds = sys.argv[1], float(sys.argv[2])
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    guest = Guest(path)
    guest.start()
    print("running", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            guest.garbage(rng)
        except (BrokenPipeError, ConnectionResetError):
            break
    print("done", flush=True)


main()
