"""Test policies that are learned from flows, and their way into manifests."""

from __future__ import annotations

import os
import tomllib
from functools import partial
from pathlib import Path

import pytest
from fake_world import World as Fakes
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import (
    HOST,
    NOTHING,
    OUTSIDE,
    image,
    known,
    network,
    policy,
    with_policy,
    world,
    worlds,
)
from refusals import refuses
from samples import samples

from niso.base.errors import Conflict, Error, InvalidInput
from niso.cli import traffic_commands
from niso.kernel.flow_memory import Recorded
from niso.look import flows
from niso.look import learn as look_learn
from niso.look.learn import (
    NOT_ALL,
    LearnedEntry,
    LearnedPolicy,
    PolicyChange,
    WrittenNames,
)
from niso.manifest.toml import with_list
from niso.plan import verdict
from niso.plan.records import Policy, PortMapping
from niso.plan.verdict import PolicyContext

BACK = network("back", "10.99.1.0/24", "fd00:99:1::/64")
DB, API, WEB, GATEWAY = "10.99.1.2", "10.99.1.3", "10.99.1.4", "10.99.1.1"
PUBLISHED = PortMapping("", 8080, 80, "tcp")

learn_flows = partial(look_learn.learn_flows, network=str, gap="", hidden=())


def there(rules: Policy = NOTHING, *ports: PortMapping) -> PolicyContext:
    db = known("db", {"back": [DB, "fd00:99:1::2"]}, rules, *ports)
    return world(
        [db, *(known(n, {"back": [a]}) for n, a in (("api", API), ("web", WEB)))], [BACK], [HOST]
    )


def row(
    source: str, to: str = DB, port: int = 80, packets: int = 1, proto: str = "tcp"
) -> Recorded:
    return Recorded(source, to, proto, port, packets, 60, 5.0)


def learned(
    on: PolicyContext,
    *passed: Recorded,
    refused: tuple[Recorded, ...] = (),
    opened: dict[tuple[str, str, str, int], int] | None = None,
) -> LearnedPolicy:
    joined = flows.joined(on, flows.Memory(passed, refused, opened or {}))
    return learn_flows(on, joined, "db", lambda other: other, True)


def shown(lines: tuple[LearnedEntry, ...] | None) -> list[str]:
    return [("" if line.allowed else "# ") + line.text for line in lines or ()]


def test_names_before_addresses_and_open_connections() -> None:
    opened = {(WEB, DB, "tcp", 5432): 1, (DB, API, "udp", 53): 1}
    rows = (
        row(API),
        row(API, port=53, proto="udp"),
        row(DB, DB),
        row(HOST),
        row(GATEWAY),
        row("127.0.0.1"),
    )
    found = learned(
        there(), *rows, row(DB, OUTSIDE, 443), row(DB, GATEWAY, 53, 1, "udp"), opened=opened
    )
    assert shown(found.allow_from) == ["api:80/tcp", "api:53/udp", "web:5432/tcp"]
    assert shown(found.egress) == ["10.99.1.1:53/udp", f"{OUTSIDE}:443/tcp", "api:53/udp"]
    notes = {
        line.text: (line.note, line.new, line.open)
        for line in (*found.allow_from, *(found.egress or ()))
    }
    assert notes["web:5432/tcp"] == ("", 0, 1)
    assert notes["10.99.1.1:53/udp"] == ("the host, DNS", 1, 0)


def test_published_ports_are_for_everybody_and_unused_ones_a_comment() -> None:
    ports = (
        PUBLISHED,
        PortMapping("", 7000, 7000, "tcp", 10),
        PortMapping("0.0.0.0", 53, 53, "udp"),
        PortMapping("127.0.0.1", 9, 9, "tcp"),
    )
    rows = (row(OUTSIDE), row("192.0.2.9"), row(OUTSIDE, port=7003), row(WEB, port=53, proto="udp"))
    found = learned(there(NOTHING, *ports), *rows)
    assert shown(found.allow_from) == [
        "outside:80/tcp",
        "outside:7003/tcp",
        "web:53/udp",
        "# outside:7000-7009/tcp",
        "# outside:53/udp",
    ]


