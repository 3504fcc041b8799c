"""Test what `niso events` says between two looks."""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path

import pytest

from niso.kernel import netlink, watches
from niso.look import events
from niso.runtime import event_log
from niso.runtime.event_log import ServiceState, happened, service_events

OFF = ServiceState(False, False)
UP = ServiceState(
    True,
    False,
    activated_at=10.0,
    state="running",
    started_at=11.0,
    restart="on-failure",
    addresses=("10.99.0.2",),
    ports=("8080→80",),
)
BOX = ServiceState(True, True, activated_at=10.0, state="attached", addresses=("10.99.0.3",))


def said(old: ServiceState | None, new: ServiceState | None) -> list[tuple[str, str]]:
    assert list(service_events("a", new, new, 99.0)) == []
    changes = sorted(service_events("a", old, new, 99.0), key=lambda change: change.time)
    assert all(change.service == "a" for change in changes)
    return [(change.what, change.detail) for change in changes]


CASES = {
    "first activation": (None, UP, [("activated", "10.99.0.2, 8080→80")]),
    "again": (OFF, UP, [("activated", "10.99.0.2, 8080→80")]),
    "known, not active": (None, OFF, []),
    "changed manifest": (
        UP,
        UP._replace(activated_at=20.0, started_at=21.0, ports=("9000→80",)),
        [("activated", "10.99.0.2, 9000→80")],
    ),
    "changed while it runs": (
        UP,
        UP._replace(activated_at=20.0, ports=()),
        [("activated", "10.99.0.2")],
    ),
    "ended at once": (
        None,
        UP._replace(state="exited", exit_code=3, restart="no", ended_at=12.0),
        [("activated", "10.99.0.2, 8080→80"), ("exited (3)", "restart: no")],
    ),
    "deactivated": (UP, OFF, [("deactivated", "")]),
    "removed while active": (UP, None, [("deactivated", "")]),
    "removed": (OFF, None, [("removed", "")]),
    "out of memory": (
        UP,
        UP._replace(state="restarting", exit_code=137, ended_at=12.0, out_of_memory=True),
        [("exited (137)", "killed: out of memory; restart: on-failure")],
    ),
    "another process was out of memory, long before": (
        UP,
        UP._replace(state="exited", exit_code=0, ended_at=12.0, out_of_memory=True),
        [("exited (0)", "restart: on-failure")],
    ),
    "killed, waits": (
        UP,
        UP._replace(state="restarting", exit_code=137, ended_at=12.0),
        [("exited (137)", "restart: on-failure")],
    ),
    "waited": (
        UP._replace(state="restarting", exit_code=137, ended_at=12.0),
        UP._replace(started_at=13.0, restarts=1, exit_code=137),
        [("restarted", "restart 1 since its activation")],
    ),
    "killed and restarted between two looks": (
        UP,
        UP._replace(started_at=13.0, restarts=1, exit_code=1),
        [
            ("exited (1)", "restart: on-failure"),
            ("restarted", "restart 1 since its activation"),
        ],
    ),
    "niso restart": (UP, UP._replace(started_at=13.0), [("restarted", "")]),
    "gives up": (
        UP._replace(state="restarting", exit_code=1),
        UP._replace(state="failed", exit_code=1, error="no such file"),
        [("failed", "no such file")],
    ),
    "lost files": (UP, UP._replace(state="none"), [("failed", "no process: niso net check a")]),
    "job": (
        UP._replace(job=True),
        UP._replace(job=True, state="exited", exit_code=0),
        [("completed", "")],
    ),
    "port-forward": (
        UP,
        UP._replace(forwards=("81→82",)),
        [("published", "81→82 (port-forward)")],
    ),
    "no more": (
        UP._replace(forwards=("81→82",)),
        UP,
        [("unpublished", "81→82 (port-forward)")],
    ),
    "first probe": (UP, UP._replace(health="starting", failure="refused"), []),
    "ill": (
        UP._replace(health="healthy"),
        UP._replace(health="unhealthy", failure="tcp 80: connection refused", probed_at=20.0),
        [("unhealthy", "tcp 80: connection refused")],
    ),
    "well": (UP._replace(health="unhealthy"), UP._replace(health="healthy"), [("healthy", "")]),
    "attached": (None, BOX, [("attached", "10.99.0.3")]),
    "gone": (
        BOX,
        BOX._replace(state="gone"),
        [("gone", "its network namespace has ended")],
    ),
    "detached": (BOX, None, [("detached", "")]),
}


@pytest.mark.parametrize(("old", "new", "lines"), CASES.values(), ids=CASES)
def test_each_change_is_one_line(old, new, lines) -> None:
    assert said(old, new) == lines


def test_networks_are_events_unless_they_are_older_than_the_boot() -> None:
    made = {"back": (90.0, "10.99.0.0/24, fd00::/64"), "old": (-1e12, "10.99.1.0/24")}
    network = [("1970-01-01T00:01:30.000Z", "back", "network created", "10.99.0.0/24, fd00::/64")]
    for known in (None, {"old": "10.99.1.0/24"}):
        found = event_log._of_networks(known, made, 99.0)
        assert [(c.time, c.network, c.what, c.detail) for c in found] == network
    (gone,) = event_log._of_networks({"back": "x", "old": "y"}, {"old": made["old"]}, 99.0)
    assert (gone.network, gone.what) == ("back", "network removed")


