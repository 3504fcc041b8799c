"""Create, join and leave a cluster; install the systemd units of its agent and of etcd.

A host is in a cluster as soon as its store has the cluster's id. If a command is interrupted before
that, the next command stops the etcd that was started, and removes its files.

Without systemd there are no units. niso then starts etcd in the background, because without etcd no
command of the cluster would work. The user must start the agent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from urllib.parse import urlsplit

from niso.base import files, paths
from niso.base.errors import Conflict, Error, InvalidInput, UsageError
from niso.base.locks import Lock, service_lock
from niso.base.named_tuples import NamedTuple
from niso.base.report import AskingCluster
from niso.change import cluster_claims
from niso.cluster import config, invitation, mirror, own_etcd
from niso.cluster.config import Config
from niso.cluster.encryption import chosen, prepare, renew, require_mtu, tunnel
from niso.cluster.engine import PREFIX, NoAnswer
from niso.cluster.etcd import Etcd, Reach
from niso.cluster.invitation import Invitation
from niso.cluster.key_values import Cluster, HostEntry, require_family
from niso.cluster.membership import ClusterKeys
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.runtime.units import WANTED_BY, ChangingUnit, agent, unit_file, wake_agent

LOCK = "niso.cluster"
LOCK_S = 60.0
MOST_MEMBERS = 3
"""The number of hosts that get an etcd member by default. With three members, one may fail."""


class Membership(NamedTuple):
    """Result of `Clusters.init` and `Clusters.join`: this host's membership."""

    cluster: str  # the cluster's id
    host: str  # this host's name
    address: str  # the host's address for traffic from other hosts
    member: bool  # whether it runs a member of etcd
    members: int  # number of etcd's members; 0 if niso does not run etcd


def membership_of(own: Config, cluster: str, members: int) -> Membership:
    return Membership(cluster, own.host, own.address, own.member is not None, members)


def init(
    machine: Machine, host: str, address: str, existing: Reach | None, encrypt: str
) -> Membership:
    """Create a cluster with this host as its first host.

    ``host`` and ``address`` are this host's name and address, or "" for the defaults. ``existing``
    is an etcd that niso does not run, or None. ``encrypt`` is "" or a kind in
    `niso.cluster.encryption`. After an error, everything that was created is removed. Raises
    UsageError, Conflict, Error or NoAnswer.
    """
    config.way_to_encrypt(encrypt, "--encrypt")
    host = config.host_name(host or os.uname().nodename.partition(".")[0].lower(), "--name")
    address = config.ip_address(address or _own_address(), "--address")
    mtu = _require_own(machine, address, "--address")
    with service_lock(LOCK, LOCK_S):
        _require_apart(machine)
        how = _encrypts(machine, encrypt, mtu, address)
        clear(machine)
        if existing is None:
            places = own_etcd.client_place(address), own_etcd.peer_url(address)
            reach = Reach((places[0],), *_OWN_FILES, own=True)
            own = Config(host, address, reach, config.MemberStart((f"{host}={places[1]}",)), how)
            own_etcd.program()
            require_free(machine, ETCD)
        else:
            own = Config(host, address, _reach(existing), None, how)
        require_free(machine, AGENT)
        try:
            os.makedirs(paths.cluster_dir(), 0o700, exist_ok=True)
            if existing is None:
                invitation.make_authority(paths.cluster_dir(), f"of {host}")
                invitation.issue(paths.cluster_dir(), paths.cluster_dir(), [address])
            config.save(own)
            if existing is None:
                start_etcd(machine, own)
            with own.engine() as engine:
                membership = ClusterKeys(engine, own.keys)
                left = None if membership.hosts() else membership.cluster()
                if left is not None and left.encryption != encrypt:
                    if not left.encryption:
                        reason = f"cluster {left.identity} is not encrypted"
                        raise Conflict(reason, "leave out --encrypt")
                    option = f"--encrypt={left.encryption}"
                    raise Conflict(f"cluster {left.identity} is encrypted with {option}", option)
                # the cluster that an interrupted command created
                cluster = left or membership.make(encryption=encrypt)
                if existing is None:
                    path = os.path.join(paths.cluster_dir(), invitation.CERTIFICATE)
                    membership.issued(host, invitation.serial_of(path))
                _record(machine, own, cluster, mtu)
        except BaseException:
            clear(machine)
            raise
        start_agent(machine)
    return membership_of(own, cluster.identity, 1 if existing is None else 0)


