"""Test the cluster's engine: the same cases on etcd and on the fake."""

from __future__ import annotations

import base64
import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from etcd_world import Members, etcd
from fakes.engine import FakeEngine
from samples import samples

from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import COMPACTED, Compare, Delete, Event, Keys, NoAnswer, Put, Refused, Txn
from niso.cluster.etcd import Etcd, Reach
from niso.cluster.key_values import Spec
from niso.cluster.membership import ClusterKeys
from niso.cluster.own_etcd import state

_numbers = itertools.count()
SAMPLES = samples(3, 30)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with etcd(tmp_path_factory.mktemp("etcd")) as members:
        yield members


@pytest.fixture(params=["etcd", "fake"])
def engine(request: pytest.FixtureRequest, members: Members) -> Iterator[Etcd]:
    if request.param == "fake":
        yield FakeEngine()
        return
    with Etcd(members.access()) as engine:
        yield engine


@pytest.fixture
def at() -> str:
    """A prefix that no other test has."""
    return f"/test/{next(_numbers)}/"


def put(engine: Etcd, key: str, value: str = "x") -> int:
    revision = engine.commit(Txn((), (Put(key, value),)))
    assert revision
    return revision


def test_key_is_made_once_and_changed_at_its_revision(engine: Etcd, at: str) -> None:
    made = Txn((Compare(at + "a"),), (Put(at + "a", '{"ü": "\\u0000"}'), Put(at + "b", "")))
    first = engine.commit(made)
    assert first
    assert not engine.commit(made)
    answer = engine.get(at)
    assert [(i.key, i.value, i.modified) for i in answer.items] == [
        (at + "a", '{"ü": "\\u0000"}', first),
        (at + "b", "", first),
    ]
    assert engine.get(at + "a", one=True).items == answer.items[:1]
    assert engine.get(at + "nothing", one=True).items == ()
    change = Txn((Compare(at + "a", first),), (Put(at + "a", "2"), Delete(at + "b")))
    assert engine.commit(change)
    assert not engine.commit(change)
    assert engine.keys(at) == [at + "a"]
    answer, [item] = engine.get(at), engine.get(at).items
    assert engine.mark(at) == (answer.revision, item.modified, 0, 1)
    assert engine.mark(at + "nothing/")[1:] == (0, 0, 0)
    lease = engine.grant(10)
    engine.commit(Txn((), (Put(at + "b", "", lease),)))
    assert engine.mark(at)[2:] == (lease, 2)


def test_keys_beside_a_prefix_are_left_alone(engine: Etcd, at: str) -> None:
    for key in ("a/1", "a/2", "a0", "a", "b"):
        put(engine, at + key)
    assert engine.keys(at + "a/") == [at + "a/1", at + "a/2"]
    empty = Txn((Compare(at + "a/", prefix=True),), (Delete(at + "b"),))
    assert not engine.commit(empty)
    assert engine.commit(Txn((), (Delete(at + "a/", prefix=True),)))
    assert engine.keys(at) == [at + "a", at + "a0", at + "b"]
    assert engine.commit(empty)


def test_transaction_that_cannot_be_is_refused_whole(engine: Etcd, at: str) -> None:
    with pytest.raises(Refused):
        engine.commit(Txn((), (Put(at + "a", "1"), Put(at + "a", "2"))))
    with pytest.raises(Refused):
        engine.commit(Txn((), tuple(Put(at + str(n), "") for n in range(129))))
    with pytest.raises(Refused):
        engine.commit(Txn((), (Put(at + "a", "1", lease=12345),)))
    assert engine.keys(at) == []


def test_lease_ends_with_its_keys(engine: Etcd, at: str) -> None:
    """Revoked, or if no client renews it."""
    lease = engine.grant(30)
    assert engine.commit(Txn((), (Put(at + "live", "", lease),)))
    assert engine.get(at).items[0].lease == lease
    assert engine.renew_lease(lease)
    engine.revoke(lease)
    engine.revoke(lease)
    assert engine.keys(at) == []
    assert not engine.renew_lease(lease)
    lease = engine.grant(2)
    assert engine.commit(Txn((), (Put(at + "live", "", lease),)))
    if isinstance(engine, FakeEngine):
        engine.advance(1.9)
        assert engine.keys(at)
        engine.advance(0.2)
    deadline = time.monotonic() + 20
    while engine.keys(at):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_watch_sees_every_change_from_a_revision_on(engine: Etcd, at: str) -> None:
    first = put(engine, at + "a", "1")
    put(engine, at + "b", "2")
    put(engine, at[:-2] + "-other/x")
    last = engine.commit(Txn((), (Delete(at + "a"), Put(at + "c", "3"))))
    seen: list[Event] = []
    for revision, events in engine.watch(at, first, 10):
        seen += events
        if revision >= last:
            break
    assert [(key[-1], item.value if item else None) for key, item, _ in seen] == [
        ("a", "1"),
        ("b", "2"),
        ("a", None),
        ("c", "3"),
    ]
    assert [item.modified for _, item, _ in seen if item][-1] == last


