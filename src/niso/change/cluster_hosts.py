"""Show a cluster's hosts, remove dead hosts, manage etcd's members and backups, run the agent."""

from __future__ import annotations

import os
import time
from functools import partial

from niso.base import files, paths
from niso.base.errors import Conflict, Error, NotFound
from niso.base.locks import service_lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner
from niso.change import attach, cluster_check, cluster_join
from niso.change.cluster_join import LOCK, Membership, as_member, membership_of, require_member
from niso.change.deactivate import deactivate
from niso.change.journal import recover
from niso.cluster import config, encryption, invitation, own_claims, own_etcd
from niso.cluster.agent import Agent, last
from niso.cluster.config import Config, MemberStart
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Etcd
from niso.cluster.key_values import HostEntry, host_of
from niso.cluster.membership import ClusterKeys
from niso.runtime import units
from niso.runtime.machine import Machine
from niso.runtime.units import Following, alone
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.cluster.etcd import Etcd


AGENT_LOCK = "niso.agent"


class ClusterMember(NamedTuple):
    """An etcd member of the cluster."""

    name: str  # the member's name, which is its host's name; empty if etcd does not answer
    address: str  # its client endpoint
    version: str | None  # etcd's version; null if the member does not answer
    leader: bool  # whether the member is etcd's leader
    learns: bool  # whether the member is a learner, which does not vote yet


class ClusterHost(NamedTuple):
    """A host of the cluster."""

    name: str  # the host's name
    address: str  # the host's address for traffic from other hosts
    state: str  # here, alive, gone, or unknown if etcd does not answer
    gone_s: float | None
    """seconds since an agent found the host missing; null if it is not gone or no agent noticed"""
    networks: tuple[str, ...]  # strings: the networks that services of the host are on
    services: int  # the number of services that the host has reserved in etcd
    niso: str  # version of niso on the host; can be empty
    behind_s: float | None  # seconds by which the host's agent lags; null if unknown


class ClusterStatus(NamedTuple):
    """The cluster as this host sees it."""

    cluster: str  # the cluster's id
    host: str  # this host's name
    answers: bool  # whether etcd answers; if not, hosts are as this host last recorded them
    revision: int  # etcd's revision; 0 if etcd does not answer
    tls: bool  # whether requests to etcd are encrypted
    encryption: str | None
    """what encrypts this host's traffic to others: kernel or userspace; null if nothing does"""
    members: tuple[ClusterMember, ...]  # etcd's members
    hosts: tuple[ClusterHost, ...]  # hosts, sorted by name
    networks: tuple[str, ...]
    """strings: networks that span hosts; if etcd does not answer, those of this host"""


def status(machine: Machine) -> tuple[ClusterStatus, list[tuple[str, tuple[str, ...]]]]:
    """Return the state of the cluster as this host sees it, and warnings with their next steps.

    If etcd does not answer, returns what this host has recorded. Raises Error.
    """
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
                    " recover makes it again from what this host knows",
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
    warnings: list[tuple[str, tuple[str, ...]]] = []
    if problem is not None:
        hints = (problem.hint or "", "hosts are listed as this one knew them last")
        warnings.append((problem.message, hints))
    asked = [(member, own_etcd.state(own.access(), member.client)) for member in known]
    states = [state for _, state in asked if state is not None]
    warnings += [(line, (step,)) for line, step in own_etcd.alarmed(states)]
    warnings += [(found.text, ()) for found in cluster_check.lost_address(machine, own)]
    leaders = {state.leader for state in states}
    now, (at_s, gone) = time.monotonic(), last()

    def described(host: HostEntry) -> ClusterHost:
        claimed = [
            claim
            for claim in claims
            if claim.host == host.name and claim.service == owner(claim.service)
        ]
        used = sorted({network for claim in claimed for network in claim.networks})
        here = host.name == own.host
        known_state = "alive" if problem is None else "unknown"
        state = "here" if here else known_state if host.alive else "gone"
        gone_at = gone.get(host.name) if state == "gone" else None
        gone_s = None if gone_at is None else now - gone_at
        behind_s: float | None = None
        if host.alive and problem is None:
            behind_s = late.get(host.name, 0)
        elif here and at_s is not None:  # its agent is not running, or reaches no etcd
            behind_s = now - at_s
        where = (host.name, host.address, state, gone_s)
        return ClusterHost(*where, tuple(used), len(claimed), host.version, behind_s)

    seen = ClusterStatus(
        store.cluster_id(),
        own.host,
        problem is None,
        max((state.revision for state in states), default=0) if problem is None else 0,
        bool(own.etcd.cacert),
        own.encryption or None,
        tuple(
            ClusterMember(
                member.name,
                member.client,
                state.version if state else None,
                bool(member.identity) and member.identity in leaders,
                member.learns,
            )
            for member, state in asked
        ),
        tuple(map(described, hosts)),
        networks,
    )
    return seen, warnings


def _members(own: Config, engine: Etcd | None) -> list[own_etcd.EtcdMember]:
    if engine is not None and own.etcd.own:
        return own_etcd.members(engine)
    return [own_etcd.EtcdMember("", "", "", place, False) for place in own.etcd.members]


class Forgotten(NamedTuple):
    """Result of `forget`: what was removed from the cluster with a dead host."""

    services: tuple[str, ...]  # names of the services that the host had
    certificates: int  # number of the host's certificates that were revoked


