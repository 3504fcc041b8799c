"""Define the interface of the cluster's key-value store (etcd) and the names of its keys.

Every change increments the store's revision. The *modified* revision of a key is the revision of
its last change; 0 if the key does not exist. A `Txn` is atomic. `niso.cluster.etcd` implements the
interface.

Values are JSON objects. A writer keeps the fields that it does not know.

    cluster                  {id, port, proto}
    nets                     {NETWORK: {vni, subnets}}: one index, so that nothing overlaps
    net/NETWORK/spec         {vni, mtu, subnets: [{cidr, gateway}], internal, base}
    net/NETWORK/a/ADDRESS    {service, host, gen, names, up}
    net/NETWORK/n/NAME       {service}
    svc/SERVICE              {host, gen, claim, networks: {NETWORK: [address]}, names, up, kept,
                              ports, policy, sharers: {SERVICE: [port]}}
    h/HOST                   {id, address, mtu, niso}
    h/HOST/live              {boot}, with the host's lease
    cert/HOST/SERIAL         {}: a certificate that HOST was given, SERIAL as openssl(1) shows it
    refused/SERIAL           {host}: a revoked certificate
    late/HOST                {seconds} that its agent lags, with the same lease; absent: 0
"""

from __future__ import annotations

import json

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Protocol


# --- requests, answers and errors -----------------------------------------------------------------


class NoAnswer(Error):
    """Raised if no member of etcd answers in time.

    ``unknown`` is True if the request was sent: it may have been carried out.
    """

    def __init__(self, reason: str, hint: str | None = None, unknown: bool = False) -> None:
        super().__init__(reason, hint)
        self.unknown = unknown


class Refused(NoAnswer):
    """Raised if etcd refuses a request, for example because of a full database or a missing
    permission.

    The request was not carried out. It is a kind of NoAnswer, so callers that can continue without
    an answer also continue here. ``code`` is etcd's error code (google.rpc.Code); 0 if unknown.
    """

    def __init__(self, reason: str, hint: str | None = None, code: int = 0) -> None:
        super().__init__(reason, hint)
        self.code = code


class Compacted(Exception):
    """Raised if etcd no longer has the events after a revision.

    The caller must read all keys again.
    """

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


class Item(NamedTuple):
    """A key with its value.

    ``modified`` is the revision of its last change. ``lease`` is 0 without one.
    """

    key: str
    value: str
    modified: int
    lease: int = 0


class Compare(NamedTuple):
    """A condition of a transaction: the key's last change has the revision ``modified``.

    If ``modified`` is 0, the key must not exist.
    """

    key: str
    modified: int = 0
    prefix: bool = False  # no key with this prefix may exist; ``modified`` is 0


class Put(NamedTuple):
    key: str
    value: str
    lease: int = 0


class Delete(NamedTuple):
    key: str
    prefix: bool = False


class Txn(NamedTuple):
    """Changes that etcd carries out together, if all conditions are met.

    ``changes`` has each key at most once.
    """

    conditions: tuple[Compare, ...]
    changes: tuple[Put | Delete, ...]


class Done(NamedTuple):
    """The result of a `Txn`: whether the conditions were met, and the revision of etcd."""

    done: bool
    revision: int


class Answer(NamedTuple):
    """Keys and values as of an etcd revision, sorted by key."""

    revision: int
    items: tuple[Item, ...]


class Mark(NamedTuple):
    """A fingerprint of all keys with a prefix: as long as it is equal, no key has changed.

    A new or changed key has a higher revision than all others, and a deleted key changes the count.
    If etcd was restored from a backup, revisions can repeat, but the lease then differs.
    """

    revision: int  # of etcd
    newest: int  # modified revision of the newest key; 0 without keys
    lease: int  # lease of the newest key; if several are newest, of any of them
    number: int


class Event(NamedTuple):
    """A change of a key at the revision ``modified``; ``item`` is None if the key was deleted."""

    key: str
    item: Item | None
    modified: int


class Batch(NamedTuple):
    """Events up to a revision. A batch without events only shows that the connection works."""

    revision: int
    events: tuple[Event, ...]


