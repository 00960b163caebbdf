"""Frames and rules for access lists and connection tracking: the same for Dunlin and for Open vSwitch."""

import random
import struct

STATIONS = 100  # behind each port


def ipv4(n):
    return f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"


def packet(mac, side, station, source, target, sport, dport, tcp):
    """A frame of 60 octets from one of the stations behind a port, with these ends."""
    head = struct.pack("!BBHHHBBHII", 0x45, 0, 46, 0, 0, 64, 6 if tcp else 17, 0, 10 << 24 | source, 10 << 24 | target)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    tail = struct.pack("!IIBBHHH", 1, 1, 0x50, 0x10, 1024, 0, 0) if tcp else struct.pack("!HH", 26, 0)
    body = (struct.pack("!HH", sport, dport) + tail).ljust(26, b"\0")
    return mac(side ^ 1, station) + mac(side, station) + b"\x08\x00" + head + body


def flows(mac, side, n):
    """Frames of n random flows; no rule but the last is about their ports."""
    r = random.Random(side + 7)
    for _ in range(n):
        a, b, sport = r.randrange(1 << 24), r.randrange(1 << 24), r.randrange(32000, 62000)
        yield packet(mac, side, r.randrange(STATIONS), a, b, sport, r.randrange(32768, 65536), r.random() < 0.5)


def connections(mac, side, n):
    """A frame of each of n connections over UDP: from the first port, or their answers from the second."""
    order = list(range(n))
    random.Random(side + 1).shuffle(order)
    r = random.Random(11)
    salt = r.randrange(1 << 24)
    for i in order:
        # Every one has other ends, in no order that a hash could follow.
        a, b = (i * 2654435761 ^ salt) & 0xFFFFFF, (i * 40503 + salt) & 0xFFFFFF
        ports = (1024 + i % 60000, 53)
        ends = (a, b, *ports) if side == 0 else (b, a, *ports[::-1])
        yield packet(mac, side, i % STATIONS, *ends, tcp=False)


def masked(first, last):
    """A range of ports as values and masks, as OpenFlow has them."""
    while first <= last:
        size = first & -first or 65536
        while first + size - 1 > last:
            size >>= 1
        yield f"{first:#x}/{65536 - size:#x}"
        first += size


def rules(n):
    """n rules of mixed kinds, of which the last lets everything pass and no other matches: in Dunlin's words, and
    as flows for Open vSwitch."""
    r = random.Random(n)
    lines, openflow = [], []

    def prefix(lengths=(16, 20, 24, 24, 24, 28, 32, 32)):
        length = r.choice(lengths)
        return f"{ipv4(r.randrange(1 << 24) >> 32 - length << 32 - length & 0xFFFFFF)}/{length}"

    def ports(top=30000):
        first = r.randrange(1024, top)
        return first, min(first + r.choice((0, 0, 0, 10, 100)), top + 100)

    for i in range(n - 1):
        protocol, src, dst, sport, dport = r.choice(("tcp", "udp")), None, None, None, None
        kind = i % 10
        if kind < 4:
            src, dst, dport = prefix(), prefix(), ports()
        elif kind < 6:
            dst, dport = prefix(), ports()
        elif kind < 8:
            src, dport = prefix(), ports()
        elif kind == 8:
            protocol, src, dst = None, prefix((28, 32)), prefix((28, 32))
        else:
            sport, dport = ports(), ports()
        text, match = f"deny {protocol or ''}", [protocol or "ip"]
        for word, who, its_ports in (("from", src, sport), ("to", dst, dport)):
            if who or its_ports:
                text += f" {word} {who or 'any'}" + (f" port {its_ports[0]}-{its_ports[1]}" if its_ports else "")
        match += [f"nw_src={src}"] if src else []
        match += [f"nw_dst={dst}"] if dst else []
        lines.append(" ".join(text.split()))
        for s in masked(*sport) if sport else [None]:
            for d in masked(*dport) if dport else [None]:
                more = [f"tp_src={s}"] if s else []
                more += [f"tp_dst={d}"] if d else []
                openflow.append(f"priority={60000 - i},{','.join(match + more)},actions=drop")
    lines.append("allow from 10.0.0.0/8")
    openflow += ["priority=1,ip,nw_src=10.0.0.0/8,actions=NORMAL", "priority=0,actions=drop"]
    return lines, openflow


def acl(name, lines):
    return f'[[acl]]\nname = "{name}"\nrules = [\n' + "".join(f'    "{line}",\n' for line in lines) + "]\n"


STATEFUL = ["allow state established,related", "deny state invalid", "allow udp state new", "allow tcp state new"]
CONNTRACK = [
    "table=0,priority=10,ct_state=-trk,ip,actions=ct(table=1)",
    "table=1,priority=10,ct_state=+trk+est,ip,actions=NORMAL",
    "table=1,priority=10,ct_state=+trk+new,udp,in_port=p0,actions=ct(commit),NORMAL",
    "table=1,priority=0,actions=drop",
]
