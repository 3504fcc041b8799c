"""Test niso port-forward: publishing, and taking over under load."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import snapshots
from conftest import Lab, assert_whole
from generations import Generations
from services import CLIENT, HOST, address, ask, pid_of
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
