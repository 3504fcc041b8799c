"""Test attachments on a kernel in memory: plans, leases, refusals, and what a break leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_world import Steps, World
from refusals import refuses
from samples import some_steps

from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.change import attach as change_attach
from niso.change.attach import Attachment, AttachmentNetwork, Request
from niso.change.repair import repair_all
from niso.kernel.kinds.addresses import Address, Route
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.sysctls import Sysctl
from niso.look.check import check
from niso.manifest.policy import parse_ingress
from niso.plan.records import Policy, PortMapping
from niso.reconcile import change
from niso.store.snapshots import ALL
from niso.store.store import Store

PATH = "/proc/4711/ns/net"
BACKEND, FRONT = AttachmentNetwork("backend"), AttachmentNetwork("front")


def attach(
    world: World, name: str = "box", path: str = PATH, *networks: AttachmentNetwork, **more: object
) -> Attachment:
    """Attach a namespace, which begins now if the path is new."""
    if path and path not in world.kernel.engines:
        world.kernel.begin_engine(path)
    request = Request(name, path, networks or (BACKEND,), **more)  # type: ignore[arg-type]
    return change_attach.attach(world.machine, request)


def findings(world: World) -> list[str]:
    return [finding.text for finding in check(world.machine)]


def test_attached_namespace_has_what_a_service_has_and_nothing_else_is_touched(
    world: World,
) -> None:
    done = attach(world, "box", PATH, BACKEND, FRONT, ports=(PortMapping("", 8080, 80, "tcp"),))
    assert done.changed and len(done.address) == 2
    state = world.kernel.everything(change.desired_now(world.kernel, world.store, ALL))
    assert state[NetnsName] == {NetnsName("niso-box", PATH, world.kernel.engines[PATH].cookie)}
    assert state[Netns] == frozenset()
    inside = {address.link for address in state[Address] if address.netns}
    assert inside == {"eth0", "eth1"}
    everywhere = {route for route in state[Route] if route.destination == "0.0.0.0/0"}
    assert {route.link for route in everywhere} == {"eth0"}
    own = {sysctl.name for sysctl in state[Sysctl] if sysctl.netns}
    assert own and all("/eth0/" in name or "/eth1/" in name for name in own)
    world.assert_whole()
    assert not attach(
        world, "box", PATH, BACKEND, FRONT, ports=(PortMapping("", 8080, 80, "tcp"),)
    ).changed
    assert change_attach.detach(world.machine, "box")
    assert not change_attach.detach(world.machine, "box")
    world.assert_whole()
    assert world.store.services() == [] and not world.kernel.veths and not world.kernel.named
    assert PATH in world.kernel.engines


def test_interface_and_default_route_of_others_stay(world: World) -> None:
    world.kernel.begin_engine(PATH, "eth0", "net1", routed=(4,))
    attach(world, "box", PATH, BACKEND, AttachmentNetwork("front", "net2", mac="02:00:00:00:00:01"))
    ends = {veth.peer: veth.mac for veth in world.kernel.veths.values()}
    assert ends.keys() == {"eth1", "net2"} and ends["net2"] == "02:00:00:00:00:01"
    assert {where for _, where in world.kernel.routes} == {
        f"10.99.{network}.{end}" for network in (1, 2) for end in ("0/24", "1/32")
    }
    with refuses(
        Conflict,
        "net1",
        key="interface",
        hint="name another one, or none: niso chooses the next free eth<n>",
    ):
        attach(world, "box", PATH, BACKEND, AttachmentNetwork("front", "net1"))
    world.assert_whole()


def test_address_goes_to_its_owner_again_and_to_others_oldest_first(world: World) -> None:
    first = attach(world, "one", "/n/1").address
    second = attach(world, "two", "/n/2").address
    change_attach.detach(world.machine, "one")
    change_attach.detach(world.machine, "two")
    assert world.store.network("backend") is None  # it was made for them, and the leases go with it
    attach(world, "keeps", "/n/0")
    for name in ("one", "two"):
        attach(world, name, f"/n/{name}")
    held = {name: world.store.addresses(name)[0][1] for name in ("one", "two")}
    change_attach.detach(world.machine, "two")
    change_attach.detach(world.machine, "one")
    assert attach(world, "new", "/n/3").address[0] not in (*held.values(), *first, *second)
    assert attach(world, "one", "/n/4").address == (held["one"],)
    assert attach(world, "two", "/n/2").address == (held["two"],)
    world.assert_whole()


def test_full_network_takes_the_address_that_is_free_longest(world: World) -> None:
    from niso.change import networks
    from niso.plan.subnets import NetworkRequest

    networks.create(world.machine, NetworkRequest("backend", ("10.99.1.0/29",)))
    held = [attach(world, f"a{n}", f"/n/{n}").address[0] for n in range(5)]
    change_attach.detach(world.machine, "a3")
    change_attach.detach(world.machine, "a1")
    assert attach(world, "x", "/n/x").address == (held[3],)
    assert attach(world, "a1", "/n/again").address == (held[1],)
    with refuses(Conflict, hint="create a larger network"):
        attach(world, "y", "/n/y")
    world.assert_whole()


def test_namespace_that_has_ended_is_named_once_and_repair_forgets_it(world: World) -> None:
    attach(world, "box", ports=(PortMapping("", 8080, 80, "tcp"),))
    world.activate(world.package("api", network={"networks": ["backend"]}))
    world.kernel.end_engine(PATH)
    named = "gone: attachment 'box' (cli) (its network namespace has ended)"
    assert findings(world) == [named]
    world.activate(world.package("web", network={"networks": ["backend"]}))
    assert findings(world) == [named]
    started = list(world.processes.done)
    assert repair_all(world.machine) == 1
    assert world.processes.done == started
    assert world.store.service("box") is None
    world.assert_whole()


def test_path_that_leads_elsewhere_is_another_namespace(world: World) -> None:
    attach(world)
    address = world.store.addresses("box")
    world.kernel.end_engine(PATH)
    world.kernel.begin_engine(PATH, "eth0")  # another process has the pid
    assert findings(world) == ["gone: attachment 'box' (cli) (its network namespace has ended)"]
    done = attach(world)
    assert done.changed and world.store.addresses("box") == address
    assert {veth.peer for veth in world.kernel.veths.values()} == {"eth1"}
    world.assert_whole()


def test_living_attachment_is_replaced_by_its_own_owner_alone(world: World) -> None:
    attach(world, owner="podman", id="b186")
    with refuses(
        Conflict, "podman b186", key="NAME", hint="choose another name, or detach it first"
    ):
        attach(world, path="/n/2")
    with refuses(Conflict, "box", hint="attach box to more networks, or detach it first"):
        attach(world, "other")
    assert not change_attach.detach(world.machine, "box", "another id")
    before = world.store.addresses("box")
    assert attach(world, path="/n/2", owner="podman", id="b186").changed
    assert world.store.addresses("box") == before
    assert change_attach.collect(world.machine, "cni", []) == []
    assert change_attach.collect(world.machine, "podman", ["b186"]) == []
    assert change_attach.collect(world.machine, "podman", []) == ["box"]
    world.assert_whole()


def test_chosen_mac_is_nobody_elses(world: World) -> None:
    backend = {"network": "backend"}
    world.activate(world.package("db", network=backend), world.package("api", network=backend))
    chosen = BACKEND._replace(mac="02:00:00:00:00:AA")
    attach(world, "one", "/n/1", chosen)
    assert not attach(world, "one", "/n/1", chosen).changed
    world.kernel.begin_engine("/n/2")
    before = world.picture()
    with pytest.raises(Conflict, match="'one' already has the MAC address 02:00:00:00:00:aa"):
        attach(world, "two", "/n/2", chosen)
    derived = world.store.derived_mac
    theirs = [derived(name, "backend") for name in ("db", "one", "a-later-one")]
    theirs += [bridge.mac for bridge in world.kernel.bridges.values()]
    for mac in theirs:
        with pytest.raises(InvalidInput, match="are those of niso's bridges and services"):
            attach(world, "two", "/n/2", BACKEND._replace(mac=mac.upper()))
    for mac in ("ff:ff:ff:ff:ff:ff", "01:00:00:00:00:01", "00:00:00:00:00:00"):
        with pytest.raises(InvalidInput, match="not a MAC address of one station"):
            attach(world, "two", "/n/2", BACKEND._replace(mac=mac))
    assert world.picture() == before
    # its own one, as engines give it back, and one that is chosen on another network
    attach(world, "two", "/n/2", BACKEND._replace(mac=derived("two", "backend")))
    assert world.store.attachments.links("two")[0].mac == ""
    attach(world, "two", "/n/2", FRONT._replace(mac=chosen.mac))
    with pytest.raises(Conflict, match="already has the MAC address"):
        attach(world, "two", "/n/2", chosen)
    change_attach.detach(world.machine, "one")
    attach(world, "two", "/n/2", chosen)
    world.assert_whole()


def test_service_whose_mac_an_attachment_has_on_record_is_refused(world: World) -> None:
    """Such rows of an earlier version stay in the store, until it is attached again."""
    backend = {"network": "backend"}
    world.activate(world.package("db", network=backend), world.package("api", network=backend))
    world.niso("deactivate", "db")
    attach(world, "evil", "/n/1", BACKEND._replace(mac="02:00:00:00:00:AA"))
    mac = world.store.derived_mac("db", "backend")
    with world.store.transaction():
        world.store._db.execute("UPDATE attached_link SET mac=? WHERE service='evil'", (mac,))
    assert f"'evil' already has the MAC address {mac}" in world.refused("activate", "db")
    assert not world.pid("db")
    attach(world, "evil", "/n/1", BACKEND)
    world.niso("activate", "db")
    world.niso("net", "repair")
    world.assert_whole()


def test_mac_that_begins_as_those_of_niso_is_refused(world: World) -> None:
    """Another service could get the MAC by its name later."""
    mac = world.store.derived_mac("db", "backend")
    with pytest.raises(InvalidInput, match="are those of niso's"):
        attach(world, "box", PATH, BACKEND._replace(mac=mac))


def test_what_cannot_be_attached_is_refused_and_changes_nothing(world: World) -> None:
    world.activate(world.package("api"))
    world.kernel.begin_engine(PATH)
    before = world.picture()
    with refuses(NotFound, hint="a path like /proc/PID/ns/net or /run/netns/NAME"):
        change_attach.attach(world.machine, Request("box", "/n/none", (BACKEND,)))
    in_use = "^api: the name is already used by a service with a manifest$"
    with pytest.raises(Conflict, match=in_use):
        attach(world, "api")
    with refuses(Conflict, key="NAME", hint="niso deactivate --help"):
        change_attach.detach(world.machine, "api")
    with refuses(InvalidInput, hint="name each once"):
        attach(world, "box", PATH, BACKEND, BACKEND)
    host = world.kernel.engines[PATH]._replace(is_host=True)
    world.kernel.engines[PATH] = host
    with refuses(InvalidInput, hint="name the namespace of a container"):
        attach(world)
    world.kernel.engines[PATH] = host._replace(is_host=False, mark="niso:01234567")
    with refuses(Conflict, hint="network.networks in its manifest names its networks"):
        attach(world)
    world.kernel.engines[PATH] = host._replace(is_host=False)
    assert world.picture() == before
    attach(world)
    with refuses(
        Conflict, key="package.name", hint="choose another name", file="box/manifest.toml"
    ):
        world.activate(world.package("box"))
    with refuses(Conflict, hint="use the engine that started it"):
        world.activate("box")
    with refuses(
        Conflict,
        key="network.share",
        hint="name a service with a manifest",
        file="side/manifest.toml",
    ):
        world.activate(world.package("side", network={"mode": "share", "share": "box"}))


def test_after_a_reboot_the_owners_bring_them_back(world: World) -> None:
    from niso.change import boot
    from niso.store.store import reset_after_reboot

    attach(world, owner="podman", id="b186")
    world.activate(world.package("api", network={"networks": ["backend"]}))
    boot.enable(world.machine, ["api"])
    before = {name: world.store.addresses(name) for name in ("box", "api")}
    with world.store.transaction():
        reset_after_reboot(world.store._db, "another-boot 1 2")
    world._use(world.store)  # nothing of the kernel is left
    done = boot.restore(world.machine, 5.0)
    assert ([one.service for one in done.outcomes], done.errors) == (["api"], ())
    world.assert_whole()
    # its owner attaches it again, with or without having detached it
    attach(world, "box", "/n/new", owner="podman", id="b186")
    assert {name: world.store.addresses(name) for name in before} == before
    world.assert_whole()
    with world.store.transaction():
        reset_after_reboot(world.store._db, "a-third-boot 1 2")
    world._use(world.store)
    assert change_attach.collect(world.machine, None, None) == ["box"]
    world.assert_whole()


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the folder of the administrator's policies."""
    folder = tmp_path / "policies"
    folder.mkdir(0o755)
    monkeypatch.setenv("NISO_POLICY_DIR", str(folder))
    return folder


