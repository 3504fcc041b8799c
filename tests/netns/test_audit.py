"""Test policies in audit. Random worlds with some are compared with the engine in test_policy_packets.py."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab, assert_whole
from policy_shop import CLIENT, EVERY, HOST, Shop
from services import elements_of, idle
from wire import Wire

from niso.kernel import policy_rules

AUDIT = {"mode": "audit"}
AUDIT_S = 12
"""How long an audit lasts that ends within a test: longer than an activation takes."""


@pytest.fixture
def shop(lab: Lab) -> Iterator[Shop]:
    with Wire(lab) as wire:
        yield Shop(lab, wire)


def left(lab: Lab) -> list[int]:
    """The seconds that each element of an audit has left, as nft lists them."""
    return [
        element["expires"] for name in policy_rules.PLACES for element in elements_of(lab, name)
    ]


def row(lab: Lab, name: str, *command: str) -> dict[str, Any]:
    rows = json.loads(lab.niso(*command, "--json").stdout)
    (found,) = [each for each in rows if each["service"] == name]
    return dict(found)


@pytest.mark.first
def test_audit_drops_nothing_says_so_and_ends_in_the_kernel(shop: Shop) -> None:
    lab = shop.lab
    shop.activate("db", "api", "web")
    shop.activate("shut")
    shop.policy("shut", {"deny_from": ["db"]})
    alive = shop.open(("web", "db"))
    rules = {"allow_from": ["api"], "egress": {"allow": ["api"]}, **AUDIT}
    done = lab.niso("activate", shop.write("db", rules))
    assert "audit: the policy of db denies nothing until" in done.stderr
    # bridged and routed, from a service and to it, by both families; open flows stay
    assert shop.reach("web", "db") == shop.reach("api", "db") == shop.reach("db", "web") == EVERY
    assert shop.flows.judge(alive, []) == []
    assert shop.reach("db", "shut") == set(), "the policy of another service is as it was"
    audited = {
        tuple(element["val"]["concat"][:2])
        for f in "46"
        for element in elements_of(lab, f"audited{f}")
    }
    ends = {(shop.address("web", f), shop.address("db", f)) for f in (4, 6)}
    assert ends | {end[::-1] for end in ends} <= audited
    assert not audited & {(shop.address("api", f), shop.address("db", f)) for f in (4, 6)}
    # what niso says
    stats = row(lab, "db", "net", "stats")
    assert (stats["in-drops"], stats["out-drops"]) == (0, 0)
    assert stats["in-audits"] > 0 and stats["out-audits"] > 0
    assert row(lab, "db", "ps")["audit_until"] and not row(lab, "web", "ps")["audit_until"]
    assert "POLICY" in lab.niso("ps").stdout
    explained = json.loads(lab.niso("net", "explain", "web", "db:80", "--json").stdout)
    assert (explained["verdict"], explained["ingress"]["verdict"]) == (
        "pass",
        "audit",
    )
    denied = json.loads(lab.niso("net", "flows", "--denied", "--json").stdout)
    verdicts = {(f["from"]["name"], f["to"]["name"], f["verdict"]) for f in denied}
    assert {("web", "db", "audit"), ("db", "web", "audit"), ("db", "shut", "drop")} == verdicts
    checked = lab.niso("net", "check")
    assert "audit: the policy of db" in checked.stderr and "OK" in checked.stdout
    assert "others would be denied" in lab.niso("net", "policy", "show", "db").stdout
    # nothing prolongs it: not a repair of the tables, nor an activation, nor another entry
    before = left(lab)
    assert len(before) == 4 and 0 < max(before) <= policy_rules.MOST_S
    lab.wait_for(lambda: max(left(lab)) < min(before), what="a second")
    before = left(lab)
    lab.run("nft", "delete", "table", "inet", "niso")
    lab.niso("net", "repair")
    assert len(left(lab)) == 4 and max(left(lab)) <= max(before)
    lab.niso("activate", shop.write("db", {**rules, "allow_from": ["api", "x"]}))
    lab.niso("restart", "db")
    assert len(left(lab)) == 4 and max(left(lab)) <= max(before)
    # a shorter one, which ends without any command, and not before its activation has ended
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + AUDIT_S))
    lab.niso("activate", shop.write("db", {**rules, "audit_until": soon}))
    assert max(left(lab)) <= AUDIT_S
    time.sleep(max(left(lab)))
    lab.wait_for(lambda: not left(lab), what="the end of the audit")
    assert (shop.reach("web", "db"), shop.reach("api", "db")) == (set(), EVERY)
    assert shop.reach("db", "web") == set()
    assert_whole(shop.lab)
    stats = row(lab, "db", "net", "stats")
    assert stats["in-drops"] > 0 and stats["out-drops"] > 0 and stats["in-audits"] is None
    assert "the audit of the policy of db has ended" in lab.niso("net", "check").stderr
    assert lab.niso("activate", "db").stdout.startswith("db: already active")
    assert left(lab) == []
    # what is open since then ends with the next repair
    assert shop.flows.judge(alive, []) == []
    lab.niso("net", "repair")
    assert shop.flows.judge([], alive) == []


def test_audited_service_widens_nothing_for_others(shop: Shop) -> None:
    lab = shop.lab
    lab.niso("net", "create", "inner", "--internal", "--subnet", "10.99.7.0/24")
    shop.activate("loud", "safe", "shy")
    cut = shop.open(("loud", "safe"), ("safe", "loud"))
    shop.policy("safe", {"deny_from": ["loud"], "egress": {"deny": ["loud"]}})
    shop.policy("shy", {"egress": {"allow": []}})
    everything = {"allow_from": [], "egress": {"allow": []}, **AUDIT}
    shop.policy("loud", everything)
    assert shop.flows.judge([], cut) == [], "what a policy has cut, an audit does not revive"
    assert shop.reach("loud", "safe") == shop.reach("safe", "loud") == set()
    assert shop.reach("shy", "loud") == set()
    # the ways: not published, and out of an internal network
    lab.niso(
        "activate", idle(lab, "in", network={"network": "inner"}, **{"network.policy": everything})
    )
    lab.run("ip", "route", "replace", "10.99.0.0/16", "via", HOST[4], netns="client")
    ways = [("client", shop.address("loud"), 4), ("niso-in", CLIENT[4], 4)]
    ways += [("niso-in", shop.address("loud"), 4), ("niso-loud", shop.address("in"), 4)]
    for place, to, _ in ways:
        done = lab.run("ping", "-c", "1", "-W", "1", to, netns=place, check=False)
        assert done.returncode, (place, to)
    # the defence is the policy of safe: in audit itself, it would let them in
    shop.policy("safe", {"deny_from": ["loud"], "egress": {"deny": ["loud"]}, **AUDIT})
    assert shop.reach("loud", "safe") == EVERY
    # and back: what came in is cut at once
    flows = shop.open(("loud", "safe"))
    shop.policy("safe", {"deny_from": ["loud"]})
    assert shop.flows.judge([], flows) == []
    assert shop.reach("loud", "safe") == set()


def test_element_without_its_end_is_a_difference(lab: Lab) -> None:
    lab.niso(
        "activate", idle(lab, "db", network={}, **{"network.policy": {"allow_from": [], **AUDIT}})
    )
    (element,) = elements_of(lab, "audit_in4")
    place = "inet", "niso", "audit_in4"
    for timeout in ("", " timeout 30d"):
        lab.run("nft", "delete", "element", *place, f"{{ {element['val']} }}")
        text = f'{{ {element["val"]}{timeout} comment "{element["comment"]}" }}'
        lab.run("nft", "add", "element", *place, text)
        assert "timeout" in lab.niso("net", "check", check=False).stdout
        lab.niso("net", "repair")
        assert max(left(lab)) <= policy_rules.MOST_S
        assert "OK" in lab.niso("net", "check").stdout
    lab.run("nft", "add", "element", *place, "{ 10.1.1.1 timeout 1d }")
    assert "10.1.1.1" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    assert [element["val"] for element in elements_of(lab, "audit_in4")] == [element["val"]]


def test_audit_without_an_end(shop: Shop) -> None:
    lab = shop.lab
    shop.activate("db", "web")
    rules = {"allow_from": [], **AUDIT}
    done = lab.niso("activate", shop.write("db", {**rules, "audit_until": "never"}))
    assert "audit: the policy of db denies nothing until the manifest ends it" in done.stderr

    def elements() -> list[dict[str, Any]]:
        return [element for name in policy_rules.PLACES for element in elements_of(lab, name)]

    def assert_endless() -> None:
        assert len(elements()) == 4
        assert not any("expires" in element or "timeout" in element for element in elements())
        assert shop.reach("web", "db") == EVERY
        assert_whole(lab)

    assert_endless()
    assert row(lab, "db", "ps")["audit_until"] == "never"
    assert row(lab, "db", "net", "stats")["in-audits"] > 0
    assert "until the manifest ends it" in lab.niso("net", "check").stderr
    assert "audit until the manifest ends it" in lab.niso("net", "policy", "show", "db").stdout
    explained = json.loads(lab.niso("net", "explain", "web", "db:80", "--json").stdout)
    assert (explained["verdict"], explained["ingress"]["verdict"]) == ("pass", "audit")
    assert 'niso_policy_audit{service="db"} 1' in lab.niso("metrics").stdout
    # an end that somebody gave it is a difference; the tables come back without one
    element = elements()[0]
    place = "inet", "niso", "audit_in4"
    lab.run("nft", "delete", "element", *place, f"{{ {element['val']} }}")
    text = f'{{ {element["val"]} timeout 30d comment "{element["comment"]}" }}'
    lab.run("nft", "add", "element", *place, text)
    assert "with a timeout" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    assert_endless()
    lab.run("nft", "delete", "table", "inet", "niso")
    lab.niso("net", "repair")
    lab.niso("restart", "db")
    assert_endless()
    # another end, and none
    lab.niso("activate", shop.write("db", rules))
    assert len(left(lab)) == 4 and 0 < max(left(lab)) <= policy_rules.MOST_S
    lab.niso("activate", shop.write("db", {**rules, "audit_until": "never"}))
    assert_endless()
    shop.policy("db", {"allow_from": []})
    assert elements() == [] and shop.reach("web", "db") == set()
    assert_whole(lab)