def test_comments_are_true_of_ports_that_are_published_twice_or_no_longer() -> None:
    ports = (PUBLISHED, PUBLISHED._replace(host_port=8081), PortMapping("", 8082, 81, "tcp"))
    found = learned(there(NOTHING, *ports))
    assert shown(found.allow_from) == ["# outside:80/tcp", "# outside:81/tcp"]
    found = learned(
        there(NOTHING, *ports), row(OUTSIDE), row(OUTSIDE, port=9), row("192.0.2.9", port=9)
    )
    notes = {("" if e.allowed else "# ") + e.text: e.note for e in found.allow_from}
    assert notes == {
        "outside:80/tcp": "other machines: published as 8080, 8081",
        "# outside:9/tcp": "other machines; no longer published",
        "# outside:81/tcp": "published; no other machine used it",
    }


def test_what_other_machines_used_is_closed_to_services() -> None:
    on = there(NOTHING, PUBLISHED)
    rules = shown(learned(on, row(OUTSIDE), row(API)).allow_from)
    after = with_policy(on, "db", policy(rules))
    for address, passes in ((OUTSIDE, True), ("198.51.100.7", True), (API, True), (WEB, False)):
        assert verdict.evaluate(after, address, DB, 80, "tcp")[1].passes is passes


def test_address_of_a_former_network_is_never_allowed() -> None:
    on = there()._replace(pools=("10.99.0.0/16",))
    found = learned(on, row("10.99.7.2"), row(DB, "10.99.7.2", 443), row(DB, OUTSIDE, 443))
    assert shown(found.allow_from) == ["# 10.99.7.2:80/tcp"]
    assert shown(found.egress) == [f"{OUTSIDE}:443/tcp", "# 10.99.7.2:443/tcp"]


def test_what_was_denied_or_has_no_holder_is_a_comment() -> None:
    scan = tuple(row(f"198.51.100.{i}", port=22) for i in range(1, 200))
    rules = policy(["api"])
    passed = (row(API), row(WEB), row("10.99.1.77"))
    ssh = PortMapping("", 2222, 22, "tcp")
    found = learned(there(rules, ssh), *passed, refused=(row(WEB, port=81), *scan))
    assert shown(found.allow_from) == [
        "api:80/tcp",
        "# outside:22/tcp",
        "# web:80/tcp",
        "# web:81/tcp",
    ]
    # a line that would change nothing: the port is not published, or a deny entry decides
    found = learned(there(rules), row(API), refused=scan)
    assert shown(found.allow_from) == ["api:80/tcp"]
    denied = policy(["api"], ["web"])
    found = learned(there(denied), row(API), refused=(row(WEB), row(WEB, port=81)))
    assert shown(found.allow_from) == ["api:80/tcp"]
    assert shown(learned(there(), row("10.99.1.77")).allow_from) == ["# 10.99.1.77:80/tcp"]
    # denied at first, allowed now, and used since
    assert shown(learned(there(rules), row(API), refused=(row(API),)).allow_from) == ["api:80/tcp"]


def test_a_list_that_exists_becomes_narrower_and_never_wider() -> None:
    rules = policy(["api", "192.0.2.0/24", "network:back:81", "web:99"])
    rows = (row(API), row(OUTSIDE), row(WEB, port=81), row("203.0.113.1"))
    assert shown(learned(there(rules, PUBLISHED), *rows).allow_from) == [
        "192.0.2.0/24",
        "network:back:81",
        "api:80/tcp",
        "# outside:80/tcp",
        "# web:99",
    ]


def test_many_addresses_and_ports_are_joined() -> None:
    rows = [row(DB, f"198.51.100.{i}", 443) for i in range(1, 100)] + [row(DB, "203.0.113.9", 443)]
    rows += [row(DB, API, port) for port in (80, 81, 82, 90)]
    found = shown(learned(there(), *rows).egress)
    assert found[-2:] == ["api:80-82/tcp", "api:90/tcp"]
    assert "203.0.113.9:443/tcp" in found and len(found) == 10