def _encrypts(machine: Machine, asked: str, mtu: int, address: str) -> str:
    if asked:
        require_mtu(address, mtu)
    return chosen(machine.kernel, asked) if asked else ""


_OWN_FILES = (invitation.AUTHORITY, invitation.CERTIFICATE, invitation.KEY)


def _reach(existing: Reach) -> Reach:
    """Validate the access to an etcd that niso does not run. Return it with default ports and
    absolute paths. Raises UsageError or Error.
    """
    places, schemes = [], set()
    for url in existing.members:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.path.strip("/") or not parts.netloc:
            reason = "is not a URL of etcd"
            raise UsageError(reason, "--etcd https://etcd1:2379", "--etcd", value=url)
        place = parts.netloc if parts.port else f"{parts.netloc}:{config.CLIENT_PORT}"
        places.append(config.endpoint(place, "--etcd"))
        schemes.add(parts.scheme)
    if schemes != {"https" if existing.cacert else "http"}:
        hint = "http has neither encryption nor authentication: use it for trials only"
        raise UsageError("https needs --cacert, and http has none", hint, "--etcd")
    prefix = config.key_prefix(existing.prefix or PREFIX, "--prefix")
    cacert, cert, key, user = (os.path.abspath(file) if file else "" for file in existing[1:5])
    return Reach(tuple(places), cacert, cert, key, user, prefix)


# --- invite and join ------------------------------------------------------------------------------


def invite(machine: Machine, host: str, address: str, renew: bool, member: bool) -> str:
    """Return a new invitation, with private keys, by which a host can join the cluster.

    With ``renew``, a host that is in the cluster gets new certificates. With ``member``, the host
    may run an etcd member; the first three hosts may always do so. Raises Conflict, Error,
    UsageError or InvalidInput.
    """
    own = require_member(machine)
    config.host_name(host, "HOST")
    with own.engine() as engine:
        known = {other.name: other for other in ClusterKeys(engine, own.keys).hosts()}
        if renew:
            if host not in known:
                raise Conflict(f"host {host} is not in the cluster", "leave out --renew")
            address = address or known[host].address
        elif host in known:
            hint = "--renew makes new certificates for it; a new host needs another name"
            raise Conflict(f"host {host} is in the cluster already", hint)
        elif not address:
            raise UsageError("is needed", "by which other hosts reach it", "--address")
        address = config.ip_address(address, "--address")
        if any(other.address == address and other.name != host for other in known.values()):
            raise Conflict(f"{address} is the address of another host", "choose another address")
        require_family(address, own.address, own.host)
        places = own.etcd.members
        if own.etcd.own:
            places = own_etcd.endpoints(own_etcd.members(engine)) or places
            member = member or (not renew and voting(engine) < MOST_MEMBERS)
            kept, serial = invitation.issued(own, address, member)
            ClusterKeys(engine, own.keys).issued(host, serial)
        elif member:
            raise UsageError("is for a cluster whose etcd niso runs", key="--member")
        else:
            kept = invitation.contents(own)
        cluster = ClusterKeys(engine, own.keys).cluster()
    encryption = cluster.encryption if cluster else ""
    reach = Reach(places, prefix=own.etcd.prefix, own=own.etcd.own)
    made = Invitation(
        machine.store.cluster_id(), config.OwnHost(host, address, encryption), reach, kept
    )
    return invitation.text_of(made)


