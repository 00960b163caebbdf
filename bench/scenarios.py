"""What is measured: each scenario is a list of cases, and a case is ports with their frames.

A port is what DPDK calls a device, and its settings in the words of Dunlin and of Open vSwitch.
"""

import random
import struct
from dataclasses import dataclass, field

import filters

SIZES = {"60": [60], "512": [512], "1514": [1514], "imix": [60] * 7 + [576] * 4 + [1514]}


@dataclass
class Port:
    device: str
    dunlin: str = ""      # lines of its [[port]]
    ovs: tuple = ()       # columns of its Port record
    queues: int = 1
    filter: str = ""      # lines of its [[port]] that the plain contender does without
    kind: tuple = ()      # other than a DPDK device: the lines of its [[port]], the type of its Interface


@dataclass
class Case:
    x: int                # where it stands in the plot and the table
    ports: list
    frames: int           # in all files together: what the pools must hold
    workers: int = 1
    contenders: tuple = ("io", "macswap", "dunlin", "ovs")
    per: str = "received"  # what cycles are divided by: frames received, or sent
    guests: tuple = ()    # sockets that a generator serves as two guests; with the frame's size
    size: int = 60
    idle: str = "poll"    # how Dunlin's workers idle
    remotes: int = 1      # other hosts' VTEPs
    filter: str = ""      # of the configuration, what the plain contender does without
    flows: tuple = ()     # the same as flows of Open vSwitch; its default one without
    settle: float = 0     # seconds more before a measurement
    sessions: int = 0     # connections that there must be room for
    tunnel: bool = False  # the first port is a guest's, the second the way to another host's VTEP


@dataclass
class Scenario:
    name: str
    title: str
    x: str
    cases: object         # from a folder and the arguments: the cases, one by one
    bars: dict = field(default_factory=dict)  # {(one, other): {x: least or most ratio}}
    dearer: dict = field(default_factory=dict)  # {(one, other): cycles per frame that one may cost more}


# ---- the frames ----------------------------------------------------------------------------------

def mac(side, pair):
    return bytes([2, side]) + pair.to_bytes(4, "big")


def frame(pair, side, size=60, vlan=None, to=None):
    """UDP from station `pair` behind port `side` to its peer behind the other port."""
    def ip(s):
        return bytes([10, (s & 1) << 7 | pair >> 16 & 127, pair >> 8 & 255, pair & 255])

    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    length = size - 14 - len(tag)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, 17, 0) + ip(side) + ip(side ^ 1)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    body = struct.pack("!4H", 4000 + (pair & 1023), 4000, length - 20, 0) + bytes(length - 28)
    return (to or mac(side ^ 1, pair)) + mac(side, pair) + tag + b"\x08\x00" + head + body


def write(path, frames):
    with open(path, "wb") as f:
        f.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for octets in frames:
            f.write(struct.pack("<IIII", 0, 0, len(octets), len(octets)) + octets)
    return path