def forget(machine: Machine, host: str) -> Forgotten:
    """Remove a dead host from the cluster with all its claims, and revoke its certificates.

    If the host has left or never joined, only its certificates are revoked. Raises NotFound if
    there is no such host and no certificate, Conflict if the host is alive, and NoAnswer if etcd
    fails.
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


def add_member(machine: Machine, host: str) -> int:
    """Start an etcd member on this host, and return the number of voting members.

    ``host`` must be "" or this host's name. Raises Error.
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
        cluster_join.become_member(machine, own)
    return _count(own)


def remove_member(machine: Machine, host: str) -> int:
    """Remove the etcd member of this host (``host`` is "") or of a dead host.

    Returns the number of voting members that remain. Raises NotFound, NoAnswer or Error. Raises
    Conflict if the member is the only one, or if the other host is alive.
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
            cluster_join.end_member(machine, own, engine)
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


def be_only_member(machine: Machine) -> Membership:
    """Make this host's etcd member the only member, with its data, after most members have failed
    for good.

    Raises Conflict if most members answer, and Error if this host has no member or etcd fails.
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
        cluster_join.start_etcd(machine, own)
    return membership_of(own, machine.store.cluster_id(), 1)


def restore(machine: Machine) -> Membership:
    """Write this host's record of the cluster to etcd, after etcd has lost its data.

    If no etcd answers, this host starts the first member. Raises Conflict if etcd contains the data
    of a cluster, or if this host has data of an etcd member that could be used instead. Raises
    NoAnswer or Error.
    """
    own = require_member(machine)
    store = machine.store
    mtu = machine.kernel.mtu_of(own.address)
    if mtu is None:
        raise Error(f"{own.address} is no longer an address of this host", "ip address lists them")
    with service_lock(LOCK):
        own = _answering(machine, own)
        if (store.across.tunnel() is not None) != bool(own.encryption):
            reason = "cluster.toml and the store differ on whether the cluster is encrypted"
            raise Error(reason, "nothing is written: niso cluster leave, and join again")
        with own.engine() as engine:
            membership = ClusterKeys(engine, own.keys)
            host = as_member(machine, own, mtu)
            made = own_claims.restore(store, membership, host, own.encryption)
            if own.etcd.own:
                _tend_certificates(machine, own, membership)
        units.wake_agent()
    return membership_of(own, made.identity, _count(own) if own.etcd.own else 0)


def _answering(machine: Machine, own: Config) -> Config:
    """Return a configuration with which etcd answers. If none does, start an etcd member here."""
    try:
        with own.engine() as engine:
            engine.mark(own.keys.prefix)
        return own
    except NoAnswer as error:
        if isinstance(error, Refused) or not own.etcd.own:
            raise
    if os.path.lexists(os.path.join(own_etcd.data(), "member")):
        reason = "most members of etcd do not answer, and this host has the data of one"
        raise Conflict(reason, "niso cluster recover --help says how to go on with it")
    if not os.path.lexists(os.path.join(paths.cluster_dir(), invitation.AUTHORITY_KEY)):
        raise Error("this host has never run a member of etcd", "run it on one that has")
    own_etcd.program()
    cluster_join.require_free(machine, cluster_join.ETCD)
    reach = own.etcd._replace(members=(own_etcd.client_place(own.address),))
    member = MemberStart((f"{own.host}={own_etcd.peer_url(own.address)}",))
    own = own._replace(etcd=reach, member=member)
    cluster_join.pause_etcd(machine)
    config.save(own)
    cluster_join.start_etcd(machine, own)
    return own


def backup(machine: Machine, path: str) -> int:
    """Write a snapshot of etcd's data to a file that only root can read. Return its size."""
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
    """Return the agent of this host's cluster, ready to be run. Raises Error outside a cluster."""
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
    """Return a function that repairs the WireGuard interface between the hosts, for the agent.

    The agent calls the function in a thread. If its argument is true, the function always
    configures the interface again, otherwise only if the interface does not work. The function
    raises Error.
    """

    stores: list[Store] = []

    def mend(whole: bool) -> None:
        if not stores:  # a store for this thread
            stores.append(Store.open())
        if whole or not encryption.serves(stores[0], machine.kernel):
            encryption.mend(stores[0], machine.kernel)

    return mend


def end_services(machine: Machine, services: list[str]) -> None:
    """Deactivate services, or detach attachments, whose names another host has claimed.

    Services that share the namespaces of these services are deactivated too.
    """
    store = machine.store
    recover(machine, names=services)  # this may complete the removal of a service
    services = [name for name in services if store.service(name) is not None]
    attached = [name for name in services if store.attachments.get(name) is not None]
    for name in attached:
        attach.detach(machine, name)
    ending = [name for name in services if name not in attached]
    sharers = [sharer for name in ending for sharer in store.held_sharers(name)]
    deactivate(machine, list(dict.fromkeys((*sharers, *ending))))


def _tend_certificates(machine: Machine, own: Config, membership: ClusterKeys) -> None:
    """Record this host's certificate in etcd, and make its etcd member refuse revoked certificates.
    Does nothing if etcd has lost the cluster's data.
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

    ``whole`` is false if hosts have only joined or left. Hosts without an etcd member then do
    nothing: only members check certificates, and the agents of all hosts would burden etcd at the
    same time.
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
