"""Test niso cluster on fakes: a command that fails or is killed at any request leaves nothing, or is finished by the next."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_world import Killed, World
from fakes.engine import FakeEngine
from refusals import refuses

from niso.base import paths
from niso.base.errors import Conflict, Error, InvalidInput, NotFound, UsageError
from niso.base.report import WarningEvent
from niso.change import cluster_hosts, cluster_join
from niso.cluster import config, invitation, key_values, own_etcd
from niso.cluster.agent import Agent
from niso.cluster.config import Config
from niso.cluster.engine import Keys, NoAnswer, Put, Txn
from niso.cluster.etcd import Etcd
from niso.cluster.key_values import HostEntry
from niso.cluster.membership import ClusterKeys
from niso.store.span_rows import ClaimRow

HERE = "192.0.2.1"
ETCD = cluster_join.Reach(("http://etcd1:2379",))


class Engine(FakeEngine):
    """An engine of which one request, counted from now, raises something before it is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.raises = -1, NoAnswer("the cluster does not answer")  # type: Any

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _answers(self, stale: bool = False) -> None:
        if self.left == 0:
            raise self.raises
        self.left -= 1
        super()._answers(stale)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(Config, "engine", lambda own, brief=False: engine)
    return engine


def init(
    world: World, existing: cluster_join.Reach = ETCD, host: str = "a"
) -> cluster_join.Membership:
    return cluster_join.init(world.machine, host, HERE, existing, "")


def is_clean(world: World) -> bool:
    return world.store.cluster_id() == "" and not os.path.exists(paths.cluster_dir())


@pytest.mark.parametrize("raises", [NoAnswer("no answer"), Killed()], ids=["fails", "killed"])
def test_init_leave_and_join_fail_at_each_request(
    world: World, engine: Engine, raises: Any
) -> None:
    def trying(what: Any, is_done: Any) -> None:
        for count in range(30):
            engine.left, engine.raises = count, raises
            try:
                what()
            except (NoAnswer, Killed):
                engine.left = -1
                assert is_done() or is_clean(world) or what is leave
                continue
            engine.left = -1
            assert count > 1 and is_done()
            return
        raise AssertionError("it never ends")

    def leave() -> None:
        cluster_join.leave(world.machine, False)

    trying(lambda: init(world), lambda: world.store.cluster_id() != "")
    hosts = ClusterKeys(engine).hosts()
    assert [(host.name, host.address, host.state_id) for host in hosts] == [
        ("a", HERE, world.store.state_id())
    ]
    made = world.store.cluster_id()
    with refuses(Conflict, str(made), hint="niso cluster status"):
        init(world)
    text = cluster_join.invite(world.machine, "b", "192.0.2.2", False, False).encode()
    own = text.replace(b"192.0.2.2", HERE.encode())
    trying(leave, lambda: is_clean(world))
    assert ClusterKeys(engine).hosts() == []
    joining = lambda: cluster_join.join(world.machine, own, None, "")  # noqa: E731
    trying(joining, lambda: world.store.cluster_id() == made)
    assert config.require().host == "b"


def test_host_that_leaves_without_an_answer_does_not_say_that_its_agent_will_tell(
    world: World, engine: Engine
) -> None:
    init(world)
    world.machine = world.machine._replace(joined=config.require)
    with world.store.transaction():
        world.store.across.set_claim(ClaimRow("old", "mark", 1, {}))
    engine.down = True
    said: list[Any] = []
    cluster_join.leave(world.machine._replace(report=said.append), True)
    assert not [each for each in said if isinstance(each, WarningEvent)]
    assert is_clean(world)


@pytest.mark.parametrize(
    ("existing", "host", "address", "words"),
    [
        (ETCD, "A b", HERE, "--name"),
        (ETCD, "a", "127.0.0.1", "not an address of a host"),
        (ETCD, "a", "192.0.2.77", "not an address of this host"),
        (cluster_join.Reach(("etcd1:2379",)), "a", HERE, "not a URL of etcd"),
        (cluster_join.Reach(("https://etcd1",)), "a", HERE, "https needs --cacert"),
        (cluster_join.Reach(("http://e",), cacert="/c"), "a", HERE, "https needs --cacert"),
        (cluster_join.Reach(("http://e/x",)), "a", HERE, "not a URL of etcd"),
        (ETCD._replace(prefix="niso"), "a", HERE, "not a prefix of keys"),
    ],
)
def test_wrong_input_of_init_changes_nothing(
    world: World,
    engine: Engine,
    existing: cluster_join.Reach,
    host: str,
    address: str,
    words: str,
) -> None:
    with pytest.raises((InvalidInput, UsageError)) as caught:
        cluster_join.init(world.machine, host, address, existing, "")
    assert words in caught.value.message
    assert is_clean(world) and engine.get("/").items == ()


def test_invitation_is_read_as_it_was_written_and_a_wrong_one_shows_nothing_of_it() -> None:
    made = invitation.Invitation(
        "5f0c21aa",
        config.OwnHost("b", "2001:db8::2"),
        config.Reach(("[2001:db8::1]:2379",), own=True),
        invitation.Files("-----BEGIN\nü\n", "cert", "the key", "", "authority"),
    )
    text = invitation.text_of(made).encode()
    assert invitation.parsed(text) == made
    for wrong in (
        b"",
        b"\xff",
        b"[[[",
        text.replace(b"2001:db8::2", b"::1"),
        text.replace(b"members", b"member"),
        text.replace(b"5f0c21aa", b"5f0c\\n"),
        text.replace(b'"the key"', b"7"),
        text + b"x" * invitation.MAX_BYTES,
    ):
        with pytest.raises(InvalidInput) as caught:
            invitation.parsed(wrong)
        assert caught.value.message == "not an invitation of niso cluster"