def test_policies_of_the_administrator_apply_to_what_is_attached(
    world: World, policies: Path
) -> None:
    own = Policy(deny_from=(parse_ingress("web", "--deny-from"),))
    attach(world, policy=own)
    attach(world, "other", "/n/2")
    (policies / "a.toml").write_text('[[policy]]\nname = "b*"\nallow_from = ["api"]\n')
    done = change_attach.apply_policies(world.machine)
    assert [(one.service, one.changed) for one in done] == [("box", True)]
    assert change_attach.apply_policies(world.machine) == []
    policy = world.store.policy("box")
    assert policy is not None and policy.allow_from and policy.deny_from == own.deny_from
    world.assert_whole()
    (policies / "a.toml").write_text("[[policy]")
    for command in (lambda: change_attach.apply_policies(world.machine), lambda: attach(world)):
        with pytest.raises(Error):
            command()
    assert world.store.policy("box") == policy
    (policies / "a.toml").unlink()
    change_attach.apply_policies(world.machine)
    assert world.store.policy("box") == own
    world.assert_whole()


def test_container_that_marks_its_own_links_as_those_of_niso_keeps_no_policy(
    world: World,
) -> None:
    """With NET_ADMIN it can; a policy that could not be applied would stay as it was, for ever."""
    attach(world)
    found = world.kernel.engines[PATH]
    world.kernel.engines[PATH] = found._replace(mark="niso")
    assert attach(world, policy=Policy(allow_from=())).changed
    policy = world.store.policy("box")
    assert policy is not None and policy.allow_from == ()
    with refuses(Conflict, hint="network.networks in its manifest names its networks"):
        attach(world, "other")
    change_attach.detach(world.machine, "box")
    with refuses(Conflict, hint="network.networks in its manifest names its networks"):
        attach(world)
    world.assert_whole()


