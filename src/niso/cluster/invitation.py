"""Write and read invitations: one file with all that a host needs to join a cluster.

It contains the host's own certificate and key, so that no service has to sign certificates. The
invitation of a host that becomes a member of etcd also has the authority's key, with which it can
invite others.
"""

from __future__ import annotations

import os

from niso.base import convert, files, paths
from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import NamedTuple
from niso.cluster import certificates, config
from niso.cluster.config import Config, Own, Reach
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.membership import Membership
from niso.manifest import values

MAX_BYTES = 64 * 1024
_HEAD = "# an invitation of niso cluster: who has it is a host of the cluster\n"
_USER = "user"
_NOT_ONE = "make a new one: niso cluster invite HOST --address A"


class Files(NamedTuple):
    """Contents of the files that a host needs to reach etcd; "" for none."""

    cacert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    authority_key: str = ""


class Invitation(NamedTuple):
    cluster: str  # id of the cluster
    host: Own
    etcd: Reach  # paths are empty: the contents are in `files`
    files: Files

    def config(self) -> Config:
        """Return the cluster.toml of the invited host."""
        kept = self.files
        return Config(
            self.host.name,
            self.host.address,
            self.etcd._replace(
                cacert=certificates.AUTHORITY if kept.cacert else "",
                cert=certificates.CERTIFICATE if kept.cert else "",
                key=certificates.KEY if kept.key else "",
                user_file=_USER if kept.user else "",
            ),
            encryption=self.host.encryption,
        )


def text_of(invitation: Invitation) -> str:
    """Format an invitation as TOML."""
    lines = [_HEAD, config.line("cluster", invitation.cluster)]
    for table, data in convert.plain(invitation).items():
        if isinstance(data, dict):
            lines.append(f"\n[{table}]\n")
            lines += [config.line(name, value) for name, value in data.items() if value != ""]
    return "".join(lines)


def parsed(text: bytes) -> Invitation:
    """Parse an invitation. Raises InvalidInput; its message contains nothing of the text."""
    import tomllib

    try:
        if len(text) > MAX_BYTES:
            raise ValueError
        invitation = convert.convert(tomllib.loads(text.decode()), Invitation)
        if not (invitation.cluster.isascii() and invitation.cluster.isalnum()):
            raise ValueError
        config.host_name(invitation.host.name, "host.name")
        config.ip_address(invitation.host.address, "host.address")
        config.way_to_encrypt(invitation.host.encryption, "host.encryption")
        for member in invitation.etcd.members:
            config.endpoint(member, "etcd.members")
        config.key_prefix(invitation.etcd.prefix, "etcd.prefix")
    except (ValueError, convert.Mismatch, InvalidInput, RecursionError):
        raise InvalidInput("not an invitation of niso cluster", _NOT_ONE) from None
    if not invitation.etcd.members:
        raise InvalidInput("not an invitation of niso cluster", _NOT_ONE)
    return invitation


def contents(own: Config) -> Files:
    """Read the files by which this host reaches etcd. Raises Error."""
    access = own.access()
    wanted = (access.authority, access.certificate, access.key, access.user_file)
    return Files(*(_content(path) if path else "" for path in wanted))


def issued(own: Config, address: str, member: bool) -> tuple[Files, str]:
    """Create a certificate for a host with this address; return its files and its serial number.

    Only hosts that become members get the authority's key: its holder can make certificates that no
    other host knows, and so cannot revoke. Raises Error if this host does not have the key.
    """
    import tempfile

    folder = paths.cluster_dir()
    key = os.path.join(folder, certificates.AUTHORITY_KEY)
    if not os.path.lexists(key):
        raise Error(
            f"{own.host} has no key to sign certificates with",
            "niso cluster status shows the members of etcd: run it on one of them",
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as made:
        certificates.issue(folder, made, [address])
        serial = certificates.serial(os.path.join(made, certificates.CERTIFICATE))
        authority = _content(os.path.join(folder, certificates.AUTHORITY))
        cert, private = (
            _content(os.path.join(made, name))
            for name in (certificates.CERTIFICATE, certificates.KEY)
        )
    return Files(authority, cert, private, "", _content(key) if member else ""), serial


def keep(made: Files, folder: str = "") -> None:
    """Write the files of an invitation into a folder, each atomically.

    The default is the folder of cluster.toml. Raises OSError.
    """
    named = {
        certificates.AUTHORITY: made.cacert,
        certificates.CERTIFICATE: made.cert,
        certificates.KEY: made.key,
        certificates.AUTHORITY_KEY: made.authority_key,
        _USER: made.user,
    }
    folder = folder or paths.cluster_dir()
    os.makedirs(folder, 0o700, exist_ok=True)
    for name, text in named.items():
        if text:
            files.replace(os.path.join(folder, name), text.encode(), 0o600)
    files.sync(folder)


def require_valid(invited: Invitation, own: Config) -> None:
    """Check an invitation's files by a request to this host's cluster, before they are installed.

    Raises InvalidInput if they are of another cluster, NoAnswer.
    """
    import tempfile

    with tempfile.TemporaryDirectory(dir=paths.cluster_dir(), prefix="new-") as folder:
        keep(invited.files, folder)
        new = invited.config().etcd
        chosen = (new.cacert, new.cert, new.key, new.user_file)
        cacert, cert, key, user = (os.path.join(folder, file) if file else "" for file in chosen)
        reach = Reach(own.etcd.members, cacert, cert, key, user, own.etcd.prefix, own.etcd.own)
        try:
            with own._replace(etcd=reach).engine() as engine:
                cluster = Membership(engine, own.keys).cluster()
        except Error as error:
            if isinstance(error, NoAnswer) and not isinstance(error, Refused):
                raise
            reason = f"the files of the invitation do not work: {error.message}"
            raise InvalidInput(reason, _NOT_ONE) from None
        if cluster is None or cluster.identity != invited.cluster:
            raise InvalidInput(f"the invitation does not lead to cluster {invited.cluster}")


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        raise Error(f"cannot be read: {error}", file=values.escaped(path)) from None