if TYPE_CHECKING:

    class Engine(Protocol):
        """The interface of the key-value store. All methods raise NoAnswer and Refused.

        `niso.cluster.etcd` implements it with etcd, and `fakes.engine` in memory for tests. The
        same tests run on both.
        """

        def close(self) -> None:
            """Close the connection; the next request opens another."""

        def get(self, prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
            """Return all keys with a prefix and their values; with ``one``, only the key itself.

            With ``stale``, an etcd member that is cut off from the others may answer too.
            """

        def keys(self, prefix: str) -> list[str]:
            """Return the keys with a prefix, without values."""

        def mark(self, prefix: str) -> Mark:
            """Return a fingerprint of the keys with a prefix, to detect changes."""

        def commit(self, txn: Txn) -> Done:
            """Carry out a transaction; return whether its conditions were met, and the revision.

            If NoAnswer with ``unknown`` is raised, etcd may have carried it out, may still do so,
            or never.
            """

        def grant(self, ttl_s: int) -> int:
            """Create a lease that expires if it is not renewed within the given seconds."""

        def keep(self, lease: int) -> bool:
            """Renew a lease; return whether it still exists."""

        def revoke(self, lease: int) -> None:
            """Revoke a lease, which deletes its keys. No-op if it has expired."""

        def watch(self, prefix: str, revision: int, silence_s: float) -> Iterator[Batch]:
            """Yield changes of keys with a prefix, from a revision on.

            Raises NoAnswer if etcd sends neither events nor progress messages for ``silence_s``
            seconds, or if the member is cut off from the others. Raises Compacted if events are no
            longer available.
            """

    class Joined(Protocol):
        """The interface of a host's access to its cluster.

        `niso.cluster.config.Config` implements it.
        """

        @property
        def host(self) -> str:
            """Return the name of this host."""

        @property
        def address(self) -> str:
            """Return the address by which other hosts reach this host."""

        @property
        def encryption(self) -> str:
            """Return how this host encrypts traffic to other hosts; "" for no encryption."""

        @property
        def keys(self) -> Keys:
            """Return the names of the cluster's keys."""

        def engine(self, brief: bool = False) -> Engine:
            """Open a connection to etcd, for use in one thread. Raises Error.

            With ``brief``, requests time out after a short time.
            """


# --- names of keys, and encoded values ------------------------------------------------------------


PREFIX = "/niso/v1/"


class Keys:
    """The names of niso's keys in etcd, below a prefix.

    Clusters with different prefixes may share an etcd.
    """

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix
        self.cluster = f"{prefix}cluster"
        self.nets = f"{prefix}nets"
        self.hosts = f"{prefix}h/"
        self.services = f"{prefix}svc/"
        self.late = f"{prefix}late/"
        self.refused = f"{prefix}refused/"

    def network(self, network: str) -> str:
        """Return the prefix of all keys of a network."""
        return f"{self.prefix}net/{network}/"

    def spec(self, network: str) -> str:
        return f"{self.network(network)}spec"

    def addresses(self, network: str) -> str:
        return f"{self.network(network)}a/"

    def address(self, network: str, address: str) -> str:
        return f"{self.addresses(network)}{address}"

    def name(self, network: str, name: str) -> str:
        return f"{self.network(network)}n/{name}"

    def service(self, service: str) -> str:
        return f"{self.services}{service}"

    def host(self, host: str) -> str:
        return f"{self.hosts}{host}"

    def certificates(self, host: str) -> str:
        """Return the prefix of a host's certificate keys."""
        return f"{self.prefix}cert/{host}/"

    def live(self, host: str) -> str:
        return f"{self.hosts}{host}/live"


def encode(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def decode(text: str, key: str) -> dict[str, Any]:
    """Parse the value of a key to a dict. Raises Error if it is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid(key)
    return value


def invalid(key: str) -> Error:
    """Return the error for a key whose value niso cannot have written."""
    return Error(
        f"the cluster's key {key} has no valid value",
        "another program may have written it: etcdctl get shows it",
    )
