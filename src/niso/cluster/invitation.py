"""Write and read invitations to a cluster; create its authority and certificates with openssl(1).

An invitation is one file with the invited host's own certificate and key, so no server is needed to
sign certificates. The invitation of a host that becomes a member of etcd also contains the
authority's key, with which the host can invite other hosts.

A host's certificate has no subject, because etcd's gateway refuses certificates with a common name
when etcd has users. The extension subjectAltName is therefore critical (RFC 5280, 4.2.1.6).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Sequence

from niso.base import convert, paths
from niso.base.errors import Error, InvalidInput
from niso.base.files import replace, sync
from niso.base.named_tuples import NamedTuple
from niso.base.text import escaped
from niso.cluster import config
from niso.cluster.config import Config, OwnHost
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.etcd import Reach
from niso.cluster.membership import ClusterKeys

MAX_BYTES = 64 * 1024
_HEAD = "# an invitation of niso cluster: who has it is a host of the cluster\n"
_USER = "user"
_NOT_ONE = "make a new one: niso cluster invite HOST --address A"


class Files(NamedTuple):
    """The contents of the files that a host needs to reach etcd. An unneeded file is ""."""

    cacert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    authority_key: str = ""


class Invitation(NamedTuple):
    cluster: str  # id of the cluster
    host: OwnHost
    etcd: Reach  # paths are empty: the contents are in `files`
    files: Files

    def config(self) -> Config:
        """Build the configuration that the invited host will have in its cluster.toml."""
        kept = self.files
        return Config(
            self.host.name,
            self.host.address,
            self.etcd._replace(
                cacert=AUTHORITY if kept.cacert else "",
                cert=CERTIFICATE if kept.cert else "",
                key=KEY if kept.key else "",
                user_file=_USER if kept.user else "",
            ),
            encryption=self.host.encryption,
        )


def text_of(invitation: Invitation) -> str:
    """Return the content of an invitation's file."""
    return config.toml_of(_HEAD, invitation)


def parsed(text: bytes) -> Invitation:
    """Parse an invitation. Raises InvalidInput, whose message contains none of its secrets."""
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
    except (ValueError, InvalidInput, RecursionError):
        raise InvalidInput("not an invitation of niso cluster", _NOT_ONE) from None
    if not invitation.etcd.members:
        raise InvalidInput("not an invitation of niso cluster", _NOT_ONE)
    return invitation


def contents(own: Config) -> Files:
    """Read the credential files with which this host reaches etcd. Raises Error."""
    reach = own.access()
    wanted = (reach.cacert, reach.cert, reach.key, reach.user_file)
    return Files(*(_content(path) if path else "" for path in wanted))