def test_prefix_of_addresses_outside_holds_no_service_and_not_the_host() -> None:
    """Else what nobody has used between services would be allowed."""
    on = there()._replace(pools=("10.99.0.0/16",))
    near = [f"192.0.2.{number}" for number in range(2, 40) if number != 30]
    far = [f"10.{number}.7.7" for number in range(0, 250, 10)]
    for some in (near, far):
        rows = [row(DB, address, 443) for address in some]
        texts = shown(learned(on, *rows).egress)
        assert any("/" in text.removesuffix("/tcp") for text in texts) and len(texts) < len(some)
        after = with_policy(on, "db", policy(allow=texts))
        for address in some:
            assert verdict.evaluate(after, DB, address, 443, "tcp")[0].passes
        for address in (API, "10.99.77.7", HOST, GATEWAY):
            assert not verdict.evaluate(after, DB, address, 443, "tcp")[0].passes, (address, texts)


def test_entries_that_no_recorded_flow_used_stay_if_flows_may_be_missing() -> None:
    on = there(policy(["api", "web"]))
    joined = flows.joined(on, flows.Memory((row(API),), (), {}))
    for gap, kept in (
        ("", ["api:80/tcp", "# web"]),
        ("multicasts are missing", ["api:80/tcp", "web"]),
        (NOT_ALL, ["api", "web"]),
    ):
        found = learn_flows(on, joined, "db", lambda other: other, False, gap=gap)
        assert shown(found.allow_from) == kept, gap
    # if flows of one source are missing, only the entries that allow its flows stay as they are
    on = there(policy(["api", "web", "0.0.0.0/0:9", "outside:8"], allow=["web"]))
    for hidden, kept in (
        (API, {"api", "0.0.0.0/0:9"}),
        (WEB, {"web", "0.0.0.0/0:9"}),
        (DB, {"0.0.0.0/0:9", "egress web"}),
        (OUTSIDE, {"0.0.0.0/0:9", "outside:8"}),
        ("2001:db8::/64", {"0.0.0.0/0:9", "outside:8"}),
    ):
        joined = flows.joined(on, flows.Memory((row(API),), (), {}))
        found = learn_flows(on, joined, "db", lambda other: other, True, hidden={hidden})
        assert ("api:80/tcp" in shown(found.allow_from)) == (hidden != API), hidden
        more = {text for text in shown(found.allow_from) if text[0] != "#"} - {"api:80/tcp"}
        more |= {f"egress {text}" for text in shown(found.egress or ()) if text[0] != "#"}
        assert more == kept, hidden


def test_network_is_offered_if_most_of_it_connects() -> None:
    many = [known(f"s{i}", {"back": [f"10.99.1.{i}"]}) for i in range(10, 20)]
    on = world([known("db", {"back": [DB]}), *many], [BACK], [HOST])
    found = learned(on, *(row(f"10.99.1.{i}") for i in range(10, 19)))
    assert shown(found.allow_from)[-1] == "# network:back:80/tcp"


def test_ambiguous_name_becomes_an_address() -> None:
    on = there()
    joined = flows.joined(on, flows.Memory((row(API),), (), {}))
    found = learn_flows(on, joined, "db", lambda _other: None, False)
    assert shown(found.allow_from) == [f"{API}:80/tcp"] and found.egress is None


