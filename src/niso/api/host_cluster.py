"""Manage this host's cluster: ``host.cluster``."""

from __future__ import annotations

from niso.base import paths
from niso.base.errors import Error, InvalidInput, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.change import cluster_hosts, cluster_join
from niso.cluster import own_etcd
from niso.cluster.config import require
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Reach
from niso.look.session import ApiPart, as_usage, path, text, texts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import niso
    from niso.runtime.units import Following


# --- host.cluster ---------------------------------------------------------------------------------


class ExistingEtcd(NamedTuple):
    """Access to an etcd that niso does not run. Certificates and keys are PEM files."""

    urls: tuple[str, ...]
    cacert: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    user_file: str | os.PathLike[str] | None = None  # one line, NAME:PASSWORD
    prefix: str = ""


class Clusters(ApiPart):
    """The API of this host's cluster: ``host.cluster``."""

    def init(
        self,
        *,
        name: str = "",
        address: str = "",
        etcd: ExistingEtcd | None = None,
        encrypt: str = "",
        restore: bool = False,
    ) -> niso.Membership:
        """Create a cluster with this host as its first host.

        ``name`` defaults to the hostname, and ``address`` to the address of the interface with the
        default route. ``etcd`` is an existing etcd. If it is None, this host runs an etcd member.
        With ``encrypt`` "kernel", WireGuard encrypts the traffic between hosts. With "userspace",
        hosts whose kernel lacks WireGuard use the program wireguard-go. ``restore``, which excludes
        all other arguments, writes this host's cluster to etcd again after etcd has lost its data.
        Raises UsageError, Conflict, Error.
        """
        if restore:
            if name or address or encrypt or etcd is not None:
                reason = "the cluster that this host is in has the other values"
                raise UsageError(reason, "leave out the other options")

            machine = self.session.machine_for_change()
            return cluster_hosts.restore(machine)

        machine = self.session.machine_for_change(create=True)
        existing = None if etcd is None else _existing(etcd)
        host, where = text(name, "--name"), text(address, "--address")
        how = text(encrypt, "--encrypt")
        return _entering(lambda: cluster_join.init(machine, host, where, existing, how))

    def invite(
        self, host: str, *, address: str = "", renew: bool = False, member: bool = False
    ) -> str:
        """Return an invitation: a secret string with which a host can join the cluster.

        With ``renew``, the invitation has new certificates for a host that is already in the
        cluster. With ``member``, the host may run an etcd member. The first three hosts may run one
        even without ``member``. Raises UsageError, Conflict, Error.
        """
        machine = self.session.machine()
        name, where = text(host, "HOST"), text(address, "--address")
        return as_usage(lambda: cluster_join.invite(machine, name, where, renew, member))

    def join(
        self, invitation: bytes, *, member: bool | None = None, encrypt: str = ""
    ) -> niso.Membership:
        """Join a cluster with the content of an invitation.

        ``member`` decides whether this host runs an etcd member. By default, the first three hosts
        run one. ``encrypt`` ("kernel" or "userspace") is how this host encrypts traffic. The
        default is the cluster's own setting. Raises InvalidInput, Conflict, Error.
        """
        machine = self.session.machine_for_change(create=True)
        how = text(encrypt, "--encrypt")
        return _entering(lambda: cluster_join.join(machine, invitation, member, how))

    def leave(self, *, force: bool = False) -> str:
        """Remove this host from its cluster, and return the name that the host had in the cluster.

        With ``force``, the host leaves even if etcd does not answer. Raises Error, and Conflict if
        services of this host are on networks of the cluster.
        """
        machine = self.session.machine_for_change()
        return cluster_join.leave(machine, force).host

    def forget(self, host: str) -> niso.Forgotten:
        """Remove a dead host from the cluster. Raises NotFound, or Conflict if it is alive."""
        return cluster_hosts.forget(self.session.machine(), text(host, "HOST"))

    def add_member(self, host: str = "") -> int:
        """Start an etcd member on this host, and return the number of members that vote.

        ``host`` must be empty or the name of this host. Raises Conflict, Error.
        """
        machine = self.session.machine_for_change()
        return cluster_hosts.add_member(machine, text(host, "HOST"))

    def remove_member(self, host: str = "") -> int:
        """Remove the etcd member of a dead host, or of this host if ``host`` is empty.

        Returns the number of remaining members. Raises Conflict, NotFound, Error.
        """
        machine = self.session.machine_for_change()
        return cluster_hosts.remove_member(machine, text(host, "HOST"))

    def be_only_member(self) -> niso.Membership:
        """Make this host's etcd member the only one, after most members have failed for good.

        Raises Error, and Conflict if most members still answer.
        """
        machine = self.session.machine_for_change()
        return cluster_hosts.be_only_member(machine)

    def backup(self, file: str | os.PathLike[str]) -> int:
        """Write etcd's data to a file that only root can read. Return its size. Raises Error."""
        return cluster_hosts.backup(self.session.machine(), path(file, "FILE"))

    def status(self) -> niso.ClusterStatus:
        """Return the cluster's hosts and etcd's members. Raises Error outside a cluster."""
        machine = self.session.machine()
        seen, warnings = cluster_hosts.status(machine)
        for warning in warnings:
            self.session.caution(*warning)
        return seen

    def follow(self, log: Callable[[str], None]) -> Following:
        """Return this host's agent, which synchronises the host with the cluster.

        The agent's ``run()`` returns after ``stop()`` is called. ``log`` is called with each line
        to log. Raises Error if this host is in no cluster.
        """
        return cluster_hosts.follow(self.session.machine(), log)

    def become_etcd(self) -> None:
        """Replace this process with this host's etcd member. Raises Error if this host has none."""
        own_etcd.execute(require())


def _entering[T](call: Callable[[], T]) -> T:
    """Call a function that adds this host to a cluster, and return its result.

    An error names the argument that caused it. If the error is in a file that was unpacked from an
    invitation, the error names the invitation, because the file is removed.
    """
    try:
        return as_usage(call)
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


def _existing(given: ExistingEtcd) -> Reach:
    chosen = (given.cacert, given.cert, given.key, given.user_file)
    named = zip(chosen, ("--cacert", "--cert", "--key", "--user"), strict=True)
    cacert, cert, key, user = ("" if file is None else path(file, name) for file, name in named)
    urls = tuple(texts(given.urls, "--etcd"))
    return Reach(urls, cacert, cert, key, user, text(given.prefix, "--prefix"))