def test_watch_waits_for_what_comes(engine: Etcd, members: Members, at: str) -> None:
    start = put(engine, at + "a")
    other = engine if isinstance(engine, FakeEngine) else Etcd(members.access())
    writer = threading.Timer(0.3, put, (other, at + "b"))
    writer.start()
    batches = engine.watch(at, start + 1, 10)
    seen = next(events for _, events in batches if events)
    assert [key for key, _, _ in seen] == [at + "b"]
    writer.join()


def test_watch_below_a_compaction_says_so(engine: Etcd, at: str) -> None:
    start = put(engine, at + "a")
    last = put(engine, at + "a")
    if isinstance(engine, FakeEngine):
        engine.compact()
    else:
        assert isinstance(engine, Etcd)
        engine.call("/v3/kv/compaction", {"revision": str(last), "physical": True})
    with pytest.raises(Refused) as raised:
        next(engine.watch(at, start, 10))
    assert raised.value.code == COMPACTED


# --- etcd alone -----------------------------------------------------------------------------------------------------


def test_certificate_is_needed_on_both_sides(members: Members, tmp_path) -> None:
    whole = members.access()
    with pytest.raises(NoAnswer), Etcd(whole._replace(cert="", key="")) as nobody:
        nobody.get("x")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=other", "-keyout", tmp_path / "k", "-out", tmp_path / "c"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(NoAnswer) as raised:
        Etcd(whole._replace(cacert=str(tmp_path / "c"))).get("x")
    assert not raised.value.unknown


def test_what_another_program_has_written_is_read_as_far_as_it_is_text(
    members: Members, at: str
) -> None:
    with Etcd(members.access()) as engine:
        start = put(engine, at + "a")
        for key, value in ((b"b", b"\xff{}"), (b"\xfe", b"{}")):
            packed = (base64.b64encode(part).decode() for part in (at.encode() + key, value))
            engine.call("/v3/kv/put", dict(zip(("key", "value"), packed, strict=True)))
        assert [item.value for item in engine.get(at).items] == ["x", "\ufffd{}", "{}"]
        assert engine.keys(at) == [at + "a", at + "b", at + "\ufffd"]
        batches = itertools.islice(engine.watch(at, start, 5), 3)
        items = [item for _, events in batches for _, item, _ in events]
        assert items[1] is not None and items[1].value == "\ufffd{}"


def test_full_engine_refuses_what_is_new_and_goes_on_with_the_others(
    members: Members, at: str
) -> None:
    with Etcd(members.access()) as engine:
        put(engine, at + "a")
        full = {
            "alarm": "NOSPACE",
            "memberID": engine.call("/v3/maintenance/status", {})["header"]["member_id"],
        }
        engine.call("/v3/maintenance/alarm", {"action": "ACTIVATE", **full})
        try:
            with pytest.raises(Refused, match="space exceeded") as raised:
                put(engine, at + "b")
            states = [state(members.access(), place) for place in members.access().members]
            assert {alarm for each in states if each for alarm in each.alarms} == {"NOSPACE"}
            assert "etcdctl defrag" in (raised.value.hint or "") and not raised.value.unknown
            assert engine.keys(at) == [at + "a"]
            assert engine.commit(Txn((), (Delete(at + "a"),)))
        finally:
            engine.call("/v3/maintenance/alarm", {"action": "DEACTIVATE", **full})
        put(engine, at + "b")


def test_nobody_there_is_known_at_once_and_nothing_was_sent() -> None:
    started = time.monotonic()
    with pytest.raises(NoAnswer) as raised, Etcd(Reach(("127.0.0.1:1", "127.0.0.1:2"))) as engine:
        engine.commit(Txn((), (Put("a", ""),)))
    assert not raised.value.unknown
    assert "127.0.0.1:1, 127.0.0.1:2" in raised.value.reason
    assert time.monotonic() - started < 5


