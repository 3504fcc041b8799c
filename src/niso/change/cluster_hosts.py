"""Show a cluster's hosts, remove lost hosts, change etcd's members, back up, run the agent."""

from __future__ import annotations

import os
import time
from functools import partial

from niso.base import files, paths
from niso.base.errors import Conflict, Error, NotFound
from niso.base.locks import service_lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import Report
from niso.change import attach, cluster_join
from niso.change.cluster_join import LOCK, Joined, as_member, require_member
from niso.change.deactivate import deactivate
from niso.change.journal import recover
from niso.cluster import config, encryption, invitation, own_claims, own_etcd
from niso.cluster.agent import Agent, last
from niso.cluster.config import Config, MemberStart
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Etcd
from niso.cluster.key_values import ClusterClaim, HostEntry, host_of
from niso.cluster.membership import ClusterKeys
from niso.runtime import units
from niso.runtime.machine import Machine
from niso.runtime.units import Following, alone
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.cluster.etcd import Etcd


AGENT_LOCK = "niso.agent"


class ClusterState(NamedTuple):
    """The state of the cluster. If etcd does not answer, it is what this host has recorded."""

    own: Config
    cluster: str
    members: tuple[tuple[own_etcd.EtcdMember, own_etcd.EtcdState | None], ...]
    hosts: tuple[HostEntry, ...]
    claims: tuple[ClusterClaim, ...]
    networks: tuple[str, ...]  # all that span hosts
    gone_s: dict[str, float]  # seconds since which hosts are gone, as seen by this host's agent
    late_s: dict[str, int]  # seconds by which agents lag, of those that do
    # seconds since the last sync pass of this host's agent; None if there was none
    looked_s: float | None
    problem: Error | None  # why the cluster does not answer


def status(machine: Machine) -> ClusterState:
    """Return the state of the cluster as this host sees it. Raises Error."""
    own = require_member(machine)
    store = machine.store
    problem: Error | None = None
    try:
        with own.engine() as engine:
            membership = ClusterKeys(engine, own.keys)
            cluster, hosts = membership.cluster(), tuple(membership.hosts())
            me = (own.host, store.state_id())
            if cluster is None or cluster.identity != store.cluster_id():
                has = f"has cluster {cluster.identity}" if cluster else "has no cluster"
                problem = Error(
                    f"etcd {has}, and this host is in {store.cluster_id()}",
                    "if its data are lost: the guide says how to restore a backup, and niso cluster"
                    " init --restore makes it again from what this host knows",
                )
            elif me not in {(host.name, host.state_id) for host in hosts}:
                problem = Error(
                    f"{own.host} is not a host of the cluster any more: others have forgotten it",
                    "niso cluster leave; then it can be invited again",
                )
            else:
                claims = tuple(membership.services())
                known = _members(own, engine)
                late = membership.late()
                networks = tuple(membership.network_names())
    except NoAnswer as error:
        hint = (
            "running services continue; a host that others have forgotten gets no answer any more"
        )
        problem = Error(error.reason, hint)
    if problem is not None:
        tunnel = store.across.tunnel()
        places = {inside: place for _, place, inside in tunnel.others} if tunnel else {}
        hosts = (HostEntry(own.host, store.state_id(), own.address, 0, False),)
        for name, (state_id, address, live) in store.across.peers().items():
            # without the port, as in "198.51.100.1:4800" or "[2001:db8::1]:4800"
            outer = places.get(address, "").rpartition(":")[0].strip("[]")
            hosts += (HostEntry(name, state_id, outer or address, 0, live),)
        hosts = tuple(sorted(hosts))
        claims, late = (), {}
        networks = tuple(network.name for network in store.networks() if network.span is not None)
        known = _members(own, None)
    asked = tuple((member, own_etcd.state(own.access(), member.client)) for member in known)
    now, (at_s, gone) = time.monotonic(), last()
    ages = {host: now - seen_s for host, seen_s in gone.items()}
    looked_s = None if at_s is None else now - at_s
    seen = (asked, hosts, claims, networks, ages, late, looked_s)
    return ClusterState(own, store.cluster_id(), *seen, problem)