def join(machine: Machine, text: bytes, member: bool | None, encrypt: str) -> Membership:
    """Join the cluster of an invitation. If this host is in the cluster, renew its certificates.

    ``text`` is the invitation. ``member`` is whether to run an etcd member on this host; None means
    if fewer than three hosts do. ``encrypt`` is the kind of encryption of this host's traffic, or
    "" for the cluster's default. After an error, everything that was created is removed, but a
    failure to start the etcd member does not undo the join. Raises InvalidInput, Conflict, Error or
    NoAnswer.
    """
    config.way_to_encrypt(encrypt, "--encrypt")
    invited = invitation.parsed(text)
    own = invited.config()
    if member and not own.etcd.own:
        raise UsageError("is for a cluster whose etcd niso runs", key="--member")
    with service_lock(LOCK, LOCK_S):
        if machine.store.cluster_id() == invited.cluster:
            return _renew(machine, invited, member)
        _require_apart(machine)
        mtu = _require_own(machine, own.address, "the invitation")
        if encrypt and not own.encryption:
            raise Conflict(f"cluster {invited.cluster} is not encrypted", "leave out --encrypt")
        if own.encryption:
            how = _encrypts(machine, encrypt or own.encryption, mtu, own.address)
            own = own._replace(encryption=how)
        # left by an interrupted attempt
        clear(machine)
        require_free(machine, AGENT)
        try:
            invitation.keep(invited.files)
            config.save(own)
            with own.engine() as engine:
                membership = ClusterKeys(engine, own.keys)
                cluster = membership.cluster()
                if cluster is None or cluster.identity != invited.cluster:
                    reason = f"etcd does not have cluster {invited.cluster}"
                    raise Error(reason, "the invitation is of another one, or its data were lost")
                count = voting(engine) if own.etcd.own else 0
                if member is None:
                    member = bool(invited.files.authority_key) and count < MOST_MEMBERS
                if member:
                    _require_key(invited)
                    _require_etcd()
                    require_free(machine, ETCD)
                else:
                    _drop_authority_key()
                _record(machine, own, cluster, mtu)
        except BaseException:
            clear(machine)
            raise
        # the host is in the cluster from here: no failure below undoes this
        start_agent(machine)
        if member:
            try:
                own = become_member(machine, own)
            except Error as error:
                reason = f"joined as {own.host}, but not as a member of etcd: {error.message}"
                raise Error(reason, "niso cluster member add tries it again") from error
            count += 1
    return membership_of(own, cluster.identity, count)


def _renew(machine: Machine, invited: Invitation, member: bool | None) -> Membership:
    """Install new certificates on this host of the cluster, and renew its encryption key."""
    own = config.require()
    if invited.host.name != own.host:
        raise Conflict(
            f"this host is {own.host} in the cluster, and the invitation is of {invited.host.name}",
            f"niso cluster invite {own.host} --renew",
        )
    if invited.host.address != own.address:
        raise Conflict(
            f"this host has {own.address} in the cluster, and the invitation is of"
            f" {invited.host.address}",
            "a host with another address leaves the cluster and joins it again",
        )
    invitation.require_valid(invited, own)
    invitation.keep(invited.files)
    if own.member is not None:
        own_etcd.prepare()
    elif not member:
        _drop_authority_key()
    else:
        _require_key(invited)
        own = become_member(machine, own)
    with own.engine() as engine:
        if own.encryption:
            renew(machine.store, machine.kernel)
            mtu = _require_own(machine, own.address, "cluster.toml")
            ClusterKeys(engine, own.keys).refresh(as_member(machine, own, mtu))
        return membership_of(own, invited.cluster, voting(engine) if own.etcd.own else 0)


# --- becoming a member of etcd --------------------------------------------------------------------


def become_member(machine: Machine, own: Config) -> Config:
    """Start an etcd member on this host. Return the new configuration. Raises Error or NoAnswer."""
    own_etcd.program()
    require_free(machine, ETCD)
    peer = own_etcd.peer_url(own.address)
    machine.report(AskingCluster())
    with own.engine() as engine:
        own_etcd.forget()
        try:
            own_etcd.add(engine, peer)
            initial = [f"{one.name or own.host}={one.peer}" for one in own_etcd.members(engine)]
            changed = own._replace(member=config.MemberStart(tuple(initial), joins=True))
            config.save(changed)
            start_etcd(machine, changed)
            own_etcd.promote(engine, peer)
            places = own_etcd.endpoints(own_etcd.members(engine))
            changed = changed._replace(etcd=own.etcd._replace(members=places))
            config.save(changed)
        except BaseException:
            end_member(machine, own, engine)
            raise
    return changed


