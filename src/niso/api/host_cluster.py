"""Manage the cluster (``host.cluster``), and apply Kubernetes' policies (``host.kubernetes``)."""

from __future__ import annotations

from niso.base import paths
from niso.base.errors import Error, InvalidInput, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.change import cluster_check, cluster_hosts, cluster_join
from niso.change.cluster_join import Existing
from niso.cluster import own_etcd
from niso.cluster.config import require
from niso.cluster.engine import NoAnswer, Refused
from niso.look.session import Session, guarded, path, text, texts
from niso.runtime.units import UNITS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from niso.change.boot import Marked
    from niso.change.cluster_hosts import Forgotten, Status
    from niso.change.cluster_join import Joined
    from niso.cluster.config import Config
    from niso.cluster.key_values import Host
    from niso.runtime.units import Following


# --- host.cluster ---------------------------------------------------------------------------------


class ExistingEtcd(NamedTuple):
    """An etcd that niso does not run.

    Files are PEM; ``user_file`` has one line, NAME:PASSWORD.
    """

    urls: tuple[str, ...]
    cacert: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    user_file: str | os.PathLike[str] | None = None
    prefix: str = ""


class Membership(NamedTuple):
    """Result of `Clusters.init` and `Clusters.join`: this host's membership."""

    cluster: str
    """the cluster's id"""
    host: str
    """this host's name"""
    address: str
    """its address for the other hosts"""
    member: bool
    """whether it runs a member of etcd"""
    members: int
    """number of etcd's members; 0 if niso does not run etcd"""


class ClusterMember(NamedTuple):
    """A member of etcd."""

    name: str
    """its name, which is that of its host; empty if etcd does not answer"""
    address: str
    """its client endpoint"""
    version: str | None
    """etcd's version; null if it does not answer"""
    leader: bool
    """whether it leads the others"""
    learns: bool
    """whether it is a learner, which does not count for the quorum yet"""


class ClusterHost(NamedTuple):
    """A host of the cluster."""

    name: str
    """its name"""
    address: str
    """its address for the other hosts"""
    state: str
    """here, alive or gone"""
    gone_s: float | None
    """seconds since it was seen gone; null if it is not gone, or no agent has seen it"""
    networks: tuple[str, ...]
    """strings: the networks of its services"""
    services: int
    """number of services that it has claimed"""
    niso: str
    """its version of niso; can be empty"""
    behind_s: float | None
    """seconds by which its agent lags; null if unknown"""


class ClusterStatus(NamedTuple):
    """The cluster as this host sees it."""

    cluster: str
    """its id"""
    host: str
    """this host's name"""
    answers: bool
    """whether etcd answers; otherwise hosts are as this one last knew them"""
    revision: int
    """etcd's revision; 0 without an answer"""
    tls: bool
    """whether requests are encrypted"""
    encryption: str | None
    """what encrypts this host's traffic to others: kernel or userspace; null if nothing does"""
    members: tuple[ClusterMember, ...]
    """etcd's members"""
    hosts: tuple[ClusterHost, ...]
    """hosts, sorted by name"""
    networks: tuple[str, ...]
    """strings: the networks that span hosts; without an answer those of this host"""


