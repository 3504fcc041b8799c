"""Test niso port-forward: publishing, taking over under load, and interruption at any moment."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator

import pytest
import snapshots
from conftest import Lab, assert_whole
from generations import Generations
from services import (
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    idle,
    listen,
    package,
    pid_of,
    process_below,
    refused,
)
from talkers import Conversation, Load, speaker, start
from wire import Wire


@pytest.fixture
def pair() -> Iterator[Lab]:
    """``a`` publishes 8080 and ``b`` publishes 8081; both speak on 80 and 81."""
    with Lab(240) as lab:
        start(
            lab,
            speaker(lab, "a", 80, 81, ports=["8080:80"]),
            speaker(lab, "b", 80, 81, ports=["8081:80"]),
        )
        yield lab


def elements(lab: Lab) -> dict[str, str]:
    """Host port: whose address and port it leads to, by the kernel."""
    found = {}
    for thing in lab.nft_json():
        if "map" in thing and thing["map"]["name"].startswith("publish_any4"):
            for key, value in thing["map"].get("elem", []):
                words = key["elem"]["val"]["concat"] if "elem" in key else key["concat"]
                found[f"{words[1]}/{words[0]}"] = ":".join(map(str, value["concat"]))
    return found


def rows(lab: Lab) -> list[tuple[str, int, int, str]]:
    """(service, host port, container port, protocol) as ``net ports`` has it."""
    found = json.loads(lab.niso("net", "ports", "--json").stdout)
    return [
        (each["service"], each["host_port"], each["container_port"], each["proto"])
        for each in found
    ]


def test_forwarded_port_works_at_once_and_restarts_nothing(pair: Lab) -> None:
    pid = pid_of(pair, "a")
    before = snapshots.take(pair)
    assert "published" in pair.niso("port-forward", "a", "9090:81").stdout
    assert ask(pair, HOST, 9090, "client") == f"a 81 {CLIENT}"
    assert ask(pair, HOST, 8080, "client") == f"a 80 {CLIENT}"
    assert pid_of(pair, "a") == pid
    assert ("a", 9090, 81, "tcp") in rows(pair)
    first = snapshots.take(pair)
    assert "already published, unchanged" in pair.niso("port-forward", "a", "9090:81/tcp").stdout
    assert (
        "already published, unchanged" in pair.niso("port-forward", "a", "8080:80").stdout
    )  # by its manifest
    assert snapshots.differences(first, snapshots.take(pair)) == []
    assert "no longer published" in pair.niso("port-forward", "a", "9090:81", "--remove").stdout
    assert ask(pair, HOST, 9090, "client") == ""
    assert snapshots.differences(before, snapshots.take(pair)) == []
    assert_whole(pair)


def test_first_port_of_a_service_without_any_reaches_it_by_every_way(lab: Lab) -> None:
    """A bridge tracks its frames, and its ports turn back, only from the first port on: not without it, and with it at once."""
    start(lab, speaker(lab, "a"), speaker(lab, "peer"))
    lab.niso("port-forward", "a", "9090:80")
    own, peer = address(lab, "a"), address(lab, "peer")
    assert ask(lab, HOST, 9090, "client") == f"a 80 {CLIENT}"
    assert ask(lab, "127.0.0.1", 9090).startswith("a 80 10.99.0.1")
    assert ask(lab, HOST, 9090, "niso-peer") == f"a 80 {peer}"
    assert ask(lab, HOST, 9090, "niso-a").startswith("a 80 10.99.0.1"), own
    assert_whole(lab)
    lab.niso("port-forward", "a", "9090:80", "--remove")
    assert elements(lab) == {}
    assert_whole(lab)
    # what open connections by it need stays until the service is deactivated
    lab.niso("deactivate", "a")
    lab.niso("activate", "a")
    bridge = lab.ip_json("-d", "link", "show", "niso-default")[0]["linkinfo"]["info_data"]
    assert (bridge["nf_call_iptables"], bridge["nf_call_ip6tables"]) == (0, 0)


@pytest.mark.parametrize("form", ["127.0.0.1:9090:81", "9090-9095:9090-9095/udp"])
def test_forwarded_port_lives_as_long_as_the_service_is_active(pair: Lab, form: str) -> None:
    """Crash, restart, unchanged activate, a lost ruleset and a reboot leave it; deactivate ends it."""
    pair.niso("port-forward", "a", form)
    wanted = rows(pair)
    before = elements(pair)

    def still() -> None:
        assert rows(pair) == wanted
        assert_whole(pair)
        assert elements(pair) == before
        if form.endswith(":81"):
            assert answer(pair, "127.0.0.1", 9090).startswith("a 81 ")

    pid = pid_of(pair, "a")
    pair.run("kill", "-KILL", str(process_below(pair, pid)))
    pair.wait_for(lambda: pid_or_none(pair, "a") not in (pid, None), 10, "started again")
    still()
    pair.niso("restart", "a")
    still()
    pair.niso("activate", "/tmp/packages/a")
    pair.niso("activate", "a")
    still()
    pair.run("nft", "flush", "ruleset")
    pair.niso("net", "repair")
    still()
    pair.niso("deactivate", "a")
    assert not any(row[0] == "a" for row in rows(pair))
    pair.niso("activate", "a")
    assert [row[1:] for row in rows(pair) if row[0] == "a"] == [(8080, 80, "tcp")]
    assert_whole(pair)


def test_forwarded_port_survives_a_manifest_change(pair: Lab) -> None:
    pair.niso("port-forward", "a", "9090:81")
    pair.niso("activate", speaker(pair, "a", 80, 81, ports=["8085:80"]))
    assert ask(pair, HOST, 9090, "client") == f"a 81 {CLIENT}"
    assert ask(pair, HOST, 8085, "client") == f"a 80 {CLIENT}"
    assert ask(pair, HOST, 8080, "client") == ""
    # what the manifest now has too is the manifest's: it goes when that changes again
    pair.niso("activate", speaker(pair, "a", 80, 81, ports=["9090:81"]))
    assert json.loads(pair.niso("inspect", "a").stdout)["forwards"] == []
    assert [row for row in rows(pair) if row[0] == "a"] == [("a", 9090, 81, "tcp")]
    said = refused(pair, "activate", speaker(pair, "b", 80, 81, ports=["9090:80"]))
    assert "'a'" in said
    assert_whole(pair)


@pytest.mark.parametrize("mode", ["none", "host"])
def test_forward_ends_with_the_network_of_its_service(pair: Lab, mode: str) -> None:
    pair.niso("port-forward", "a", "9090:81")
    pair.niso("activate", package(pair, "a", "/usr/bin/sleep", "1000", network={"mode": mode}))
    assert json.loads(pair.niso("inspect", "a").stdout)["forwards"] == []
    pair.niso("activate", speaker(pair, "a", 80, 81))
    assert not [row for row in rows(pair) if row[0] == "a"]
    assert_whole(pair)


def test_reboot_leaves_a_forwarded_port(pair: Lab) -> None:
    """All that the kernel had is gone, and the store says that the services are active: what a reboot finds."""
    pair.niso("port-forward", "a", "9090:81")
    for name in ("a", "b"):
        pair.run("kill", "-KILL", str(pid_of(pair, name)))
        pair.wait_for(lambda name=name: pid_or_none(pair, name) is None, 10, f"{name} is down")
    for name in ("a", "b"):
        pair.run("ip", "netns", "delete", f"niso-{name}")
    pair.run("ip", "link", "delete", "niso-default")
    pair.run("nft", "flush", "ruleset")
    pair.niso("net", "repair")
    pair.niso("activate", "a", "b")
    assert answer(pair, HOST, 9090, "client") == f"a 81 {CLIENT}"
    assert ("a", 9090, 81, "tcp") in rows(pair)
    assert_whole(pair)


def pid_or_none(lab: Lab, name: str) -> int | None:
    found = json.loads(lab.niso("inspect", name).stdout)["pid"]
    return None if found is None else int(found)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_taken_host_port_names_its_holder_and_the_way_to_take_it(pair: Lab) -> None:
    pair.niso("port-forward", "a", "9000-9010:9000-9010")
    listener = listen(pair, "tcp", "0.0.0.0", 7000)
    before = snapshots.take(pair)
    whole, part = "--take-over takes 8080:80 from a", "it is part of a range: move the whole range"
    for form, shown, hint in (
        ("8080:81", "host port 8080/tcp is published by 'a'", whole),
        (
            "127.0.0.1:8080:81",
            "host port 127.0.0.1:8080/tcp is published by 'a' as 8080/tcp",
            whole,
        ),
        ("8070-8090:8070-8090", "host port 8070-8090/tcp is published by 'a' as 8080/tcp", whole),
        ("9005:81", "host port 9005/tcp is published by 'a' as 9000-9010/tcp", part),
    ):
        said = refused(pair, "port-forward", "b", form)
        assert shown in said and hint in said, said
    # not even by --take-over: half a range stays behind, and a process of the host is not niso's to end
    said = refused(pair, "port-forward", "b", "9005:81", "--take-over")
    assert "host port 9005/tcp is part of 9000-9010/tcp of 'a'" in said
    for more in ([], ["--take-over"]):
        said = refused(pair, "port-forward", "b", "7000:81", *more)
        assert f"python3 (pid {listener.pid})" in said and "0.0.0.0:7000" in said
    listener.kill()
    listener.wait(10)
    gone = snapshots.take(pair)
    before["processes"] = gone["processes"]
    assert snapshots.differences(before, gone) == []


# --- moving -----------------------------------------------------------------------------------------------------------


def test_replace_is_one_transaction_of_the_kernel(pair: Lab) -> None:
    """``nft monitor`` shows what each generation of the ruleset changed."""
    generations = Generations(pair)
    pair.niso("port-forward", "b", "8080:80", "--take-over")
    found = [lines for lines in generations.since() if any("tcp . 8080" in line for line in lines)]
    assert len(found) == 1, found
    lines = [line for line in found[0] if "publish_any4 { tcp . 8080" in line]
    moved = {line.split()[0]: line.split(" : ")[1].split()[0] for line in lines}
    assert moved == {"add": address(pair, "b"), "delete": address(pair, "a")}, lines


def test_replaced_port_is_the_new_services_in_every_table(pair: Lab) -> None:
    pair.niso("port-forward", "b", "8080:81", "--take-over")
    assert ask(pair, HOST, 8080, "client") == f"b 81 {CLIENT}"
    assert ask(pair, "127.0.0.1", 8080).startswith("b 81")
    assert elements(pair) == {
        "8080/tcp": f"{address(pair, 'b')}:81",
        "8081/tcp": f"{address(pair, 'b')}:80",
    }
    assert rows(pair) == [("b", 8081, 80, "tcp"), ("b", 8080, 81, "tcp")]
    assert_whole(pair)
    # a has none left; what its manifest says comes back once b no longer has it
    changed = pair.niso(
        "activate", speaker(pair, "a", 80, 81, ports=["8080:80"], aliases=["other"])
    )
    assert "a: host port 8080/tcp is not published: it is forwarded to 'b'" in changed.stderr
    assert ask(pair, HOST, 8080, "client") == f"b 81 {CLIENT}"
    assert_whole(pair)
    # a port that it never had is refused
    assert "published by 'b'" in refused(
        pair, "activate", speaker(pair, "a", 80, 81, ports=["8080:80", "8081:80"])
    )
    assert ask(pair, HOST, 8080, "client") == f"b 81 {CLIENT}"
    assert_whole(pair)
    ended = pair.niso("port-forward", "b", "8080:81", "--remove")
    assert ended.stdout.replace("->", "→").splitlines() == [
        "b: 8080→81 no longer published",
        "a: 8080→80 published again",
    ]
    assert ask(pair, HOST, 8080, "client") == f"a 80 {CLIENT}"
    assert_whole(pair)
    pair.niso("port-forward", "b", "8080:81", "--take-over")
    pair.niso("deactivate", "b")
    assert ask(pair, HOST, 8080, "client") == ""
    warning = pair.niso("net", "check").stderr
    assert "a: 8080:80 of its manifest is not published" in warning and "niso activate a" in warning
    pair.niso("activate", "a")
    assert ask(pair, HOST, 8080, "client") == f"a 80 {CLIENT}"
    assert_whole(pair)


def test_replace_within_one_service_changes_the_inner_port(pair: Lab) -> None:
    pair.niso("port-forward", "a", "9090:80")
    assert "host port 9090/tcp is published by 'a'" in refused(pair, "port-forward", "a", "9090:81")
    pair.niso("port-forward", "a", "9090:81", "--take-over")
    assert ask(pair, HOST, 9090, "client") == f"a 81 {CLIENT}"
    assert [row for row in rows(pair) if row[1] == 9090] == [("a", 9090, 81, "tcp")]
    assert_whole(pair)


def test_replace_within_one_service_of_a_port_of_its_manifest_lasts(lab: Lab) -> None:
    path = speaker(lab, "a", 80, 81, ports=["8080:80", "8090:80"])
    start(lab, path)
    lab.niso("port-forward", "a", "8080:81", "--take-over")

    def is_kept() -> None:
        assert ask(lab, HOST, 8080, "client") == f"a 81 {CLIENT}"
        assert sorted(rows(lab)) == [("a", 8080, 81, "tcp"), ("a", 8090, 80, "tcp")]

    is_kept()
    again = lab.niso("activate", "a")
    assert "host port 8080/tcp is not published: it is forwarded to its port 81" in again.stderr
    assert "published again once the forward 8080:81 of a is withdrawn" in again.stderr
    is_kept()
    lab.write(f"{path}/more", "a change of the package\n")
    start(lab, path)  # it restarts
    is_kept()
    ended = lab.niso("port-forward", "a", "8080:81", "--remove").stdout
    assert ended.splitlines()[1].replace("->", "→") == "a: 8080→80 published again"
    assert ask(lab, HOST, 8080, "client") == f"a 80 {CLIENT}"
    assert "unchanged" in lab.niso("activate", "a").stdout
    lab.niso("port-forward", "a", "9090:81")
    speaker(lab, "a", 80, 81, ports=["8080:80", "9090:80"])
    assert "9090/tcp is forwarded to another port of 'a'" in refused(lab, "activate", path)


def test_replace_by_a_wildcard_takes_every_specific_address(lab: Lab) -> None:
    start(
        lab,
        speaker(lab, "a", ports=["127.0.0.1:8080:80", "192.0.2.1:8080:80", "8090:80"]),
        speaker(lab, "c", ports=["127.0.0.2:8080:80"]),
        speaker(lab, "b"),
    )
    lab.niso("port-forward", "b", "8080:80", "--take-over")
    for at in (HOST, "127.0.0.1", "127.0.0.2"):
        assert ask(lab, at, 8080).startswith("b ")
    assert rows(lab) == [("a", 8090, 80, "tcp"), ("b", 8080, 80, "tcp")]
    assert_whole(lab)
    lab.niso("port-forward", "c", "127.0.0.2:8080:80", "--take-over", check=False)
    assert_whole(lab)


def test_moving_a_port_under_load_loses_no_connection(pair: Lab) -> None:
    """About 1,000 new connections a second meet six moves; what was open before goes on with the one it had."""
    with Wire(pair) as wire:
        old = [
            Conversation(wire, netns, HOST, 8080)
            for netns in ("client", "neighbour", None, "niso-b")
        ]
        assert all(each.service == "a" for each in old)
        load = Load(pair, "client", HOST, 8080, 1000)
        ends: list[tuple[float, float, str]] = []
        between: list[Conversation] = []
        for name in ("b", "a") * 3:
            time.sleep(0.25)  # connections for the one who has it now
            began = time.monotonic()
            pair.niso("port-forward", name, f"8080:{81 if name == 'b' else 80}", "--take-over")
            ends.append((began, time.monotonic(), name))
            between.append(Conversation(wire, "neighbour", HOST, 8080))
            assert all(each.goes_on(f"word {len(ends)}") for each in (*old, *between))
        time.sleep(0.25)
        done = load.end()
    assert [each.service for each in between] == [name for _, _, name in ends]
    wrong = [each for each in done if each[2] not in ("a", "b")]
    assert not wrong, f"{len(wrong)} of {len(done)}: {wrong[:10]}"
    spans = [(0.0, ends[0][0], "a")]
    spans += [
        (one[1], other[0], one[2])
        for one, other in zip(ends, [*ends[1:], (1e12, 1e12, "")], strict=True)
    ]
    for began, end, name in spans:
        strays = [
            each
            for each in done
            if began <= each[0] and each[0] + each[1] < end and each[2] != name
        ]
        assert not strays, f"{name} had it: {strays[:10]}"
        assert any(began <= each[0] < end for each in done)
    assert len(done) > 500, "that was no load"
    assert_whole(pair)


# --- niso dies --------------------------------------------------------------------------------------------------------

NEXT = (
    ("activate", "/tmp/packages/c"),
    ("net", "repair"),
    ("port-forward", "c", "9999:80"),
    ("restart", "c"),
    ("deactivate", "c"),
    ("net", "remove", "other"),
)
"""Commands of other kinds, of a service that has no part in it: in this order each can be done."""


@pytest.mark.parametrize(
    ("command", "back", "before", "after"),
    [
        ("a 9090:81", "a 9090:81 --remove", "", "a"),
        ("a 9090:81 --remove", "a 9090:81", "a", ""),
        # the only one of a: its bridge port changes with it
        ("b 8080:81 --take-over", "a 8080:81 --take-over", "a", "b"),
    ],
)
def test_port_is_whole_wherever_niso_was_killed(
    pair: Lab, command: str, back: str, before: str, after: str
) -> None:
    """After each death the kernel has the one or the other, and so has everything when the next command is done."""
    leads_to = {"": "", "a": f"{address(pair, 'a')}:81", "b": f"{address(pair, 'b')}:81"}
    idle(pair, "c")
    words, number = ("port-forward", *command.split()), int(command.split()[1].partition(":")[0])
    if before:
        pair.niso("port-forward", *(back if before == "a" else command).split())
    for point, another in zip(range(1, 30), itertools.cycle(NEXT)):
        if another[0] == "net":
            pair.niso("net", "create", "other")
        died = pair.niso(*words, check=False, env={"NISO_FAILPOINT": f"{point}:kill"})
        now = elements(pair).get(f"{number}/tcp", "")
        assert now in (leads_to[before], leads_to[after]), f"killed at step {point}"
        if died.returncode == 0:
            break
        assert died.returncode == -9, died.stderr
        pair.niso(*another)
        assert_whole(pair)
        now = elements(pair).get(f"{number}/tcp", "")
        owner = next(((row[0], row[2]) for row in rows(pair) if row[1] == number), None)
        assert now == (f"{address(pair, owner[0])}:{owner[1]}" if owner else ""), (
            f"killed at step {point}"
        )
        assert now in (leads_to[before], leads_to[after])
        said = ask(pair, HOST, number, "client").split()
        assert said[:2] == ([owner[0], str(owner[1])] if owner else [])
        if now != leads_to[after]:
            pair.niso(*words)
        pair.niso("port-forward", *back.split())
    assert point > 5
    assert_whole(pair)