@settings(max_examples=samples(25, 2000), deadline=None)
@given(worlds(), st.data())
def test_policy_allows_what_was_seen_and_nothing_that_was_denied(
    drawn: PolicyContext, data: st.DataObject
) -> None:
    """And of what services send, nothing that was not seen, but by entries of before."""
    leased = [a for each in drawn.services.values() for a in verdict.addresses_of(each)]
    peers = [*leased, OUTSIDE, image(OUTSIDE), "198.51.100.7"]
    pairs = [(a, b) for a in peers for b in leased if (":" in a) == (":" in b)]
    keys = [(a, b, port, proto) for a, b in pairs for port in (80, 81) for proto in ("tcp", "udp")]
    rows = data.draw(st.lists(st.sampled_from(keys), max_size=12, unique=True)) if keys else []
    joined = flows.joined(
        drawn, flows.Memory(tuple(row(a, b, n, 1, p) for a, b, n, p in rows), (), {})
    )
    for name, each in drawn.services.items():
        found = learn_flows(drawn, joined, name, lambda other: other, True)
        allowed = [line.text for line in found.allow_from if line.allowed]
        egress = [line.text for line in found.egress or () if line.allowed]
        was = each.policy
        rules = policy(
            allowed, [e.text for e in was.deny_from], egress, [e.text for e in was.egress_deny]
        )
        after = with_policy(drawn, name, rules)
        for seen in joined:
            if seen.agrees and (seen.from_.is_known or seen.published):
                assert all(
                    r.passes for r in verdict.evaluate(after, *seen.id[:2], seen.port, seen.proto)
                )
        by_name = {(s.from_.service, s.to.service, s.port, s.proto) for s in joined if s.agrees}
        kept = was.allow_from is not None or was.egress_allow is not None
        for a, b, port, proto in keys:
            now = all(r.passes for r in verdict.evaluate(after, a, b, port, proto))
            before = all(r.passes for r in verdict.evaluate(drawn, a, b, port, proto))
            assert before or not now
            ends = [s.name if s else "" for s in (_of(drawn, a), _of(drawn, b))]
            if now and ends[1] == name and ends[0] not in ("", name) and not kept:
                assert (*ends, port, proto) in by_name


def _of(on: PolicyContext, address: str) -> verdict.KnownService | None:
    return next((s for s in on.services.values() if address in verdict.addresses_of(s)), None)


# --- into a manifest -------------------------------------------------------------------------------------------------

ITEMS = [
    ("api:5432/tcp", True, ""),
    ("a:53/udp", True, "DNS"),
    ("bad:1/tcp", False, "denied"),
]
OWN = ("network", "policy")
FORMS = [
    (
        '# top\n[package]\nname = "x" # n\n\n[network]\nnetwork = "b"  # why\n\n[z]\ntcp = 1 # end\n',
        OWN,
    ),
    ('[package]\nname = "x"\n', OWN),
    ('[package]\nname="x"\n[network]\npolicy = { log = true } # p\n', OWN),
    ('package={name="x"}\nnetwork.network = "b"\nnetwork.policy.log = true\n', OWN),
    (
        '[network]\na="b"\n[z]\na=1\n[network.policy]\nlog=true\nallow_from = [\n"x", "y" ]\n# end\n',
        OWN,
    ),
    (
        '[[service]]\nname="a"\n\n[[service]]\nname="b"\n\n[service.environment]\nA="1"\n',
        ("service", 1, "policy"),
    ),
    ('[services.db.network]\nnetwork="b"\n[services.api]\nx=1\n', ("services", "db", *OWN)),
    ('[services]\ndb = {network={network="b"}}\n', ("services", "db", *OWN)),
    ('[package]\r\nname = "x"\r\n', OWN),
]


@pytest.mark.parametrize(("text", "path"), FORMS)
def test_list_in_any_form_of_a_manifest(text: str, path: tuple[str | int, ...]) -> None:
    pytest.importorskip("tomlkit")
    result = with_list(text, path, "allow_from", ITEMS)
    at = tomllib.loads(result)
    for name in path:
        at = at[name]  # type: ignore[index]
    assert at.pop("allow_from") == ["api:5432/tcp", "a:53/udp"]
    assert with_list(result, path, "allow_from", ITEMS) == result
    for line in text.splitlines():
        assert (
            line.strip().rstrip("}") in result
            or "allow" in line
            or line[0] == '"'
            or "policy = {" in line
        ), line
    empty = with_list(result, path, "allow_from", [])
    at = tomllib.loads(empty)
    for name in path:
        at = at[name]  # type: ignore[index]
    assert at["allow_from"] == [] and "# denied" in empty
    assert ("\r" in text) == ("\r" in result) == ("\n" not in result.replace("\r\n", ""))