class Clusters:
    """Manage this host's cluster: ``host.cluster``."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @guarded
    def init(
        self,
        *,
        name: str = "",
        address: str = "",
        etcd: ExistingEtcd | None = None,
        encrypt: str = "",
        restore: bool = False,
    ) -> Membership:
        """Create a cluster with this host as the first.

        ``name`` defaults to the hostname, ``address`` to that of the default route. With ``etcd``
        an existing one is used; otherwise this host runs one. With ``encrypt`` "kernel", WireGuard
        encrypts traffic between hosts; with "userspace", wireguard-go does so on hosts whose kernel
        lacks it. ``restore``, without other arguments, writes this host's cluster again after etcd
        has lost its data. Raises UsageError, Conflict, Error.
        """
        if restore:
            if name or address or encrypt or etcd is not None:
                raise UsageError(
                    "the cluster that this host is in has the other values",
                    "leave out the other options",
                    "--restore",
                )

            machine = self.session.machine_for_change()
            return _membership(cluster_hosts.restore(machine, self.session.report))

        machine = self.session.machine_for_change(create=True)
        existing = None if etcd is None else _existing(etcd)
        made = _entering(
            lambda: cluster_join.init(
                machine,
                text(name, "--name"),
                text(address, "--address"),
                existing,
                self.session.report,
                text(encrypt, "--encrypt"),
            )
        )
        return _membership(made)

    @guarded
    def invite(
        self, host: str, *, address: str = "", renew: bool = False, member: bool = False
    ) -> str:
        """Return an invitation for a host, a text with a key: whoever has it can join as that host.

        With ``renew``, it is for a host of the cluster, with new certificates. With ``member``, the
        host may run an etcd member, as the first three hosts do anyway. Raises UsageError,
        Conflict, Error.
        """

        machine = self.session.machine()
        name, where = text(host, "HOST"), text(address, "--address")
        return _usage(lambda: cluster_join.invite(machine, name, where, renew, member))

    @guarded
    def join(
        self, invitation: bytes, *, member: bool | None = None, encrypt: str = ""
    ) -> Membership:
        """Join a cluster with the content of an invitation.

        ``member`` says whether to run an etcd member; by default the first three hosts do.
        ``encrypt`` is for a host of an encrypted cluster that may encrypt differently from the
        cluster's default: "kernel" or "userspace". Raises InvalidInput, Conflict, Error.
        """

        machine = self.session.machine_for_change(create=True)
        how, report = text(encrypt, "--encrypt"), self.session.report
        return _membership(
            _entering(lambda: cluster_join.join(machine, invitation, member, report, how))
        )

    @guarded
    def leave(self, *, force: bool = False) -> str:
        """Remove this host from its cluster; return its name there.

        With ``force`` also if etcd does not answer. Raises Conflict if the host has services there,
        Error.
        """

        machine = self.session.machine_for_change()
        return cluster_join.leave(machine, force, self.session.report).host

    @guarded
    def forget(self, host: str) -> Forgotten:
        """Remove a lost host with all its claims, and revoke its certificates.

        Raises NotFound, Conflict if it is alive.
        """

        return cluster_hosts.forget(self.session.machine(), text(host, "HOST"))

    @guarded
    def add_member(self, host: str = "") -> int:
        """Run an etcd member on this host; return the number of members. Raises Conflict, Error."""

        machine = self.session.machine_for_change()
        return cluster_hosts.add_member(machine, text(host, "HOST"), self.session.report)

    @guarded
    def remove_member(self, host: str = "") -> int:
        """Remove this host's etcd member, or that of a lost host; return how many are left.

        Raises Conflict, NotFound, Error.
        """

        machine = self.session.machine_for_change()
        return cluster_hosts.remove_member(machine, text(host, "HOST"), self.session.report)

    @guarded
    def be_only_member(self) -> None:
        """Continue with this host's etcd member alone, after most were lost for good.

        Raises Conflict if most members answer, Error.
        """

        cluster_hosts.be_only_member(self.session.machine_for_change(), self.session.report)

    @guarded
    def backup(self, file: str | os.PathLike[str]) -> int:
        """Write etcd's data to a file that only root can read; return its size. Raises Error.

        The size is in bytes.
        """

        return cluster_hosts.backup(self.session.machine(), path(file, "FILE"))

    @guarded
    def status(self) -> ClusterStatus:
        """Return the hosts and etcd's members. Raises Error if this host is in no cluster."""

        machine = self.session.machine()
        seen = cluster_hosts.status(machine)
        if seen.problem is not None:
            self.session.caution(
                seen.problem.message,
                (seen.problem.hint or "", "hosts are listed as this one knew them last"),
            )
        for line, step in own_etcd.alarmed(state for _, state in seen.members if state):
            self.session.caution(line, (step,))
        for finding in cluster_check.lost_address(machine, seen.own):
            self.session.caution(finding.text)
        return _status(seen)

    @guarded
    def follow(self, log: Callable[[str], None]) -> Following:
        """Return this host's agent: ``run()`` synchronises it with the cluster until ``stop()``.

        ``log`` takes lines of text. Raises Error if this host is in no cluster.
        """

        return cluster_hosts.follow(self.session.machine(), log)

    @guarded
    def become_etcd(self) -> None:
        """Execute this host's etcd member in this process. Raises Error if it has none."""

        own_etcd.execute(require())


def _usage[T](call: Callable[[], T]) -> T:
    """Return the result of a call; convert an InvalidInput without a file to a UsageError."""

    try:
        return call()
    except InvalidInput as error:
        if error.file:
            raise
        raise UsageError.of(error) from None


