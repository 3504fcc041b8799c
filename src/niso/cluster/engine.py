"""Define the requests, answers and errors of the cluster's key-value store (etcd), and its keys.

Every change increments the store's revision. The *modified* revision of a key is the revision of
its last change, or 0 if the key does not exist. `niso.cluster.etcd.Etcd` sends the requests to
etcd. In tests, `fakes.engine` carries them out in memory. The same tests run on both.

Each line shows a key and the fields of its value, a JSON object. Writers copy unknown fields.

    cluster                  {id, port, proto}
    nets                     {NETWORK: {vni, subnets}} of all networks, so that none overlap
    net/NETWORK/spec         {vni, mtu, subnets: [{cidr, gateway}], internal, base}
    net/NETWORK/a/ADDRESS    {service, host, gen, names, up}
    net/NETWORK/n/NAME       {service}
    svc/SERVICE              {host, gen, claim, networks: {NETWORK: [address]}, names, up, kept,
                              ports, policy, sharers: {SERVICE: [port]}}
    h/HOST                   {id, address, mtu, niso}
    h/HOST/live              {boot}, with the host's lease
    cert/HOST/SERIAL         {}: a certificate of HOST; SERIAL in the form of openssl(1)
    refused/SERIAL           {host}: a revoked certificate
    late/HOST                {seconds} that changes have waited for its agent, with its lease
"""

from __future__ import annotations

import json

from niso.base.errors import Error
from niso.base.named_tuples import Any, NamedTuple


class NoAnswer(Error):
    """An error: no etcd member answers. ``unknown``: etcd may have carried out the request."""

    def __init__(self, reason: str, hint: str | None = None, unknown: bool = False) -> None:
        super().__init__(reason, hint)
        self.unknown = unknown


COMPACTED = 11  # OUT_OF_RANGE (google.rpc.Code): etcd no longer has the requested events


class Refused(NoAnswer):
    """An error: etcd refuses a request. ``code`` is a google.rpc.Code, or 0 if unknown.

    This is a NoAnswer, so callers that can continue without an answer also continue here.
    """

    def __init__(self, reason: str, hint: str | None = None, code: int = 0) -> None:
        super().__init__(reason, hint)
        self.code = code


class KeyValue(NamedTuple):
    key: str
    value: str
    modified: int  # revision of the last change
    lease: int = 0  # id of the key's lease; 0 if it has none


class Compare(NamedTuple):
    """A condition of a transaction: the modified revision of a key has a given value."""

    key: str
    modified: int = 0  # the revision of the key's last change; 0 if the key must not exist
    prefix: bool = False  # True: ``key`` is a prefix, and no key with this prefix may exist


class Put(NamedTuple):
    key: str
    value: str
    lease: int = 0


class Delete(NamedTuple):
    key: str
    prefix: bool = False


class Txn(NamedTuple):
    """A transaction: changes of different keys, made atomically if all conditions are met."""

    conditions: tuple[Compare, ...]
    changes: tuple[Put | Delete, ...]


class Answer(NamedTuple):
    """The result of a read: keys with their values at one revision, sorted by key."""

    revision: int
    items: tuple[KeyValue, ...]


type Event = tuple[str, KeyValue | None, int]
"""A changed key, its new value (None if the key was deleted), and the revision of the change."""
type Batch = tuple[int, tuple[Event, ...]]
"""A revision, and the events of a watch up to it. Without events, the connection works."""

PREFIX = "/niso/v1/"


class Keys:
    """The names of niso's keys in etcd. All begin with the prefix from cluster.toml."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix
        self.cluster = f"{prefix}cluster"
        self.nets = f"{prefix}nets"
        self.hosts = f"{prefix}h/"
        self.services = f"{prefix}svc/"
        self.late = f"{prefix}late/"
        self.refused = f"{prefix}refused/"

    def network(self, network: str) -> str:
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

    def seen(self, network: str, host: str = "") -> str:
        return f"{self.prefix}seen/{network}/{host}"

    def certificates(self, host: str) -> str:
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
    """Build the error for a key whose value niso cannot have written."""
    return Error(
        f"the cluster's key {key} has no valid value",
        "another program may have written it: etcdctl get shows it",
    )