def issued(own: Config, address: str, member: bool) -> tuple[Files, str]:
    """Create a certificate for a host with this address. Return (its files, serial number).

    The files include the authority's key only if the host becomes a ``member`` of etcd: whoever has
    the key can create certificates that are not recorded and cannot be revoked. Raises Error.
    """
    folder = paths.cluster_dir()
    key = os.path.join(folder, AUTHORITY_KEY)
    if not os.path.lexists(key):
        raise Error(
            f"{own.host} has no key to sign certificates with",
            "niso cluster status shows the members of etcd: run it on one of them",
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as made:
        issue(folder, made, [address])
        serial = serial_of(os.path.join(made, CERTIFICATE))
        authority = _content(os.path.join(folder, AUTHORITY))
        cert, private = (_content(os.path.join(made, name)) for name in (CERTIFICATE, KEY))
    return Files(authority, cert, private, "", _content(key) if member else ""), serial


def keep(made: Files, folder: str = "") -> None:
    """Write an invitation's files atomically to a folder, by default that of cluster.toml."""
    named = {
        AUTHORITY: made.cacert,
        CERTIFICATE: made.cert,
        KEY: made.key,
        AUTHORITY_KEY: made.authority_key,
        _USER: made.user,
    }
    folder = folder or paths.cluster_dir()
    os.makedirs(folder, 0o700, exist_ok=True)
    for name, text in named.items():
        if text:
            replace(os.path.join(folder, name), text.encode(), 0o600)
    sync(folder)


def require_valid(invited: Invitation, own: Config) -> None:
    """Check that an invitation's files give access to etcd. Raises InvalidInput, NoAnswer."""
    with tempfile.TemporaryDirectory(dir=paths.cluster_dir(), prefix="new-") as folder:
        keep(invited.files, folder)
        have = own.etcd
        reach = invited.config().etcd.located(folder)
        reach = reach._replace(members=have.members, prefix=have.prefix, own=have.own)
        try:
            with own._replace(etcd=reach).engine() as engine:
                cluster = ClusterKeys(engine, own.keys).cluster()
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
        raise Error(f"cannot be read: {error}", file=escaped(path)) from None


DAYS = 3650
_EARLIER_S = 86400
"""Certificates are valid from one day (in seconds) before now, because clocks of hosts differ."""
AUTHORITY, CERTIFICATE, KEY = "authority.pem", "host.pem", "host.key"
AUTHORITY_KEY = "authority.key"
REFUSED_DAYS = 36500
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_OF_AUTHORITY = """\
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
_OF_HOST = """\
[host]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = critical, {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

_OF_REFUSAL = """\
[ca]
default_ca = list
[list]
database = {index}
default_md = sha256
"""


def make_authority(folder: str, cluster: str) -> None:
    """Create the key and certificate of a CA in a folder, valid for 10 years. Raises Error."""
    _run(
        *("req", "-x509", *_CURVE, *_period(), "-config", "/dev/stdin"),
        *("-subj", f"/O=niso/CN=cluster {cluster}"),
        *("-keyout", os.path.join(folder, AUTHORITY_KEY)),
        *("-out", os.path.join(folder, AUTHORITY)),
        text=_OF_AUTHORITY,
    )


def issue(authority: str, folder: str, addresses: Sequence[str]) -> None:
    """Create a key and a certificate for these IP addresses and localhost. Raises Error."""
    names = [f"IP:{address}" for address in (*addresses, "127.0.0.1", "::1")]
    key, request = os.path.join(folder, KEY), os.path.join(folder, "host.csr")
    _run(*("req", "-new", *_CURVE, "-subj", "/", "-keyout", key, "-out", request))
    try:
        _run(
            *("x509", "-req", "-in", request, *_period()),
            *("-CA", os.path.join(authority, AUTHORITY)),
            *("-CAkey", os.path.join(authority, AUTHORITY_KEY)),
            *("-extfile", "/dev/stdin", "-extensions", "host"),
            *("-out", os.path.join(folder, CERTIFICATE)),
            text=_OF_HOST.format(names=", ".join(names)),
        )
    finally:
        os.unlink(request)


def serial_of(path: str) -> str:
    """Return the hexadecimal serial number of the certificate in a file. Raises Error."""
    return _run("x509", "-in", path, "-noout", "-serial").strip().rpartition("=")[2]


def refusal(authority: str, serials: Sequence[str]) -> bytes:
    """Return a certificate revocation list in PEM (RFC 5280, 5) with these serial numbers."""
    with tempfile.TemporaryDirectory(dir=authority, prefix="new-") as folder:
        index = os.path.join(folder, "index")
        with open(index, "w", encoding="ascii") as file:  # the columns of openssl-ca(1)
            end, since = "491231235959Z", "000101000000Z"
            file.writelines(f"R\t{end}\t{since}\t{serial}\tunknown\t/\n" for serial in serials)
        made = os.path.join(folder, "list")
        _run(
            *("ca", "-gencrl", "-config", "/dev/stdin", "-crldays", str(REFUSED_DAYS)),
            *("-cert", os.path.join(authority, AUTHORITY)),
            *("-keyfile", os.path.join(authority, AUTHORITY_KEY)),
            *("-out", made),
            text=_OF_REFUSAL.format(index=index),
        )
        with open(made, "rb") as file:
            return file.read()


def _period() -> tuple[str, ...]:
    now = time.time()
    ends = (now - _EARLIER_S, now + DAYS * 86400)
    start, end = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(end_s)) for end_s in ends)
    return "-not_before", start, "-not_after", end


def _run(*words: str, text: str = "") -> str:
    """Run openssl with ``text`` as stdin. Return stdout. Only root can read the created files."""
    try:
        done = subprocess.run(
            ["openssl", *words],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
        )
    except FileNotFoundError:
        raise Error("openssl is missing", "apt-get install openssl") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise Error(f"openssl {words[0]}: {said[-1]}")
    return done.stdout