def test_policy_that_another_process_narrows_meanwhile_is_not_taken_back(
    world: World, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent of Kubernetes' policies, or a detachment, beside a change of the administrator's."""
    attach(world)
    attach(world, "other", "/n/2")
    current, narrow = change_attach.current, Policy(allow_from=())

    def overtaken(store: Store, name: str) -> Request | None:
        request = current(store, name)
        if name == "other":
            change_attach.detach(world.machine, name)
        elif request is not None and request.policy != narrow:
            change_attach.attach(world.machine, request._replace(policy=narrow))
        return request

    monkeypatch.setattr(change_attach, "current", overtaken)
    (policies / "a.toml").write_text('[[policy]]\nname = "b*"\ndeny_from = ["api"]\n')
    # the other process has applied the administrator's policy too
    assert change_attach.apply_policies(world.machine) == []
    policy = world.store.policy("box")
    assert policy is not None and policy.allow_from == () and len(policy.deny_from) == 1
    assert world.store.service("other") is None
    world.assert_whole()


def test_namespace_of_its_own_is_as_that_of_a_service(world: World) -> None:
    attach(world, "box", "")
    assert "niso-box" in world.kernel.netns and not world.kernel.named
    world.kernel.lose_netns("niso-box")
    assert any("network namespace niso-box" in finding for finding in findings(world))
    repair_all(world.machine)
    world.assert_whole()
    change_attach.detach(world.machine, "box")
    assert not world.kernel.netns


@pytest.mark.parametrize("kills", [False, True])
def test_break_at_any_step_leaves_nothing_half_done(world: World, kills: bool) -> None:
    world.activate(world.package("api", network={"networks": ["backend"]}))
    world.kernel.begin_engine(PATH)
    ports = (PortMapping("", 8080, 80, "tcp"),)

    def command() -> None:
        attach(world, "box", PATH, BACKEND, FRONT, ports=ports)

    for number in some_steps(kills):
        before = world.picture()
        if Steps(world, number, kills).run(command):
            break
        repair_all(world.machine)
        world.assert_whole()
        assert world.picture() == before
    else:
        pytest.fail("it never came to its end")
    world.assert_whole()
    for number in some_steps(kills):
        if Steps(world, number, kills).run(lambda: change_attach.detach(world.machine, "box")):
            break
        repair_all(world.machine)
        world.assert_whole()
        if world.store.service("box") is None:  # recovery completes it
            attach(world, "box", PATH, BACKEND, FRONT, ports=ports)
    else:
        pytest.fail("it never came to its end")
    world.assert_whole()
