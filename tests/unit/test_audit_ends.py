"""Test when audits of policies begin and end, without a kernel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Error, InvalidInput
from niso.kernel import policy_rules
from niso.kernel.nft_elements import Element
from niso.look.check import check
from niso.manifest import load
from niso.plan.records import Audit, Policy
from niso.reconcile import live_world

DAY = 86_400
NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("since", "until", "now", "left"),
    [
        (NOW, NOW + DAY, NOW, DAY),
        (NOW, NOW + DAY, NOW + DAY, 0),
        (NOW, NOW + DAY, NOW + 2 * DAY, 0),
        (NOW, NOW + 90 * DAY, NOW, policy_rules.MOST_S),  # whatever the store says
        (NOW, NOW + DAY, 3600, 0),  # a clock that starts at 1970 does not prolong it
        (NOW, NOW + DAY, NOW - 5, DAY + 5),
        (0, 0, NOW, 0),
        (NOW, policy_rules.NEVER, NOW + 900 * DAY, policy_rules.ENDLESS),
        (NOW, policy_rules.NEVER, 3600, policy_rules.ENDLESS),  # no clock matters to it
        (0, policy_rules.NEVER, NOW, 0),  # it has not begun
    ],
)
def test_time_that_is_left(since: int, until: int, now: int, left: int) -> None:
    assert policy_rules.left_s(since, until, now) == left
    assert policy_rules.timeout_s((since, until), now) == left


@pytest.mark.parametrize("entry", ["", "1", "x y", "1 2 3"])
def test_comment_of_others_is_no_audit(entry: str) -> None:
    assert policy_rules.parse_period(entry) == ()
    assert policy_rules.parse_period("1 2") == (1, 2)
    assert not policy_rules.is_wanted((), 1)


def test_element_is_as_it_should_be_if_it_does_not_end_later() -> None:
    term = (NOW, NOW + DAY)

    def seen(left_s: float | None, now: float = NOW) -> str | None:
        return policy_rules.timeout_difference(left_s, term, now)

    assert seen(DAY) == seen(DAY - 500) == ""
    assert seen(None) and seen(DAY + 60)
    assert seen(1, NOW + DAY - 1) is None
    assert seen(3, NOW + DAY + 1) is None
    assert seen(DAY, NOW + 2 * DAY), "the clock was set, or the machine slept"
    term = (NOW, policy_rules.NEVER)
    assert seen(None) == "" and seen(DAY) and seen(None, NOW + 900 * DAY) == ""


def test_end_is_fixed_when_the_audit_begins() -> None:
    written = Policy(allow_from=(), audit=Audit(""))
    first = live_world.begun(written, None, NOW)
    assert first.audit == Audit("", NOW, NOW + policy_rules.MOST_S)
    # an activation later, also after its end, and with other entries
    assert live_world.begun(written, first, NOW + DAY).audit == first.audit
    assert live_world.begun(written, first, NOW + 90 * DAY).audit == first.audit
    assert (
        live_world.begun(written._replace(allow_from=None), first, NOW + DAY).audit == first.audit
    )
    # after it was enforced in between
    again = live_world.begun(written, first._replace(audit=None), NOW + DAY)
    assert again.audit == Audit("", NOW + DAY, NOW + DAY + policy_rules.MOST_S)
    dated = Policy(allow_from=(), audit=Audit("2027-01-20T00:00:00Z", 0, 1_800_403_200))
    assert live_world.begun(dated, first, NOW).audit == Audit(
        "2027-01-20T00:00:00Z", NOW, 1_800_403_200
    )
    with refuses(InvalidInput, key="network.policy.audit_until"):
        live_world.begun(dated, None, NOW - 30 * DAY)
    with refuses(
        InvalidInput,
        key="network.policy.audit_until",
        hint='a later date; mode = "enforce" is the policy without an audit',
    ):
        live_world.begun(dated, first, NOW + 30 * DAY)


def audits(world: World) -> set[tuple[str, str]]:
    return {(e.container, e.comment) for e in world.kernel.present_elements() if e.ends}


def test_commands_do_not_prolong_an_audit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"network.policy": {"allow_from": [], "mode": "audit"}}
    manifest = world.package("db", network={}, **rules)
    world.activate(manifest)
    first = audits(world)
    assert {name for name, _ in first} == {"audit_in4", "audit_out4"}
    assert {e.value for e in world.kernel.elements.values() if e.container == "in4_rest"} == {
        ("goto", "audit_in")
    }
    done = len(world.kernel.done)
    real = time.time

    def later(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    later(DAY)
    world.activate(manifest)
    assert (audits(world), len(world.kernel.done)) == (first, done)
    assert check(world.machine) == []
    # the kernel ends it, which is no difference; an activation does not begin it again
    later(15 * DAY)
    assert audits(world) == set()
    assert check(world.machine) == []
    world.activate(manifest)
    assert (audits(world), len(world.kernel.done)) == (set(), done)
    assert live_world.ended(world.store) == ["db"]
    # an end that the store has lost is no audit
    later(0)
    world.store._db.execute("DELETE FROM policy")
    from niso.change import repair

    repair.repair_all(world.machine)
    assert audits(world) == set() and check(world.machine) == []
    # enforced in between, it begins again; and an activation ends it
    world.activate(world.package("db", network={}, **{"network.policy": {"allow_from": []}}))
    world.activate(world.package("db", network={}, **rules))
    second = audits(world)
    assert second and check(world.machine) == []
    world.activate(world.package("db", network={}, **{"network.policy": {"allow_from": []}}))
    assert audits(world) == set()
    assert not [e for e in world.kernel.elements.values() if e.value in policy_rules.VERDICTS]


def test_dates_of_a_manifest(world: World, tmp_path: Path) -> None:
    path = Path(world.package("db", network={}, **{"network.policy": {"allow_from": []}}))
    text = path.read_text()

    def policy(lines: str) -> Policy:
        path.write_text(f"{text}{lines}\n")
        return load.load(str(path)).spec.network.policy

    assert policy('mode = "enforce"').audit is None
    assert policy('mode = "audit"').audit == Audit("")
    endless = policy('mode = "audit"\naudit_until = "never"')
    assert endless.audit == Audit("never", 0, policy_rules.NEVER)
    first = live_world.begun(endless, None, NOW)
    assert first.audit == Audit("never", NOW, policy_rules.NEVER)
    assert live_world.begun(endless, first, NOW + DAY).audit == first.audit
    for written in ("2026-12-10", "2026-12-10T08:00:00", "2026-12-10T08:00:00+01:00"):
        for quoted in (written, f'"{written}"'):
            audit = policy(f'mode = "audit"\naudit_until = {quoted}').audit
            assert audit is not None and (audit.text, audit.since) == (written, 0)
            assert abs(audit.until - 1_796_860_800) <= DAY
    for lines, words in (
        ('mode = "watch"', "audit"),
        ('mode = "Audit"', "audit"),
        ("mode = true", "audit"),
        ("audit_until = 2026-12-10", "the policy is enforced"),
        ('mode = "enforce"\naudit_until = 2026-12-10', "the policy is enforced"),
        ('mode = "audit"\naudit_until = 08:00:00', "must be a date, a date and time, or"),
        ('mode = "audit"\naudit_until = "Never"', 'a date, a date and time, or "never"'),
        ('mode = "audit"\naudit_until = "forever"', 'a date, a date and time, or "never"'),
        ('audit_until = "never"', "the policy is enforced"),
        ('mode = "audit"\naudit_until = -1', 'a date, a date and time, or "never"'),
        ('mode = "audit"\naudit_until = "2026-12-32"', "not a valid date"),
        ('mode = "audit"\naudit_until = "20261210"', "not a valid date"),
        ('mode = "audit"\naudit_until = 14', "must be a date, a date and time, or"),
    ):
        with pytest.raises(Error) as caught:
            policy(lines)
        errors = getattr(caught.value, "errors", [caught.value])
        assert any(words in f"{error} {error.right}" for error in errors), (lines, errors)


def test_element_in_words() -> None:
    now = int(time.time())
    element = Element("inet niso", "audit_in4", ("10.0.0.2",), (now, now + 100), "db")
    assert "10.0.0.2 timeout" in element.statement("add")
    endless = element._replace(value=(now, policy_rules.NEVER))
    assert endless.statement("add").endswith('{ 10.0.0.2 comment "' + f'db {now} -1" }}')
    assert element.statement("delete") == "destroy element inet niso audit_in4 { 10.0.0.2 }"


def test_warnings_before_harm(world: World) -> None:
    world.niso("activate", world.package("frontend"))
    rules: dict[str, dict[str, Any]] = {
        "network": {"dns": ["192.0.2.53", "2001:db8::53"]},
        "network.policy": {"allow_from": ["fronted:80", "network:nowhere"]},
        "network.policy.egress": {"allow": ["frontend", "0.0.0.0/0:443"]},
    }
    done = world.niso("activate", world.package("db", **rules))
    for said in (
        done.stderr,
        world.niso("net", "check").stderr,
        world.niso("net", "check", "db").stderr,
    ):
        assert "allow_from[0] ('fronted:80') matches nobody: no service is called 'fronted'" in said
        assert "did you mean 'frontend'?" in said
        assert "there is no network 'nowhere'" in said
        (denied,) = (line for line in said.splitlines() if "denies its name server" in line)
        assert "denies its name server 192.0.2.53" in denied and "2001:db8::53" not in denied
        assert 'add "192.0.2.53:53" to network.policy.egress.allow' in said
    rules["network.policy"]["allow_from"] = ["frontend:80"]
    rules["network.policy.egress"]["allow"] = ["frontend", "192.0.2.53:53/udp", "0.0.0.0/0:443"]
    assert world.niso("activate", world.package("db", **rules)).stderr == ""
    # who may connect to services alone needs no name server, nor does who has the names of others
    for allowed in (["frontend"], ["frontend", "api.example.com:443"]):
        rules["network.policy.egress"]["allow"] = allowed
        done = world.niso("activate", world.package("db", **rules))
        assert "its name server" not in done.stderr
    rules["network.policy.egress"]["allow"] = ["0.0.0.0/0:443", "api.example.com:443"]
    done = world.niso("activate", world.package("db", **rules))
    assert "denies its name server 192.0.2.53" in done.stderr