def end_member(machine: Machine, own: Config, engine: Etcd) -> None:
    """Stop this host's etcd member and remove it from etcd. Raises Error or NoAnswer."""
    peer = own_etcd.peer_url(own.address)
    for member in own_etcd.members(engine):
        if member.peer == peer:
            own_etcd.remove(engine, member)
    end(machine, ETCD)
    config.save(own._replace(member=None))
    own_etcd.forget()


def voting(engine: Etcd) -> int:
    """Return the number of etcd members that vote. A new member does not vote at first."""
    return sum(not member.learns for member in own_etcd.members(engine))


def require_member(machine: Machine) -> Config:
    """Return this host's cluster.toml. Raises Error if the host is not in a cluster."""
    own = config.require()
    if not machine.store.cluster_id():
        reason = "joining the cluster was interrupted"
        raise Error(reason, "do it again: niso cluster init or niso cluster join")
    return own


def _require_apart(machine: Machine) -> None:
    identity = machine.store.cluster_id()
    if identity:
        raise Conflict(f"this host is in cluster {identity} already", "niso cluster status")


def _require_own(machine: Machine, address: str, key: str) -> int:
    mtu = machine.kernel.mtu_of(address)
    if mtu is None:
        reason = f"{address} is not an address of this host"
        raise InvalidInput(reason, "ip address lists them", key)
    return mtu


def as_member(machine: Machine, own: Config, mtu: int) -> HostEntry:
    """Return this host's entry for the cluster's list of hosts in etcd. ``mtu`` is in bytes."""
    store = machine.store
    tunnel = store.across.tunnel()
    public = tunnel.public if tunnel else ""
    return HostEntry(own.host, store.state_id(), own.address, mtu, True, paths.version(), public)


def _record(machine: Machine, own: Config, cluster: Cluster, mtu: int) -> None:
    store = machine.store
    host = HostEntry(own.host, store.state_id(), own.address, mtu, False, paths.version())
    if own.encryption:
        host = host._replace(public=prepare(machine.kernel))
    with own.engine() as engine:
        ClusterKeys(engine, own.keys).join(host)
    with Lock(), store.transaction():
        store.across.set_cluster(cluster.identity)
        if own.encryption:
            made = tunnel(cluster.identity, cluster.port, own.encryption, host)
            store.across.set_tunnel(made)


def clear(machine: Machine) -> None:
    """Stop the agent and etcd, and remove all files of a cluster that the host is no longer in."""
    end(machine, AGENT)
    end(machine, ETCD)
    own_etcd.forget()
    shutil.rmtree(paths.cluster_dir(), ignore_errors=True)
    for name in ("lease", "gone", "agent.wake", "etcd.pid"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(paths.run_dir(), name))


def _require_key(invited: Invitation) -> None:
    if not invited.files.authority_key:
        hint = f"niso cluster invite {invited.host.name} --member; or join without --member"
        raise InvalidInput("the invitation is not that of a member of etcd", hint)


def _require_etcd() -> None:
    try:
        own_etcd.program()
    except Error as error:
        error.hint = f"{error.hint}; with --no-member it is not needed"
        raise


def _drop_authority_key() -> None:
    path = os.path.join(paths.cluster_dir(), invitation.AUTHORITY_KEY)
    if os.path.lexists(path):
        files.remove(path)


def _own_address() -> str:
    """Return the address from which this host would send packets to the internet. No packet is
    sent. Raises UsageError if the host has no default route.
    """
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((far, 9))  # connecting a datagram socket sends nothing
                return str(probe.getsockname()[0])
            except OSError:
                continue
    raise UsageError("is needed, since this host has no default route", key="--address")


def leave(machine: Machine, force: bool) -> Config:
    """Remove this host from its cluster, and return its former configuration.

    With ``force``, the host leaves even if etcd does not answer. In this case the cluster still
    lists the host. Raises Conflict if services of this host are on networks that span hosts. Raises
    NoAnswer or Error.
    """
    store = machine.store
    own = config.require()
    with service_lock(LOCK, LOCK_S):
        spans = [network.name for network in store.networks() if network.span is not None]
        held = [service for name in spans for service, _ in store.members(name)]
        if held:
            reason = f"services are on networks of the cluster: {', '.join(sorted(set(held)))}"
            raise Conflict(reason, "the host can leave once they are removed, or on other networks")
        if store.cluster_id():
            cluster_claims.report_remaining(machine)
            _give_notice(machine, own, force)
        for name in spans:
            mirror.drop_network(store, machine.kernel, name, machine.report)
        with Lock(), store.transaction():
            store.across.set_cluster("")
        wake_agent()
        clear(machine)
    return own