def _entering[T](call: Callable[[], T]) -> T:
    """Return the result of a call that adds this host to a cluster; converts errors like `_usage`.

    An error names what the caller passed, because the files created from it are removed again.
    """

    try:
        return _usage(call)
    except NoAnswer as error:
        if not isinstance(error, Refused):
            error.hint = (
                "etcd has to run there and accept the certificate, and firewalls let its port pass"
            )
        raise
    except Error as error:
        if not error.file.startswith(paths.cluster_dir()):
            raise
        hint = "make a new one: niso cluster invite HOST --address ADDRESS"
        raise InvalidInput(f"the invitation has {error.reason}", hint) from None


def _existing(given: ExistingEtcd) -> Existing:

    chosen = (given.cacert, given.cert, given.key, given.user_file)
    named = zip(chosen, ("--cacert", "--cert", "--key", "--user"), strict=True)
    cacert, cert, key, user = ("" if file is None else path(file, name) for file, name in named)
    urls = tuple(texts(given.urls, "--etcd"))
    return Existing(urls, cacert, cert, key, user, text(given.prefix, "--prefix"))


def _membership(made: Joined) -> Membership:
    own: Config = made.config
    return Membership(made.cluster, own.host, own.address, own.member is not None, made.members)


def _status(seen: Status) -> ClusterStatus:
    states = [state for _, state in seen.members if state is not None]
    leaders = {state.leader for state in states}
    return ClusterStatus(
        seen.cluster,
        seen.own.host,
        seen.problem is None,
        max((state.revision for state in states), default=0) if seen.problem is None else 0,
        bool(seen.own.etcd.cacert),
        seen.own.encryption or None,
        tuple(
            ClusterMember(
                member.name,
                member.client,
                state.version if state else None,
                bool(member.identity) and member.identity in leaders,
                member.learns,
            )
            for member, state in seen.members
        ),
        tuple(_host(host, seen) for host in seen.hosts),
        seen.networks,
    )


def _host(host: Host, seen: Status) -> ClusterHost:
    held = [claim for claim in seen.claims if claim.host == host.name]
    networks = sorted({network for claim in held for network in claim.networks})
    here = host.name == seen.own.host
    state = "here" if here else "alive" if host.alive else "gone"
    gone_s = seen.gone_s.get(host.name) if state == "gone" else None
    where = (host.name, host.address, state, gone_s)
    behind_s: float | None = None
    if host.alive and seen.problem is None:
        behind_s = seen.late_s.get(host.name, 0)
    elif here:  # its agent is not running, or cannot reach the cluster
        behind_s = seen.looked_s
    return ClusterHost(*where, tuple(networks), len(held), host.version, behind_s)


# --- host.kubernetes ------------------------------------------------------------------------------


KUBECONFIG = "/etc/niso/kubeconfig"


class Kubernetes:
    """The agent that applies Kubernetes' network policies to the pods of this node."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @guarded
    def follow(
        self, log: Callable[[str], None], kubeconfig: str | os.PathLike[str] = KUBECONFIG
    ) -> Following:
        """Return the agent: ``run()`` follows the API server until ``stop()`` is called.

        ``log`` takes lines of text. Raises Error if the kubeconfig is unusable.
        """

        from niso.engines import pod_agent

        config = path(kubeconfig, "--kubeconfig")
        return pod_agent.follow(self.session.machine(create=True), config, log)

    @guarded
    def enable(self, kubeconfig: str | os.PathLike[str] = KUBECONFIG) -> Marked:
        """Let systemd run the agent, now and at boot. Raises Error without systemd, Conflict."""

        from niso.engines import pod_agent

        config = path(kubeconfig, "--kubeconfig")
        machine = self.session.machine_for_change(create=True)
        changed = pod_agent.enable(machine, config, self.session.report)
        return _marked(changed)

    @guarded
    def disable(self) -> Marked:
        """Stop the agent and do not start it at boot. Pods keep their present policies."""

        from niso.engines import pod_agent

        return _marked(pod_agent.disable(self.session.machine_for_change(), self.session.report))


def _marked(changed: bool) -> Marked:

    from niso.change.boot import Marked
    from niso.engines import pod_agent

    return Marked(pod_agent.UNIT, changed, f"{UNITS}/{pod_agent.UNIT}")