def test_lost_host_is_forgotten_and_lives_no_more(world: World, engine: Engine) -> None:
    init(world)
    keys = Keys()
    membership = ClusterKeys(engine, keys)
    membership.join(key_values.HostEntry("b", "id-b", "192.0.2.2", 1500, False))
    lease = engine.grant(10)
    assert membership.live("b", "id-b", lease, "boot")
    with refuses(Conflict, hint="only a host that is gone can be forgotten"):
        cluster_hosts.forget(world.machine, "b")
    engine.revoke(lease)
    with refuses(Conflict, hint="niso cluster leave takes it out"):
        cluster_hosts.forget(world.machine, "a")
    assert cluster_hosts.forget(world.machine, "b") == ((), 0)
    with pytest.raises(NotFound):
        cluster_hosts.forget(world.machine, "b")
    for command in (cluster_hosts.add_member, cluster_hosts.remove_member):
        with refuses(Error, hint="etcdctl changes its members and backs it up"):
            command(world.machine, "")


def test_agent_runs_once_and_tells_the_cluster_of_its_host(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refuses(Error, hint="niso cluster init makes one; niso cluster join FILE joins one"):
        cluster_hosts.follow(world.machine, print)
    init(world)
    said: list[str] = []
    ran: list[str] = []
    second = cluster_hosts.follow(world.machine, said.append)

    def run(agent: Agent, store: object, kernel: object) -> None:
        ran.append(agent.host)
        agent.tend(engine, True)
        with refuses(Conflict, hint="niso cluster status"):
            second.run()

    monkeypatch.setattr(Agent, "run", run)
    monkeypatch.setattr("niso.__version__", "9.9")
    world.kernel.mtu = 1400
    cluster_hosts.follow(world.machine, said.append).run()
    assert ran == ["a"] and said == [f"following cluster {world.store.cluster_id()} as a"]
    [host] = ClusterKeys(engine).hosts()
    assert host.mtu == 1400 and host.version == paths.version()
    value = json.loads(engine.get(Keys().host("a"), one=True).items[0].value)
    assert value["address"] == HERE


def test_renewal_takes_no_files_that_do_not_work(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(world)
    with refuses(
        Conflict, hint="all hosts of a cluster have IPv4 addresses, or all have IPv6 addresses"
    ):
        cluster_join.invite(world.machine, "b", "2001:db8::2", False, False)
    text = cluster_join.invite(world.machine, "a", "", True, False)
    monkeypatch.setattr(Config, "engine", lambda own: Etcd(own.access()))
    bad = text.replace("[files]\n", '[files]\ncacert = "junk"\ncert = "junk"\nkey = "junk"\n')
    with refuses(InvalidInput, hint="make a new one: niso cluster invite HOST --address A"):
        cluster_join.join(world.machine, bad.encode(), None, "")
    assert os.listdir(paths.cluster_dir()) == ["cluster.toml"]


def test_certificates_of_a_forgotten_host_are_withdrawn_whatever_else_it_had() -> None:
    engine = FakeEngine()
    membership = ClusterKeys(engine)
    membership.make()
    host = HostEntry("c", "id-c", "198.51.100.3", 1500, False)
    membership.join(host)
    for serial in ("0A", "0B"):
        membership.issued("c", serial)
    membership.issued("d", "0D")
    assert membership.refused() == []
    assert membership.forget("c") == []
    assert membership.refused() == ["0A", "0B"] and membership.issued_to("c") == []
    assert membership.withdraw("d") == 1 and membership.withdraw("d") == 0
    # nothing that is no serial number reaches openssl
    engine.commit(Txn((), (Put(f"{Keys().refused}0E\tunknown", "{}"), Put(Keys().refused, "{}"))))
    assert membership.refused() == ["0A", "0B", "0D"]


def test_member_refuses_for_ever_what_it_once_refused(tmp_path: Path) -> None:
    with World(tmp_path):
        folder = Path(paths.cluster_dir())
        folder.mkdir(mode=0o700)
        (Path(own_etcd.folder()) / "tls").mkdir(parents=True)
        invitation.make_authority(str(folder), "test")
        assert own_etcd.refuse([]) == []
        assert own_etcd.refuse(["0B"]) == ["0B"]
        assert own_etcd.refuse(["0A"]) == ["0A", "0B"], "etcd's data are from a backup"
        made = Path(own_etcd.folder()) / "tls" / "refused.pem"
        words = ["openssl", "crl", "-in", made, "-noout", "-text", "-nextupdate"]
        words += ["-CAfile", folder / "authority.pem"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True)
        assert "verify OK" in shown.stderr
        assert re.findall("Serial Number: (.*)", shown.stdout) == ["0A", "0B"]
        assert made.stat().st_mode & 0o777 == 0o400


def test_host_with_the_name_or_the_state_folder_of_another_one_is_refused() -> None:
    engine = FakeEngine()
    membership = ClusterKeys(engine)
    membership.make()
    c = HostEntry("c", "id-c", "198.51.100.3", 1500, False)
    membership.join(c)
    with refuses(
        Conflict,
        "198.51.100.3",
        hint="use another name; if that host is lost, niso cluster forget c first",
    ):
        membership.join(HostEntry("c", "id-d", "198.51.100.4", 1500, False))
    with refuses(Conflict, hint="a copy of the machine c needs a state folder of its own"):
        membership.join(HostEntry("d", "id-c", "198.51.100.4", 1500, False))
    for version in ("\x1b[31m", "1" * 99):
        membership.refresh(c._replace(version=version))
        assert [host.version for host in membership.hosts()] == [""]