def _members(own: Config, engine: Etcd | None) -> list[own_etcd.EtcdMember]:
    """Return the members of etcd; without an answer or niso's etcd, only their endpoints."""
    if engine is not None and own.etcd.own:
        return own_etcd.members(engine)
    return [own_etcd.EtcdMember("", "", "", place, False) for place in own.etcd.members]


class Forgotten(NamedTuple):
    """What was removed from the cluster with a lost host."""

    services: tuple[str, ...]
    """names of the services that the host had"""
    certificates: int
    """number of the host's certificates that were revoked"""


def forget(machine: Machine, host: str) -> Forgotten:
    """Remove a lost host from the cluster with all its claims, and revoke its certificates.

    If the host has left or never joined, only its certificates are revoked. Raises NotFound if
    nothing of the host exists, Conflict if the host is alive, and NoAnswer.
    """
    own = require_member(machine)
    if host == own.host:
        raise Conflict(f"this host is {host}", "niso cluster leave takes it out")
    with own.engine() as engine:
        member = _member(engine, host) if own.etcd.own else None
        membership = ClusterKeys(engine, own.keys)
        count = len(membership.issued_to(host))
        try:
            left = membership.forget(host)
        except NotFound:  # it has left, or an interrupted command has done this part
            if membership.withdraw(host) == 0 and member is None:
                raise
            left = []
        if member is not None:
            own_etcd.remove(engine, member)
        if own.member is not None:
            own_etcd.refuse(membership.refused())
    return Forgotten(tuple(left), count)


def add_member(machine: Machine, host: str, report: Report) -> int:
    """Start an etcd member on this host, and return the number of voting members.

    ``host`` must be "" or this host's name. Raises Conflict or Error.
    """
    own = _require_own_etcd(machine)
    if host not in ("", own.host):
        raise Conflict(f"this host is {own.host}", f"run it on {host}")
    if own.member is not None:
        raise Conflict("this host runs a member already", "niso cluster status")
    if not os.path.lexists(os.path.join(paths.cluster_dir(), "authority.key")):
        raise Error(
            "this host lacks the key that members have",
            f"on a member: niso cluster invite {own.host} --renew --member; here: niso cluster join"
            " FILE --member",
        )
    with service_lock(LOCK):
        cluster_join.become_member(machine, own, report)
    return _count(own)


def remove_member(machine: Machine, host: str, report: Report) -> int:
    """Remove the etcd member of this host ("") or of a lost host.

    Returns the number of voting members that remain. Raises Conflict for the only member and for a
    host that is alive, NotFound, NoAnswer or Error.
    """
    own = _require_own_etcd(machine)
    with service_lock(LOCK), own.engine() as engine:
        known = own_etcd.members(engine)
        others = [
            member for member in known if member.name != (host or own.host) and not member.learns
        ]
        if not others:
            raise Conflict("it is the only member", "niso cluster member add adds one on a host")
        if host in ("", own.host):
            places = own_etcd.endpoints(others)
            own = own._replace(etcd=own.etcd._replace(members=places))
            cluster_join.end_member(machine, own, engine, report)
            return _count(own)
        member = _member(engine, host)
        if member is None:
            raise NotFound(f"{host} runs no member of etcd", "niso cluster status lists them")
        if any(
            present.name == host and present.alive
            for present in ClusterKeys(engine, own.keys).hosts()
        ):
            raise Conflict(f"{host} is alive", f"run it on {host}, where it also ends etcd")
        own_etcd.remove(engine, member)
    return _count(own)