def test_comments_of_the_old_list_stay() -> None:
    pytest.importorskip("tomlkit")
    text = '[network.policy]\nallow_from = [\n  # "mine"\n  "api:5432/tcp", # the api\n  "old", # older\n]\n'
    result = with_list(text, OWN, "allow_from", ITEMS)
    assert '  # "mine"\n  "api:5432/tcp",  # the api\n' in result and "older" not in result
    again = with_list(
        result,
        OWN,
        "allow_from",
        [*ITEMS, ("old", False, "in the manifest; nothing used it")],
    )
    assert again.count('# "bad:1/tcp",') == 1 and '# "old",' in again


def test_what_cannot_be_changed_is_refused() -> None:
    pytest.importorskip("tomlkit")
    with refuses(InvalidInput, hint="write what niso net learn prints into the file"):
        with_list('network = "x"\n', OWN, "allow_from", ITEMS)


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name / "manifest.toml" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("x = 1\n")
    first, second = (PolicyChange(str(file), (), "x = 1\n", "x = 2\n", "") for file in files)
    with refuses(Conflict, hint="learn again", file="b/manifest.toml"):
        look_learn.write([first, second._replace(before="x = 0\n")])
    files[1].write_text("x = 1\n[x]\n")
    with refuses(
        InvalidInput, "line 2", hint="see https://toml.io for the syntax", file="b/manifest.toml"
    ):
        look_learn.write([first, second])
    files[1].write_text("x = 1\n")

    def busy(draft: str, path: str) -> None:
        raise OSError(16, "busy", draft)

    with monkeypatch.context() as patch, pytest.raises(Error) as caught:
        patch.setattr("os.rename", busy)
        look_learn.write([first, second])
    assert str(caught.value).startswith(f"{files[0]}: cannot be written") and caught.value.hint
    assert [file.read_text() for file in files] == ["x = 1\n"] * 2
    look_learn.write([first, second])
    assert [file.read_text() for file in files] == ["x = 2\n"] * 2
    assert all(os.listdir(file.parent) == ["manifest.toml"] for file in files)


def test_path_with_a_newline_adds_nothing_to_what_is_printed() -> None:
    path = '/tmp/x\n[network.policy]\nallow_from = ["0.0.0.0/0"]\n#/manifest.toml'
    found = LearnedPolicy("db", path, "network.policy", 9.0, (), None)
    text = "\n".join(traffic_commands._lines(found))
    assert tomllib.loads(text) == {"network": {"policy": {"allow_from": []}}}
    change = PolicyChange(path, ("db",), "x = 1\n", "x = 2\n", "")
    assert [line[:3] for line in change.diff.splitlines()] == ["---", "+++", "@@ ", "-x ", "+x "]


def test_difference_says_where_a_file_has_no_last_newline() -> None:
    """As diff(1) does, so that patch(1) takes it."""
    change = PolicyChange("/m.toml", ("db",), "a = 1\nx = 1", "a = 1\nx = 2\n", "")
    assert change.diff.splitlines()[-3:] == ["-x = 1", "\\ No newline at end of file", "+x = 2"]


def test_name_is_written_only_if_it_means_the_service_alone(tmp_path: Path) -> None:
    """An alias that a neighbour takes must not get what the service of that name had."""
    with Fakes(tmp_path) as fakes:
        on = {name: {"network": "back"} for name in ("db", "api", "api2", "net9")}
        fakes.activate(*(fakes.package(name, network=keys) for name, keys in on.items()))
        store = fakes.machine.store
        assert WrittenNames(store, "db").service("api") == "api"
        # on another network, a service has the name api, which db means by it no more if it comes beside it
        fakes.activate(fakes.package("api", network={"network": "far"}))
        assert WrittenNames(store, "db").service("api") == "api"
        fakes.activate(fakes.package("api2", network={"network": "back", "hostname": "api"}))
        assert store.resolved("db", "api")[0] == ["api2"]
        assert WrittenNames(store, "db").service("api") is None
        assert WrittenNames(store, "db").service("api2") == "api2"