@pytest.mark.first
def test_member_that_is_stopped_is_left_for_another_and_a_change_there_is_unknown(tmp_path) -> None:
    with etcd(tmp_path, 3) as members, Etcd(members.access(), request_s=1) as engine:
        put(engine, "/a")
        members[0].signal(signal.SIGSTOP)
        assert engine.get("/a").items  # by the next one
        lone = Etcd(members.access("m0"), request_s=0.5)
        with pytest.raises(NoAnswer) as raised:
            lone.commit(Txn((), (Put("/b", ""),)))
        # it did not even shake hands
        assert not raised.value.unknown
        members[0].signal(signal.SIGCONT)
        with Etcd(members.access("m0"), request_s=0.5) as lone:
            lone.get("/a")
            members[0].signal(signal.SIGSTOP)
            with pytest.raises(NoAnswer) as raised:
                lone.commit(Txn((), (Put("/b", ""),)))
            assert raised.value.unknown
            members[0].signal(signal.SIGCONT)
        # a watch at a member that is stopped ends, as not even a sign of life comes
        with Etcd(members.access("m0"), request_s=2) as watching:
            watch = watching.watch("/", engine.get("/a").revision + 1, 1)
            assert next(watch)[1] == ()
            members[0].signal(signal.SIGSTOP)
            with pytest.raises(NoAnswer, match="timed out"):
                for _ in watch:
                    pass
            members[0].signal(signal.SIGCONT)
        # a member without the others ends its watches, and answers what it has
        start = engine.get("/a").revision
        with Etcd(members.access("m0"), request_s=0.5) as watching:
            watch = watching.watch("/", start + 1, 20)
            members[1].signal(signal.SIGKILL)
            members[2].signal(signal.SIGKILL)
            with pytest.raises(NoAnswer, match="leader"):
                for _ in watch:
                    pass
            assert watching.get("/a", stale=True).items
            with pytest.raises(NoAnswer):
                watching.get("/a")


# --- claims on etcd -------------------------------------------------------------------------------------------------


def test_claims_are_unique_while_members_are_killed(tmp_path) -> None:
    """Claims of three hosts at once, by clients of all members, of which one after another is killed and comes back."""
    spec = Spec("backend", 0, 1430, (("10.99.0.0/16", "10.99.0.1"),))
    with etcd(tmp_path, 3) as members:
        access = members.access()
        with Etcd(access) as engine:
            ClusterKeys(engine).create_network(spec)
        over = threading.Event()
        won: list[tuple[str, str, str]] = []  # service, address, mark
        unknown: list[str] = []

        def work(number: int) -> None:
            order = access.members[number % 3 :] + access.members[: number % 3]
            with Etcd(access._replace(members=order), request_s=1) as engine:
                claims = Claims(engine, f"h{number % 3}")
                for count in itertools.count():
                    if over.is_set():
                        return
                    name = f"s{number}-{count}"
                    try:
                        claim = claims.claim(Wanted(name, ("backend",), (name,), {}, {}))
                    except NoAnswer as error:
                        if error.unknown:
                            unknown.append(name)
                        continue
                    won.append((name, claim.networks["backend"][0], claim.mark))
                    time.sleep(0.1)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for worker in workers:
            worker.start()
        for number in range(SAMPLES):
            time.sleep(0.7)
            victim = members[number % 3]
            victim.signal(signal.SIGKILL)
            time.sleep(0.7)
            victim.start(members)
        time.sleep(1)
        over.set()
        for worker in workers:
            worker.join()
        with Etcd(access) as engine:
            claims = Claims(engine, "reader")
            held = {name: claims.held(name) for name, _, _ in won}
            places = engine.keys(Keys().addresses("backend"))
            services = engine.keys(Keys().services)
        assert len(won) > 20
        for name, address, mark in won:
            claim = held[name]
            assert claim is not None and (claim.networks["backend"][0], claim.mark) == (
                address,
                mark,
            )
        assert len({address for _, address, _ in won}) == len(won)
        # each claim has its address and each address its claim; what has no answer is one or the other
        assert len(places) == len(services)
        names = {key.rpartition("/")[2] for key in services}
        assert {name for name, _, _ in won} <= names <= {name for name, _, _ in won} | set(unknown)
