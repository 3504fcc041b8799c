"""niso.kernel.sockets against sockets of the test itself, and ss."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time

import pytest
from kernel_world import sh, throw_away_host

from niso.kernel import netns, sockets


def opened(
    family: int, kind: int, address: str, port: int, *, only_v6: bool = False, link: str = ""
) -> socket.socket:
    one = socket.socket(family, kind)
    if link:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
    one.bind((address, port))
    if kind == socket.SOCK_STREAM:
        one.listen()
    return one


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@throw_away_host
def test_listeners_are_those_that_take_what_comes_to_their_port() -> None:
    for proto, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        v4 = opened(socket.AF_INET, kind, "127.0.0.1", 8001)
        all4 = opened(socket.AF_INET, kind, "0.0.0.0", 8002)
        v6 = opened(socket.AF_INET6, kind, "::1", 8003)
        only6 = opened(socket.AF_INET6, kind, "::", 8004, only_v6=True)
        both = opened(socket.AF_INET6, kind, "::", 8005)
        mapped = opened(socket.AF_INET6, kind, "::ffff:127.0.0.1", 8006)
        local4 = opened(socket.AF_INET, kind, "0.0.0.0", 8008, link="lo")
        local6 = opened(socket.AF_INET6, kind, "::", 8009, link="lo")
        client = socket.socket(socket.AF_INET, kind)
        client.bind(("127.0.0.1", 8007))
        client.connect(("127.0.0.1", 8001))
        expected = {
            (socket.AF_INET, "127.0.0.1", 8001, inode(v4)),
            (socket.AF_INET, "0.0.0.0", 8002, inode(all4)),
            (socket.AF_INET6, "::1", 8003, inode(v6)),
            (socket.AF_INET6, "::", 8004, inode(only6)),
            (socket.AF_INET6, "::", 8005, inode(both)),
            (socket.AF_INET, "0.0.0.0", 8005, inode(both)),
            (socket.AF_INET, "127.0.0.1", 8006, inode(mapped)),
            (socket.AF_INET, "127.0.0.1", 8008, inode(local4)),
            (socket.AF_INET6, "::1", 8009, inode(local6)),
            (socket.AF_INET, "127.0.0.1", 8009, inode(local6)),
        }
        assert set(sockets.listeners(proto)) == expected
        shown = sh(f"ss -Hln --{proto}").splitlines()
        assert {int(line.split()[3].rpartition(":")[2]) for line in shown} == {
            row[2] for row in expected
        }


@throw_away_host
def test_listeners_of_a_range_are_those_within_it() -> None:
    for proto, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        kept = [
            opened(socket.AF_INET, kind, "127.0.0.1", port)
            for port in (7999, 8000, 8005, 8010, 8011)
        ]
        kept.append(opened(socket.AF_INET6, kind, "::", 8006))

        def ports(first: int, last: int, proto: str = proto) -> set[int]:
            shown = {row.port for row in sockets.listeners(proto) if first <= row.port <= last}
            lines = sh(f"ss -Hln --{proto} sport >= :{first} and sport <= :{last}").splitlines()
            assert {int(line.split()[3].rpartition(":")[2]) for line in lines} == shown
            return shown

        assert ports(8000, 8010) == {8000, 8005, 8006, 8010}
        assert ports(8001, 8004) == set()
        assert ports(8010, 8010) == {8010}
        assert ports(1, 65535) == {7999, 8000, 8005, 8006, 8010, 8011}
        for one in kept:
            one.close()


@throw_away_host
def test_sctp_has_the_listeners_that_the_kernel_has_none_without_sctp() -> None:
    kept = [
        opened(socket.AF_INET, kind, "0.0.0.0", 8001)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    ]
    expected = []
    try:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError:
        pass  # EPROTONOSUPPORT
    else:
        one.bind(("127.0.0.1", 8001))
        one.listen()
        expected = [sockets.Listener(socket.AF_INET, "127.0.0.1", 8001, inode(one))]
    assert sockets.listeners("sctp") == expected
    assert len(kept) == 2


@throw_away_host
def test_listeners_of_another_namespace_are_not_listed() -> None:
    netns.create("niso-api")
    one = opened(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", 8001)
    with netns.inside("niso-api"):
        assert sockets.listeners("tcp") == []
    assert [row.inode for row in sockets.listeners("tcp")] == [inode(one)]


@throw_away_host
def test_holder_is_the_process_that_has_the_socket_open() -> None:
    one = opened(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", 8001)
    number = inode(one)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[one.fileno()])
    try:
        with open("/proc/self/comm", encoding="ascii") as file:
            assert sockets.holder(number) == (os.getpid(), file.read().strip())
        one.close()
        assert sockets.holder(number) == (child.pid, "sleep")
    finally:
        child.kill()
        child.wait()
    assert sockets.holder(number) is None


@throw_away_host
def test_measured_connections_have_the_figures_of_ss() -> None:
    server = opened(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", 8001)
    client = socket.create_connection(("127.0.0.1", 8001))
    taken, _ = server.accept()
    client.sendall(bytes(5000))
    sh("ip link add d0 type veth peer d1")
    sh("ip link set d1 up")
    sh("ip address add 10.9.9.1/24 dev d0")
    sh("ip link set d0 up")
    sh("ip neighbour add 10.9.9.9 lladdr 02:00:00:00:00:09 dev d0")
    lost = socket.socket()
    lost.setblocking(False)
    lost.connect_ex(("10.9.9.9", 81))
    own, there = client.getsockname(), ("10.9.9.1", lost.getsockname()[1])
    end = time.monotonic() + 10
    while not (rows := {(*r.connection[:2], r.is_server): r for r in sockets.measured()})[
        (*there, False)
    ].retransmitted:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(rows) == 3
    sender, receiver, unanswered = rows[(*own, False)], rows[(*own, True)], rows[(*there, False)]
    assert sender.connection == receiver.connection == (*own, "127.0.0.1", 8001)
    assert (sender.state, receiver.state, unanswered.state) == (
        "established",
        "established",
        "syn-sent",
    )
    assert (receiver.received, sender.received, unanswered.rtt) == (5000, 0, None)
    for row, port in ((sender, own[1]), (receiver, 8001), (unanswered, there[1])):
        shown = sh(f"ss -Htin sport = :{port}")
        rtt, acked, resent = (
            re.search(rf" {key}([\d.]+)", shown)
            for key in ("rtt:", "bytes_acked:", r"retrans:\d+/")
        )
        assert row.acked == int(acked[1]) if acked else not row.acked
        assert row.retransmitted >= 1 if resent else row.retransmitted == 0
        assert row.rtt is None or row.rtt == pytest.approx(float(rtt[1]) / 1000, abs=1e-6)
    # what is over is not listed, nor what listens
    for one in (client, taken, lost):
        one.close()
    end = time.monotonic() + 10
    while sockets.measured():
        assert time.monotonic() < end
        time.sleep(0.05)
