"""Read and write cluster.toml: the name of this host in its cluster, and how to reach etcd.

The file is in `paths.cluster_dir`, next to the certificates that niso created. Most commands only
call `load`. A host without the file is in no cluster.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator

from niso.base import convert, files, paths
from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.base.text import escaped, shown
from niso.cluster import key_values
from niso.cluster.engine import Keys
from niso.cluster.etcd import Etcd, Reach
from niso.manifest import toml, validate, values

FILE_NAME = "cluster.toml"
CLIENT_PORT, PEER_PORT = 2379, 2380
BRIEF_S = 1.0
"""Timeout in seconds for each etcd member, for commands that can continue without an answer."""
_HEAD = "# written by niso cluster, which also changes it\n"


class OwnHost(NamedTuple):
    """This host's own settings in cluster.toml."""

    name: str
    address: str  # the IP address by which the other hosts reach this host
    encryption: str = ""  # kernel, userspace or ""; in an invitation, what the host may use


class MemberStart(NamedTuple):
    """Settings of the etcd member that runs on this host."""

    initial: tuple[str, ...]  # "a=https://198.51.100.1:2380": all members when this one was added
    joins: bool = False  # whether it joined an existing etcd


class _File(NamedTuple):
    host: OwnHost
    etcd: Reach
    member: MemberStart | None = None


class Config(NamedTuple):
    """The content of cluster.toml. ``host`` is this host's name, and ``address`` its IP address."""

    host: str
    address: str
    etcd: Reach
    member: MemberStart | None = None
    encryption: str = ""  # how this host encrypts: kernel, userspace, or "" if it does not

    @property
    def keys(self) -> Keys:
        return Keys(self.etcd.prefix)

    def access(self) -> Reach:
        """Return the members and credentials of etcd, with absolute paths of credential files."""
        return self.etcd.located(paths.cluster_dir())

    def engine(self, brief: bool = False) -> Etcd:
        """Return a client of etcd for one thread. Raises Error for an unusable credential file.
        With ``brief``, a request waits `BRIEF_S` seconds for each member and is not repeated.
        """
        return Etcd(self.access(), BRIEF_S, 1) if brief else Etcd(self.access())


def file_path() -> str:
    return os.path.join(paths.cluster_dir(), FILE_NAME)


def load() -> Config | None:
    """Read cluster.toml, or return None if the file is missing. Raises Error if it is invalid."""
    path = file_path()
    return parsed(toml.load(path, FILE_NAME), path) if os.path.lexists(path) else None


def require() -> Config:
    """Read cluster.toml. Raises Error if this host is in no cluster."""
    config = load()
    if config is None:
        raise Error(
            "this host is in no cluster",
            "niso cluster init makes one; niso cluster join FILE joins one",
        )
    return config


def parsed(data: dict[str, Any], path: str) -> Config:
    """Check the parsed TOML of cluster.toml, and convert it. Raises InvalidInput or ErrorGroup."""
    try:
        own, etcd, member = convert.convert(data, _File)
        config = Config(own.name, own.address, etcd, member, own.encryption)
        errors = [*_errors(config)]
    except ValueError:
        errors = [*validate.walk(data, _File)]
    for error in errors:
        error.file = escaped(path)
    if errors:
        raise ErrorGroup(errors) if len(errors) > 1 else errors[0]
    return config


def _errors(config: Config) -> Iterator[Error]:
    etcd = config.etcd
    checks = [(endpoint, member, "etcd.members") for member in etcd.members]
    for check, text, key in (
        (host_name, config.host, "host.name"),
        (ip_address, config.address, "host.address"),
        *checks,
        (key_prefix, etcd.prefix, "etcd.prefix"),
        (way_to_encrypt, config.encryption, "host.encryption"),
    ):
        try:
            check(text, key)
        except InvalidInput as error:
            yield error
    if not etcd.members:
        yield InvalidInput("names no member", key="etcd.members")
    if bool(etcd.cert) != bool(etcd.key):
        yield InvalidInput("cert and key go together", key="etcd.cert")


def host_name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a host. Raises InvalidInput."""
    return values.host_label(text, key)


def ip_address(text: str, key: str) -> str:
    """Return a host's address in canonical form. Raises InvalidInput if the value is invalid."""
    if not key_values.is_host_address(text):
        raise InvalidInput(
            "is not an address of a host",
            "use the one by which the other hosts reach it",
            key,
            value=shown(text),
        )
    return str(ipaddress.ip_address(text))


def endpoint(text: str, key: str) -> str:
    """Return ``text`` if it is HOST:PORT of etcd, with IPv6 in brackets. Raises InvalidInput."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = port.isascii() and port.isdigit() and 0 < int(port) < 65536 and bare
    if not good or (":" in bare) != host.startswith("[") or not set(bare).isdisjoint("/@[] "):
        raise InvalidInput(
            "is not an address of etcd", key=key, value=shown(text), right="HOST:PORT"
        )
    return text


def key_prefix(text: str, key: str) -> str:
    """Return ``text`` if it is a prefix of etcd keys like /niso/prod/. Raises InvalidInput."""
    if not (text.startswith("/") and text.endswith("/") and text.isascii() and text.isprintable()):
        raise InvalidInput(
            "is not a prefix of keys", key=key, value=shown(text), right="such as /niso/prod/"
        )
    return text


def way_to_encrypt(text: str, key: str) -> str:
    """Return ``text`` if it is kernel, userspace or "" (no encryption). Raises InvalidInput."""
    if text not in ("", "kernel", "userspace"):
        raise InvalidInput(
            "is not a way to encrypt", key=key, value=shown(text), right="kernel or userspace"
        )
    return text


def save(config: Config) -> None:
    """Write cluster.toml atomically, readable only by root. Raises OSError."""
    folder = paths.cluster_dir()
    os.makedirs(folder, 0o700, exist_ok=True)
    files.replace(file_path(), text_of(config).encode(), 0o600)
    files.sync(folder)


def text_of(config: Config) -> str:
    own = OwnHost(config.host, config.address, config.encryption)
    return toml_of(_HEAD, _File(own, config.etcd, config.member))


def toml_of(head: str, values: object) -> str:
    """Format a named tuple as TOML, below the comment ``head``.

    A field that is a named tuple becomes a table. Other fields have values whose JSON is also
    TOML. Fields that are None are left out.
    """
    lines = [head]
    for name, value in convert.plain(values).items():
        if isinstance(value, dict):
            own = [f"{key} = {json.dumps(item)}\n" for key, item in value.items() if item != ""]
            lines += [f"\n[{name}]\n", *own]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value)}\n")
    return "".join(lines)
