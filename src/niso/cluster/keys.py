"""Name the engine's keys, and encode their values.

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
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

PREFIX = "/niso/v1/"


class Keys:
    """The names of the keys below a prefix; several clusters may share an engine."""

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
    """Parse the value of a key. Raises Error if it is not a JSON object."""
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