def be_only_member(machine: Machine, report: Report) -> None:
    """Make this host's etcd member the only one, after most members were lost permanently.

    The member keeps its data. Raises Conflict if most members answer, and Error.
    """
    own = _require_own_etcd(machine)
    if own.member is None:
        raise Error("this host runs no member of etcd", "run it on one that does")
    with service_lock(LOCK):
        try:
            _count(own)
        except Refused:
            raise
        except NoAnswer:
            pass
        else:
            reason = "most members of etcd answer"
            raise Conflict(reason, "niso cluster member remove HOST drops a lost one")
        place = own_etcd.client_place(own.address)
        own = own._replace(etcd=own.etcd._replace(members=(place,)))
        cluster_join.pause_etcd(machine)
        own_etcd.be_alone(own)
        config.save(own)
        cluster_join.start_etcd(machine, own, report)


def restore(machine: Machine, report: Report) -> Joined:
    """Write this host's cluster from its store to etcd, after etcd has lost its data.

    If no etcd answers, this host starts the first member. Raises Conflict if etcd has the data of a
    cluster, or if this host has the data of a member, which could be used instead; NoAnswer or
    Error.
    """
    own = require_member(machine)
    store = machine.store
    mtu = machine.kernel.mtu_of(own.address)
    if mtu is None:
        raise Error(f"{own.address} is no longer an address of this host", "ip address lists them")
    with service_lock(LOCK):
        own = _answering(machine, own, report)
        if (store.across.tunnel() is not None) != bool(own.encryption):
            reason = "cluster.toml and the store differ on whether the cluster is encrypted"
            raise Error(reason, "nothing is written: niso cluster leave, and join again")
        with own.engine() as engine:
            membership = ClusterKeys(engine, own.keys)
            host = as_member(machine, own, mtu)
            made = own_claims.restore(store, membership, host, own.encryption)
            if own.etcd.own:
                _tend_certificates(machine, own, membership)
        units.agent_name()
    return Joined(own, made.identity, _count(own) if own.etcd.own else 0)


def _answering(machine: Machine, own: Config, report: Report) -> Config:
    """Return a configuration by which an etcd answers; start this host's etcd if none does."""
    try:
        with own.engine() as engine:
            engine.mark(own.keys.prefix)
        return own
    except NoAnswer as error:
        if isinstance(error, Refused) or not own.etcd.own:
            raise
    if os.path.lexists(os.path.join(own_etcd.data(), "member")):
        reason = "most members of etcd do not answer, and this host has the data of one"
        raise Conflict(reason, "niso cluster member alone goes on with them")
    if not os.path.lexists(os.path.join(paths.cluster_dir(), invitation.AUTHORITY_KEY)):
        raise Error("this host has never run a member of etcd", "run it on one that has")
    own_etcd.program()
    cluster_join.require_free(machine, cluster_join.ETCD)
    reach = own.etcd._replace(members=(own_etcd.client_place(own.address),))
    member = MemberStart((f"{own.host}={own_etcd.peer_url(own.address)}",))
    own = own._replace(etcd=reach, member=member)
    cluster_join.pause_etcd(machine)
    config.save(own)
    cluster_join.start_etcd(machine, own, report)
    return own


def backup(machine: Machine, path: str) -> int:
    """Write a snapshot of etcd's data to a file that only root can read; return its bytes."""
    own = _require_own_etcd(machine)
    if os.path.isdir(path):
        raise Error(f"{path} is a folder", "name a file in it")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise Error(f"{os.path.dirname(path)} does not exist", "make that folder first")
    try:
        files.require_plain(path)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}", "choose another file") from None
    draft, size = f"{path}.new", 0
    with own.engine() as engine:
        fd = files.make(draft, 0o600)
        try:
            for part in own_etcd.snapshot(engine):
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
        reason = "this cluster is in an etcd that is not niso's"
        raise Error(reason, "etcdctl changes its members and backs it up")
    return own


def _member(engine: Etcd, host: str) -> own_etcd.EtcdMember | None:
    return next((member for member in own_etcd.members(engine) if member.name == host), None)


def _count(own: Config) -> int:
    with own.engine() as engine:
        return cluster_join.voting(engine)