def _give_notice(machine: Machine, own: Config, force: bool) -> None:
    """Delete this host's keys from etcd, and remove its etcd member. Raises Conflict if this host
    runs the only etcd member of several hosts. Raises NoAnswer unless ``force`` is true.
    """
    machine.report(AskingCluster())
    try:
        with own.engine() as engine:
            membership = ClusterKeys(engine, own.keys)
            alone = all(host.name == own.host for host in membership.hosts())
            if own.member is not None and not alone and voting(engine) < 2:
                reason = "this host runs the only member of etcd"
                raise Conflict(reason, "niso cluster member add on another host makes a second one")
            membership.leave(own.host, machine.store.state_id())
            if own.member is not None and not alone:
                end_member(machine, own, engine)
            if not alone:
                membership.withdraw(own.host)
    except NoAnswer as error:
        if not force:
            raise NoAnswer(
                error.reason,
                "with --force the host leaves without it; another host forgets it, if none has",
                error.unknown,
            ) from error


# --- the agent and etcd ---------------------------------------------------------------------------

AGENT, ETCD = "agent", "etcd"
_MARK = "# written by niso cluster, which also removes it; state folder "
_WORDS = {AGENT: ("agent",), ETCD: ("cluster", "etcd")}
_DESCRIPTIONS = {AGENT: "niso agent, which follows the cluster", ETCD: "etcd of niso's cluster"}
# a member waits for the other members, and no unit waits for it
_MORE = {
    AGENT: ("RestartSec=1",),
    ETCD: ("RestartSec=2", "TimeoutStartSec=infinity", "LimitNOFILE=40000"),
}


def unit_text(which: str, state_id: str) -> str:
    """Return the text of a systemd unit (systemd.service(5)). ``which`` is the agent or etcd."""
    lines = agent(f"{_MARK}{state_id}", _DESCRIPTIONS[which], _WORDS[which], _MORE[which])
    return "\n".join([*lines, "[Install]", f"WantedBy={WANTED_BY}", ""])


def require_free(machine: Machine, which: str) -> None:
    """Raise Conflict if the unit of the agent or etcd was not written for this state folder."""
    units = machine.processes.units
    if units.booted():
        systemd.refuse_foreign(units, [unit_file(which)], _MARK + machine.store.state_id())


def start_agent(machine: Machine) -> None:
    """Start the cluster's agent, and enable it at boot. Raises Error.

    If systemd is not the init, nothing is started, and a warning says how to start the agent.
    """
    if machine.processes.units.booted():
        _start_unit(machine, AGENT)
        return
    hint = "run niso agent; at boot, niso cluster etcd on members, and niso agent"
    machine.caution("systemd did not boot this machine, so nothing runs the agent", (hint,))


def start_etcd(machine: Machine, own: Config) -> None:
    """Start this host's etcd member and wait until it answers. systemd also starts it at boot."""
    if machine.processes.units.booted():
        _start_unit(machine, ETCD)
    else:
        own_etcd.start(own)
    machine.report(AskingCluster())
    own_etcd.wait(own)


def pause_etcd(machine: Machine) -> None:
    """Stop this host's etcd member until the next `start_etcd`. Raises Error."""
    if machine.processes.units.booted():
        machine.processes.units.stop([ETCD])
    own_etcd.stop()


def end(machine: Machine, which: str) -> None:
    """Stop the agent or etcd, and remove its unit if niso wrote the unit. Raises Error."""
    units = machine.processes.units
    if units.booted() and systemd.ours(units, [unit_file(which)], _MARK):
        units.stop([which])
        units.remove([which])
        machine.report(ChangingUnit("remove", unit_file(which)))
    if which == ETCD:
        own_etcd.stop()


def _start_unit(machine: Machine, which: str) -> None:
    units = machine.processes.units
    require_free(machine, which)
    text = unit_text(which, machine.store.state_id())
    systemd.put(units, {unit_file(which): text}, machine.report)
    units.enable([which])
    units.start([which])