def shuffled(pairs, side, sizes, vlan=None):
    """One frame of each pair, in an order of this direction's own."""
    order = list(range(pairs))
    random.Random(side + 1).shuffle(order)
    # A whole mix even where there are few pairs.
    order *= -(-len(sizes) // len(order))
    return (frame(p, side, sizes[i % len(sizes)], vlan) for i, p in enumerate(order))


def endless(n, *files):
    """A port that receives these files for ever, one a queue, and drops what is sent to it."""
    return f"net_pcap{n}," + ",".join(f"rx_pcap={f}" for f in files) + ",infinite_rx=1"


# ---- the scenarios -------------------------------------------------------------------------------

def forwarding(folder, args, vlan=None):
    sizes = SIZES[args.size]
    for pairs in args.pairs:
        files = [write(folder / f"{side}.pcap", shuffled(pairs, side, sizes, vlan if side == 0 else None))
                 for side in (0, 1)]
        settings = [("", ()), ("", ())] if vlan is None else [
            (f'trunks = "{vlan}"', (f"trunks={vlan}",)), (f"vlan = {vlan}", (f"tag={vlan}",))]
        yield Case(pairs, [Port(endless(i, f), *settings[i]) for i, f in enumerate(files)],
                   2 * max(pairs, len(sizes)), contenders=("io", "macswap", "dunlin", "ovs"))


def sizes(folder, args):
    for sizes in SIZES.values():
        files = [write(folder / f"{side}.pcap", shuffled(1000, side, sizes)) for side in (0, 1)]
        yield Case(sum(sizes) // len(sizes), [Port(endless(i, f)) for i, f in enumerate(files)], 2 * 1000)


def trunk_to_access(folder, args):
    return forwarding(folder, args, vlan=10)


def scaling(folder, args):
    pairs = 1000
    for workers in (1, 2):
        ports = []
        for side in (0, 1):
            halves = [[frame(p, side) for p in range(pairs) if p % workers == q] for q in range(workers)]
            files = [write(folder / f"{side}-{q}.pcap", h) for q, h in enumerate(halves)]
            ports.append(Port(endless(side, *files), queues=workers))
        yield Case(workers, ports, 2 * pairs, workers=workers, contenders=("dunlin", "ovs"))


def flood(folder, args):
    for n in (2, 8, 30):
        everyone = write(folder / "flood.pcap", (frame(p, 0, to=b"\xff" * 6) for p in range(64)))
        silent = [Port(f"net_null{i},no-rx=1") for i in range(n)]
        yield Case(n, [Port(endless(0, everyone)), *silent], 64, contenders=("dunlin", "ovs"), per="sent")


# ---- tunnels: the guest's station and the other host's, this host's VTEP and the other's ----------

VNI, OWN_VTEP, OTHER_VTEP = 100, ("10.0.0.1", mac(0xFE, 1)), ("10.0.0.2", mac(0xFE, 2))


def tunnelled(inner, flow):
    """A frame of the other host's VTEP for this one's, as RFC 7348 has it."""
    vxlan = struct.pack("!II", 0x08000000, VNI << 8) + inner
    udp = struct.pack("!4H", 49152 + flow % 16384, 4789, 8 + len(vxlan), 0) + vxlan

    def ip(text):
        return bytes(map(int, text.split(".")))

    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + ip(OTHER_VTEP[0]) + ip(OWN_VTEP[0])
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return OWN_VTEP[1] + OTHER_VTEP[1] + b"\x08\x00" + head + udp


def tunnel(folder, args, out):
    """Frames from the guest to the other host, or back: many flows between two stations."""
    for flows in (1, 1000):
        if out:
            frames = (frame(p, 0, to=mac(1, 0)) for p in range(flows))
        else:
            frames = (tunnelled(frame(p, 1, to=mac(0, 0)), p) for p in range(flows))
        file = write(folder / "tunnel.pcap", frames)
        guest, uplink = "net_null0,no-rx=1", "net_null1,no-rx=1"
        devices = (endless(0, file), uplink) if out else (guest, endless(1, file))
        yield Case(flows, [Port(d) for d in devices], flows, contenders=("plain", "dunlin", "ovs"), tunnel=True)


def encapsulation(folder, args):
    return tunnel(folder, args, True)


def decapsulation(folder, args):
    return tunnel(folder, args, False)


def replication(folder, args):
    """Broadcasts of a guest, to 64 other hosts each."""
    for size in (60, 512, 1400):
        file = write(folder / "tunnel.pcap", (frame(p, 0, size, to=b"\xff" * 6) for p in range(64)))
        devices = (endless(0, file), "net_null1,no-rx=1")
        yield Case(size, [Port(d) for d in devices], 64, contenders=("dunlin",), per="sent", tunnel=True, remotes=64)


def guests(folder, args):
    for size in (60, 1514):
        sockets = tuple(folder / f"guest{i}" for i in (0, 1))
        ports = [Port(str(s)) for s in sockets]
        yield Case(size, ports, 0, contenders=("dunlin", "ovs"), guests=sockets, size=size)


# ---- access lists and connections ------------------------------------------------------------------

def access_list(folder, args):
    flows = 10_000 if args.quick else 100_000
    files = [write(folder / f"{side}.pcap", filters.flows(mac, side, flows // 2)) for side in (0, 1)]
    for n in (10, 1000) if args.quick else (10, 100, 1000, 10_000):
        lines, openflow = filters.rules(n)
        ports = [Port(endless(i, f), filter='ingress_acls = ["bench"]') for i, f in enumerate(files)]
        yield Case(n, ports, flows, contenders=("plain", "dunlin", "ovs"), filter=filters.acl("bench", lines),
                   flows=tuple(openflow))


def tracking(folder, args):
    """Connections that go on, both ways; the first port's are tracked."""
    for n in (10_000,) if args.quick else (100_000, 1_000_000):
        files = [write(folder / f"{side}.pcap", filters.connections(mac, side, n)) for side in (0, 1)]
        lists = 'ingress_acls = ["bench"]\negress_acls = ["bench"]'
        ports = [Port(endless(i, f), filter=lists if i == 0 else "") for i, f in enumerate(files)]
        yield Case(n, ports, 2 * n, contenders=("plain", "dunlin", "ovs"), filter=filters.acl("bench", filters.STATEFUL),
                   flows=tuple(filters.CONNTRACK), settle=n / 250_000, sessions=n)


OVS_BAR, IO_BAR = {1: 2.0, 1000: 3.0, 10_000: 4.5, 100_000: 100}, {1: 1.8, 1000: 2.0, 10_000: 2.0, 100_000: 2.0}

ALL = [
    Scenario("forwarding", "Forwarding between two ports", "address pairs", forwarding,
             {("ovs", "dunlin"): OVS_BAR, ("dunlin", "io"): IO_BAR}),
    Scenario("trunk-to-access", "Forwarding between a trunk and an access port", "address pairs", trunk_to_access),
    Scenario("sizes", "The same by size, 1,000 pairs; 353 is the mean of an IMIX", "octets", sizes),
    Scenario("scaling", "The same with more workers, 1,000 pairs", "workers", scaling),
    Scenario("flood", "Flooding: cycles per frame sent", "ports", flood),
    Scenario("encapsulation", "VXLAN encapsulation", "flows", encapsulation,
             {("ovs", "dunlin"): {1: 2.5, 1000: 2.5}}, {("dunlin", "plain"): 25}),
    Scenario("decapsulation", "VXLAN decapsulation", "flows", decapsulation,
             {("ovs", "dunlin"): {1: 2.5, 1000: 2.5}}, {("dunlin", "plain"): 30}),
    Scenario("replication", "Broadcasts into 64 tunnels: cycles per frame sent", "octets", replication),
    Scenario("acl", "Access lists, 100,000 random flows, the last rule matches", "rules", access_list, {},
             {("dunlin", "plain"): {10: 20, 100: 40, 1000: 70, 10_000: 110}}),
    Scenario("sessions", "Established connections, tracked", "connections", tracking, {},
             {("dunlin", "plain"): {100_000: 60, 1_000_000: 120}}),
    Scenario("guests", "Guest to guest over vhost-user", "octets", guests, {("ovs", "dunlin"): {60: 1.3}}),
]