@pytest.fixture
def ring(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NISO_RUN_DIR", str(tmp_path))
    return tmp_path / "events"


def test_ring_has_the_last_events_and_survives_damage(ring: Path) -> None:
    def add(first: int, count: int) -> None:
        one = [happened(float(i), f"s{i}", "activated", "→") for i in range(first, first + count)]
        event_log._record(lambda now: (one, {}))

    assert event_log.since(0) == [] and event_log.last() == 0
    for i in range(2500):
        add(i, 1)
    kept = event_log.since(0)
    assert [one.service for _, one in kept] == [f"s{i}" for i in range(1500, 2500)]
    assert kept[-1][1].detail == "→"
    numbers = [number for number, _ in kept]
    assert numbers == sorted({*numbers}) and event_log.last() == numbers[-1]
    with (ring / "log").open("a") as log:
        log.write('{"n": 9, "ti')  # its writer was killed
    assert event_log.since(numbers[-1]) == []
    add(2500, 2)
    assert [one.service for _, one in event_log.since(numbers[-1])] == ["s2500", "s2501"]
    for path in ring.glob("log*"):  # the run folder was emptied
        path.unlink()
    add(2502, 1)
    assert [one.service for _, one in event_log.since(numbers[-1])] == ["s2502"]


def test_health_of_a_recorded_run_alone_is_an_event(ring: Path) -> None:
    event_log._record(lambda now: ([], {"a": UP, "off": OFF}))
    for service, started_at in (("a", 1.0), ("off", 11.0), ("b", 11.0)):
        event_log.record_health(service, started_at, "healthy", "", 12.0)
    assert event_log.since(0) == []
    for health in ("starting", "healthy", "healthy", "unhealthy"):
        event_log.record_health("a", 11.0, health, "refused" * (health == "unhealthy"), 12.0)
    found = [(one.service, one.what, one.detail) for _, one in event_log.since(0)]
    assert found == [("a", "healthy", ""), ("a", "unhealthy", "refused")]
    assert event_log.recorded() == {"a", "off"}


def test_transactions_of_one_foreign_process_are_one_line_and_own_ones_none() -> None:
    inet, both = ("inet niso",), ("inet niso", "bridge niso")
    tables = [
        (inet, "niso", 1),
        (inet, "nft", 2),
        (both, "nft", 2),
        (inet, "niso-cni", 3),
    ]
    (line,) = events._foreign(tables, 5.0)
    assert (line.what, line.program, line.pid) == ("foreign", "nft", 2)
    words = "inet niso and bridge niso changed by nft (pid 2): niso net check"
    assert line.detail == words
    (lost,) = events._foreign(None, 5.0)
    assert lost.what == "lost" and lost.detail.endswith("niso net check")


def test_a_transaction_is_of_the_process_that_the_kernel_names() -> None:
    def message(kind: int, family: int, *attributes: bytes) -> tuple[int, bytes]:
        return 0x0A00 | kind, struct.pack("!BBH", family, 0, 1) + b"".join(attributes)

    def table(name: str) -> bytes:
        return netlink.text(1, name)

    end = netlink.attribute(2, struct.pack(">I", 7)) + netlink.text(3, "nft")
    messages = [
        message(12, 1, table("niso")),
        message(12, 7, table("niso")),
        message(15, 0, end),
        message(12, 1, table("docker")),
        message(12, 2, table("niso")),  # the table of family ip is another one
        message(15, 0, end),
        message(14, 7, table("niso")),
        message(15, 0, end),
    ]
    assert watches.table_changes(messages, []) == [
        (("inet niso", "bridge niso"), "nft", 7),
        (("bridge niso",), "nft", 7),
    ]


def test_transactions_that_the_kernel_had_to_skip_are_said(monkeypatch) -> None:
    answers = [OSError(errno.ENOBUFS, "no buffer"), BlockingIOError()]

    def receive(self):
        raise answers.pop(0)

    monkeypatch.setattr(netlink.Netlink, "receive", receive)
    with netlink.Netlink(netlink.NETFILTER) as source:
        assert watches.received(source) is None


def test_a_thread_has_nisos_name_only_inside_the_block() -> None:
    names = []

    def look() -> None:
        for name in ("app", "niso-cni"):
            own.write_text(name)
            with netlink.named():
                names.append(own.read_text().strip())
            names.append(own.read_text().strip())

    own = Path("/proc/thread-self/comm")
    main = own.read_text()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert names == ["niso", "app", "niso-cni", "niso-cni"]
    assert own.read_text() == main


def test_folders_that_are_made_and_lost_are_noticed(tmp_path) -> None:
    above, folder = tmp_path / "run", tmp_path / "run" / "niso"
    folders = watches.Folders()
    try:
        folders.watch([str(folder)])  # neither exists: the folder above is watched
        assert not folders.read()
        folder.mkdir(parents=True)
        assert folders.read()
        folders.watch([str(folder)])
        (folder / "state.db-shm").write_bytes(b"")
        assert not folders.read()
        (folder / "state.db-wal").write_bytes(b"")
        assert folders.read()
        os.unlink(folder / "state.db-shm")
        os.unlink(folder / "state.db-wal")
        folders.read()
        folder.rmdir()
        above.rmdir()
        assert folders.read()
    finally:
        folders.close()
