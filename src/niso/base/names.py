"""Derive the names of kernel objects from services and networks; all are deterministic.

An interface name has at most 15 characters (IFNAMSIZ - 1, linux/if.h).
"""

from __future__ import annotations

from hashlib import sha256

MAX_IFNAME = 15
DEFAULT_NETWORK = "niso-default"
BRIDGES = '"niso-*"'
"""The pattern for all bridges in nftables rules; matching costs less than half of a set lookup."""
DOMAIN = "niso.local"
MAC_PREFIX = "0a:"
"""What every MAC of niso's begins with: of bridges, services, and the host's ends of pairs."""


def _digest(text: str, length: int) -> str:
    return sha256(text.encode()).hexdigest()[:length]


def bridge(network: str) -> str:
    """Return the bridge name of a network: ``niso-backend`` for ``backend``.

    The network ``niso-default`` is also the name of its bridge.
    """
    if network == DEFAULT_NETWORK:
        return DEFAULT_NETWORK
    name = f"niso-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"niso-{network[:4].rstrip('-')}-{_digest(network, 5)}"


def vxlan(network: str) -> str:
    """Return the name of a network's VXLAN device: ``nx-backend`` for ``backend``."""
    name = f"nx-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"nx-{network[:6].rstrip('-')}-{_digest(network, 5)}"


def veth(service: str, network: str, generation: int) -> str:
    """Return the name of the host end of an endpoint's veth pair.

    ``generation`` counts the activations of the service. Each activation uses a new name, since the
    kernel frees the devices of a deleted namespace asynchronously. The digest in the name has 28
    bits, so two endpoints may get equal names: `niso.services.admit` chooses a generation without a
    clash.
    """
    return f"ni{link_prefix(service)}-{_digest(f'{service}/{network}/{generation}', 7)}"


def link_prefix(service: str) -> str:
    """Return the part of a service's name that the names of its links begin with."""
    return service[:5].rstrip("-")


def netns(service: str) -> str:
    return f"niso-{service}"


_MARK = "niso:"


def alias(state_id: str) -> str:
    """Return the alias (IFLA_IFALIAS) that marks a link as one of the state folder ``state_id``."""
    return f"{_MARK}{state_id}"


def is_marked(alias: str) -> bool:
    """Return whether a link with this alias is niso's, whichever state folder created it."""
    return alias.startswith(_MARK)


def state_id_of(alias: str) -> str:
    """Return the id of the state folder that created a link with this alias."""
    return alias.removeprefix(_MARK)


def mac(service: str, network: str, owner: str) -> str:
    """Return an endpoint's MAC, locally administered and unicast (IEEE 802, 8.2.2).

    ``owner`` is the id of the state folder, or of the cluster if the network spans hosts. So the
    MAC stays the same across activations, and when the service moves to another host.
    """
    digest = sha256(f"{owner}/{service}/{network}".encode()).digest()
    return MAC_PREFIX + ":".join(f"{byte:02x}" for byte in digest[:5])


def own_hosts_folder(service: str) -> str:
    """Return the folder of a hosts file for one service: without a network, or with extra hosts.

    Its name begins with "=", which no network name does.
    """
    return f"={service}"


def hosts_folder(networks: tuple[str, ...]) -> str:
    """Return the folder of the hosts file shared by all services with this list of networks."""
    plain = "+".join(networks)
    return plain if len(plain) <= 100 else f"{plain[:80]}+{_digest(plain, 16)}"