# --- the agent ------------------------------------------------------------------------------------


def follow(machine: Machine, log: Callable[[str], None]) -> Following:
    """Return the agent of this host, ready to run. Raises Error if the host is in no cluster."""
    own = require_member(machine)
    store = machine.store
    me = (own.host, store.state_id(), store.cluster_id(), paths.boot_id())

    def connect() -> Etcd:
        return config.require().engine()

    mend = _mending(machine) if own.encryption else None
    end, tend = partial(end_services, machine), partial(_tend, machine)
    agent = Agent(me, connect, end, log, own.keys, tend, mend)

    def work() -> None:
        log(f"following cluster {agent.cluster} as {agent.host}")
        agent.run(store, machine.kernel)

    held = Conflict("the agent of this host runs already", "niso cluster status")
    return Following(lambda: alone(AGENT_LOCK, held, work), agent.stop)


def _mending(machine: Machine) -> Callable[[bool], None]:
    """Return a function that repairs the encrypted network interface between the hosts.

    The agent calls the function in a thread. Unless its argument is true, it repairs only an
    interface that does not work. It raises Error.
    """

    stores: list[Store] = []

    def mend(whole: bool) -> None:
        if not stores:  # a store for this thread
            stores.append(Store.open())
        if whole or not encryption.serves(stores[0], machine.kernel):
            encryption.mend(stores[0], machine.kernel)

    return mend


def end_services(machine: Machine, services: list[str]) -> None:
    """Deactivate services that another host has claimed since, and detach such attachments.

    Services that share their namespaces are deactivated too. Raises Error.
    """
    store = machine.store
    recover(machine, names=services)  # it may complete the removal of one
    services = [name for name in services if store.service(name) is not None]
    attached = [name for name in services if store.attachments.get(name) is not None]
    for name in attached:
        attach.detach(machine, name)
    ending = [name for name in services if name not in attached]
    sharers = [sharer for name in ending for sharer in store.held_sharers(name)]
    deactivate(machine, list(dict.fromkeys((*sharers, *ending))))


def _tend_certificates(machine: Machine, own: Config, membership: ClusterKeys) -> None:
    """Record this host's certificate in etcd, and configure etcd here to refuse revoked ones.

    No-op if etcd may have lost its data, because this cluster or this host is not in it.
    """
    cluster, item = membership.cluster(), membership.host_item(own.host)
    if cluster is None or cluster.identity != machine.store.cluster_id():
        return
    if item is None or host_of(item, own.keys).state_id != machine.store.state_id():
        return
    path = os.path.join(paths.cluster_dir(), invitation.CERTIFICATE)
    serial = invitation.serial_of(path)
    if membership.keys.certificates(own.host) + serial not in membership.issued_to(own.host):
        membership.issued(own.host, serial)  # a backup of etcd's data did not have it
    if own.member is not None:
        refused = membership.refused()
        membership.refuse({*own_etcd.refuse(refused)} - {*refused})


def _tend(machine: Machine, engine: Etcd, whole: bool) -> None:
    """Update this host's values in etcd, and the list of etcd's members in cluster.toml.

    ``whole`` is false if hosts have only joined or left. Only a host with an etcd member acts then:
    members check certificates, and all agents would query etcd at the same time.
    """
    own = config.require()
    if not whole and own.member is None:
        return
    mtu = machine.kernel.mtu_of(own.address)
    if mtu is not None:
        ClusterKeys(engine, own.keys).refresh(as_member(machine, own, mtu))
    if not own.etcd.own:
        return
    _tend_certificates(machine, own, ClusterKeys(engine, own.keys))
    with own.engine() as client:
        places = own_etcd.endpoints(own_etcd.members(client))
    try:
        with service_lock(LOCK, 0):
            now = config.require()  # read again: a command may have changed it
            if places and places != now.etcd.members:
                config.save(now._replace(etcd=now.etcd._replace(members=places)))
    except Conflict:
        pass  # a command is changing the cluster
