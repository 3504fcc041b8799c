"""See the hosts of a cluster, give up lost ones, change etcd's members, back up; run the agent."""

from __future__ import annotations

import os
import time

import niso
from niso.base import files, paths
from niso.base.errors import Conflict, Error, NotFound
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import service_lock
from niso.base.report import Report
from niso.cluster import config, gone, members, own_etcd
from niso.cluster.agent import Agent, Me, boot_id
from niso.cluster.membership import Host, Membership
from niso.cluster.requests import NoAnswer
from niso.commands import cluster_units as units
from niso.commands.cluster import LOCK, become_member, end_member, require_member
from niso.commands.deactivate import deactivate
from niso.runtime import unit
from niso.services import attachments
from niso.services.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.cluster.claims import Claim
    from niso.cluster.config import Config
    from niso.cluster.etcd import Etcd
    from niso.cluster.requests import Engine

AGENT_LOCK = "niso.agent"


class Status(NamedTuple):
    """What this host is told of its cluster. Without an answer only what it knows itself."""

    own: Config
    cluster: str
    members: tuple[tuple[members.EtcdMember, members.EtcdState | None], ...]
    hosts: tuple[Host, ...]
    claims: tuple[Claim, ...]
    networks: tuple[str, ...]  # all that span hosts
    gone_s: dict[str, float]  # for how long hosts have been gone, if the agent has seen it
    late_s: dict[str, int]  # by how much agents are behind that are
    looked_s: float | None  # since when this host's agent has looked last; None for not yet
    problem: Error | None  # why nothing answers


class _Other(Error):
    """The engine has another cluster, or none."""


def status(machine: Machine) -> Status:
    """Return the state of the cluster, as this host sees it. Raises Error."""
    own = require_member(machine)
    store = machine.store
    try:
        with own.engine() as engine:
            membership = Membership(engine, own.keys)
            found = membership.cluster()
            if found is None or found.identity != store.cluster_id():
                has = f"has cluster {found.identity}" if found else "has no cluster"
                raise _Other(
                    f"etcd {has}, and this host is in {store.cluster_id()}",
                    "its data may be lost: the guide says how to restore a backup",
                )
            hosts = tuple(membership.hosts())
            me = (own.host, store.state_id())
            if me not in {(host.name, host.state_id) for host in hosts}:
                raise _Other(
                    f"{own.host} is not a host of the cluster any more: others have forgotten it",
                    "niso cluster leave; then it can be invited again",
                )
            claims = tuple(membership.services())
            known = _members(own, engine)
            late = membership.late()
            networks = tuple(membership.network_names())
            problem: Error | None = None
    except (NoAnswer, _Other) as error:
        problem = error if isinstance(error, _Other) else Error(error.reason, "what runs goes on")
        hosts = tuple(
            Host(name, state_id, address, 0, live)
            for name, (state_id, address, live) in sorted(store.across.peers().items())
        )
        claims, late = (), {}
        networks = tuple(network.name for network in store.networks() if network.span is not None)
        known = _members(own, None)
    asked = tuple((each, members.state(own.access(), each.client)) for each in known)
    now, look = time.monotonic(), gone.last()
    ages = {host: now - seen_s for host, seen_s in look.gone.items()}
    looked_s = None if look.at_s is None else now - look.at_s
    seen = (asked, hosts, claims, networks, ages, late, looked_s)
    return Status(own, store.cluster_id(), *seen, problem)


def _members(own: Config, engine: Etcd | None) -> list[members.EtcdMember]:
    """Return etcd's members, or where they are if it is not niso's, or does not answer."""
    if engine is not None and own.etcd.own:
        return members.members(engine)
    return [members.EtcdMember("", "", "", place, False) for place in own.etcd.members]


def forget(machine: Machine, host: str) -> list[str]:
    """Give up a lost host, with all that it had; return its services.

    Raises NotFound, Conflict if it lives, NoAnswer.
    """
    own = require_member(machine)
    if host == own.host:
        raise Conflict(f"this host is {host}", "niso cluster leave takes it out")
    with own.engine() as engine:
        member = _member(engine, host) if own.etcd.own else None
        try:
            left = Membership(engine, own.keys).forget(host)
        except NotFound:
            if member is None:
                raise
            left = []  # an interrupted command has done that part
        if member is not None:
            members.remove(engine, member)
    return left


def add_member(machine: Machine, host: str, report: Report) -> int:
    """Run a member of etcd on this host; return how many there are. Raises Conflict, Error."""
    own = _require_own_etcd(machine)
    if host not in ("", own.host):
        raise Conflict(f"this host is {own.host}", f"run it on {host}")
    if own.member is not None:
        raise Conflict("this host runs a member already", "niso cluster status")
    if not os.path.lexists(os.path.join(paths.cluster_dir(), "authority.key")):
        raise Error(
            "this host lacks the key that members have",
            f"on a member: niso cluster invite {own.host} --renew; here: niso cluster join FILE"
            " --member",
        )
    with service_lock(LOCK):
        become_member(machine, own, report)
    return _count(own)


