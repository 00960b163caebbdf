#!/usr/bin/env python3
"""scapy writes and reads 802.1Q tags on eth0.

send SPORT [VID:PRIO ...]   one UDP datagram from SPORT, with these tags
sniff FILE                  makes FILE when it listens; prints what arrived once FILE.end is there and nothing more comes
"""
import os
import sys
import time

from scapy.all import IP, UDP, AsyncSniffer, Dot1Q, Ether, raw, sendp


def own_mac():
    with open("/sys/class/net/eth0/address") as f:
        return f.read().strip()


def send(sport, tags):
    frame = Ether(dst="ff:ff:ff:ff:ff:ff", src=own_mac())
    for tag in tags:
        vid, prio = map(int, tag.split(":"))
        frame /= Dot1Q(vlan=vid, prio=prio)
    sendp(frame / IP(src="10.0.0.9", dst="10.0.0.255") / UDP(sport=sport, dport=4242) / (b"x" * 30), iface="eth0", verbose=0)


def listen(ready):
    own = own_mac()
    packets = []
    sniffer = AsyncSniffer(
        iface="eth0",
        lfilter=lambda p: UDP in p and p[UDP].dport == 4242 and p.src != own,
        prn=packets.append,
        started_callback=lambda: open(ready, "w").close(),
    )
    sniffer.start()
    while not os.path.exists(ready + ".end"):
        time.sleep(0.1)
    for _ in range(60):
        seen = len(packets)
        time.sleep(1)
        if seen and seen == len(packets):
            break
    sniffer.stop()
    tags = [(t.vlan, t.prio) for p in packets for t in [p.getlayer(Dot1Q)] if t]
    right = []
    for p in packets:
        again = IP(raw(p[IP]))
        del again[IP].chksum, again[UDP].chksum
        again = IP(raw(again))
        right.append(again.chksum == p[IP].chksum and again[UDP].chksum == p[UDP].chksum)
    print(f"tags={tags} ports={[p[UDP].sport for p in packets]} checksums={right}")


if sys.argv[1] == "send":
    send(int(sys.argv[2]), sys.argv[3:])
else:
    listen(sys.argv[2])
