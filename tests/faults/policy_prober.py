"""Run inside a lab: send to closed ports of a service continuously, and count packets that arrive.

Arguments: the service watched, then ``NETNS,ADDRESS,PORT`` for each way to it. Prints ``ready``, then at each line that it
reads what was counted, as JSON: the namespace's own counters (proc(5), /proc/net/snmp) count from its first moment on. Ends
with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys

INTERVAL_SECONDS = 0.006
OPEN = 64  # connections that are being tried at a time


def main() -> None:
    watched = sys.argv[1]
    ways = [
        (netns, address, int(port))
        for netns, address, port in (each.split(",") for each in sys.argv[2:])
    ]
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    places = {netns: os.open(f"/run/netns/{netns}", os.O_RDONLY) for netns, _, _ in ways}
    senders = {}
    for netns, address, _ in ways:
        os.setns(places[netns], os.CLONE_NEWNET)
        senders[netns, ":" in address] = socket.socket(family(address), socket.SOCK_DGRAM)
    connections: list[socket.socket] = []
    sent = 0
    most: dict[str, int] = {}
    print("ready", flush=True)
    while True:
        for netns, address, port in ways:
            with contextlib.suppress(OSError):
                senders[netns, ":" in address].sendto(b"probe", (address, port))
            os.setns(places[netns], os.CLONE_NEWNET)
            connections.append(socket.socket(family(address), socket.SOCK_STREAM))
            connections[-1].setblocking(False)
            with contextlib.suppress(OSError):
                connections[-1].connect((address, port))
            sent += 2
        while len(connections) > OPEN:
            connections.pop(0).close()
        look(watched, home, most)
        if select.select([0], [], [], INTERVAL_SECONDS)[0]:
            if not sys.stdin.readline():
                return
            look(watched, home, most)
            print(json.dumps({"sent": sent, **most}), flush=True)
            sent = 0
            most.clear()


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def look(watched: str, home: int, most: dict[str, int]) -> None:
    """The most that each counter of the namespace has shown; it is entered for this moment only, to not keep it."""
    try:
        there = os.open(f"/run/netns/{watched}", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.setns(there, os.CLONE_NEWNET)
        for name, value in counters().items():
            most[name] = max(most.get(name, 0), value)
    except OSError:  # it is being made or is going
        return
    finally:
        os.close(there)
        os.setns(home, os.CLONE_NEWNET)


def counters() -> dict[str, int]:
    """What came in of TCP and UDP, both families: of TCP segments, of UDP datagrams without a listener too."""
    with open("/proc/thread-self/net/snmp", encoding="ascii") as file:
        lines = [line.split() for line in file]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found |= {
            f"{names[0]}{name}": int(value)
            for name, value in zip(names[1:], values[1:], strict=True)
        }
    with open("/proc/thread-self/net/snmp6", encoding="ascii") as file:
        found |= {name: int(value) for name, value in (line.split() for line in file)}
    wanted = ("Tcp:InSegs", "Udp:InDatagrams", "Udp:NoPorts", "Udp6InDatagrams", "Udp6NoPorts")
    return {name: found[name] for name in wanted}


if __name__ == "__main__":
    main()