def remove_member(machine: Machine, host: str, report: Report) -> int:
    """Run no member on this host, or drop that of a lost one; return how many are left.

    Raises Conflict, NotFound, NoAnswer, Error.
    """
    own = _require_own_etcd(machine)
    with service_lock(LOCK), own.engine() as engine:
        known = members.members(engine)
        others = [each for each in known if each.name != (host or own.host) and not each.learns]
        if not others:
            raise Conflict("it is the only member", "niso cluster member add adds one on a host")
        if host in ("", own.host):
            places = members.endpoints(others)
            own = own._replace(etcd=own.etcd._replace(members=places))
            end_member(machine, own, engine, report)
            return _count(own)
        member = _member(engine, host)
        if member is None:
            raise NotFound(f"{host} runs no member of etcd", "niso cluster status lists them")
        if any(each.name == host and each.alive for each in Membership(engine, own.keys).hosts()):
            raise Conflict(f"{host} is alive", f"run it on {host}, where it also ends etcd")
        members.remove(engine, member)
    return _count(own)


def be_only_member(machine: Machine, report: Report) -> None:
    """Go on with this host's member alone, and what it has, after most were lost for good.

    Raises Conflict if most answer, Error.
    """
    own = _require_own_etcd(machine)
    if own.member is None:
        raise Error("this host runs no member of etcd", "run it on one that does")
    with service_lock(LOCK):
        try:
            _count(own)
        except NoAnswer:
            pass
        else:
            raise Conflict(
                "most members of etcd answer", "niso cluster member remove HOST drops a lost one"
            )
        place = own_etcd.client_place(own.address)
        own = own._replace(etcd=own.etcd._replace(members=(place,)))
        units.pause_etcd(machine)
        own_etcd.be_alone(own)
        config.save(own)
        units.start_etcd(machine, own, report)


def backup(machine: Machine, path: str) -> int:
    """Write etcd's data to a file for root alone; return its size in bytes. Raises Error."""
    own = _require_own_etcd(machine)
    draft, size = f"{path}.new", 0
    with own.engine() as engine:
        fd = files.make(draft, 0o600)
        try:
            for part in members.snapshot(engine):
                files.write(fd, part)
                size += len(part)
            os.fsync(fd)
            files.rename(draft, path)
        except BaseException:
            files.remove(draft)
            raise
        finally:
            os.close(fd)
    return size


def _require_own_etcd(machine: Machine) -> Config:
    own = require_member(machine)
    if not own.etcd.own:
        raise Error(
            "this cluster is in an etcd that is not niso's",
            "etcdctl changes its members and backs it up",
        )
    return own


def _member(engine: Etcd, host: str) -> members.EtcdMember | None:
    return next((each for each in members.members(engine) if each.name == host), None)


def _count(own: Config) -> int:
    with own.engine() as engine:
        return sum(not each.learns for each in members.members(engine))


# --- the agent ------------------------------------------------------------------------------------


class Following(NamedTuple):
    """The agent of this host. ``run`` returns after ``stop``, which a signal handler may call."""

    run: Callable[[], None]
    stop: Callable[[], None]


def follow(machine: Machine, log: Callable[[str], None]) -> Following:
    """Return the agent of this host. Raises Error if the host is in no cluster."""
    own = require_member(machine)
    store = machine.store
    me = Me(own.host, store.state_id(), store.cluster_id(), boot_id())

    def connect() -> Etcd:
        return config.require().engine()

    def end(services: list[str]) -> None:
        end_services(machine, services)

    def tend(engine: Engine) -> None:
        _tend(machine, engine)

    agent = Agent(me, connect, end, log, own.keys, tend)

    def run() -> None:
        try:
            lock = service_lock(AGENT_LOCK, 0)
            lock.__enter__()
        except Conflict:
            raise Conflict("the agent of this host runs already", "niso cluster status") from None
        try:
            if "NOTIFY_SOCKET" in os.environ:
                unit.tell("READY=1")
            log(f"following cluster {me.cluster} as {me.host}")
            agent.run(store, machine.kernel)
        finally:
            lock.__exit__()

    return Following(run, agent.stop)


def end_services(machine: Machine, services: list[str]) -> None:
    """End services that another host has taken over, and detach attachments. Raises Error."""
    attached = [name for name in services if machine.store.attachments.get(name) is not None]
    for name in attached:
        attachments.detach(machine, name)
    deactivate(machine, [name for name in services if name not in attached])


def _tend(machine: Machine, engine: Engine) -> None:
    """Keep what the cluster knows of this host, and the list of etcd's members here."""
    own = config.require()
    mtu = machine.kernel.mtu_of(own.address)
    if mtu is not None:
        state_id = machine.store.state_id()
        host = Host(own.host, state_id, own.address, mtu, True, niso.__version__)
        Membership(engine, own.keys).refresh(host)
    if not own.etcd.own:
        return
    with own.engine() as client:
        places = members.endpoints(members.members(client))
    try:
        with service_lock(LOCK, 0):
            now = config.require()  # as a command may have changed it
            if places and places != now.etcd.members:
                config.save(now._replace(etcd=now.etcd._replace(members=places)))
    except Conflict:
        pass  # a command that changes the cluster runs
