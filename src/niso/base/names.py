"""Derive the names of kernel objects; they are deterministic.

An interface name has at most 15 characters (IFNAMSIZ - 1, linux/if.h).
"""

from __future__ import annotations

from hashlib import sha256

MAX_IFNAME = 15
DEFAULT_NETWORK = "niso-default"
BRIDGES = '"niso-*"'
"""Every bridge in a rule of nftables. To compare a name costs less than half a look-up."""
DOMAIN = "niso.local"


def _digest(text: str, length: int) -> str:
    return sha256(text.encode()).hexdigest()[:length]


def bridge(network: str) -> str:
    """Return a network's bridge: ``niso-backend`` for ``backend``, itself for ``niso-default``."""
    if network == DEFAULT_NETWORK:
        return DEFAULT_NETWORK
    name = f"niso-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"niso-{network[:4].rstrip('-')}-{_digest(network, 5)}"


def vxlan(network: str) -> str:
    """Return a network's VXLAN device: ``nx-backend`` for ``backend``."""
    name = f"nx-{network}"
    if len(name) <= MAX_IFNAME:
        return name
    return f"nx-{network[:6].rstrip('-')}-{_digest(network, 5)}"


def veth(service: str, network: str, generation: int) -> str:
    """Return the host end of an endpoint's veth pair.

    ``generation`` counts the activations of the service. Each one uses a new name, since the kernel
    frees the devices of a deleted namespace asynchronously. The digest has 28 bits, so the names of
    two endpoints may be equal: `niso.services.admit` chooses a generation without such a clash.
    """
    return f"ni{link_prefix(service)}-{_digest(f'{service}/{network}/{generation}', 7)}"


def link_prefix(service: str) -> str:
    """Return the part of a service's name that its links begin with."""
    return service[:5].rstrip("-")


def netns(service: str) -> str:
    return f"niso-{service}"


_MARK = "niso:"


def alias(state_id: str) -> str:
    """Return the alias (IFLA_IFALIAS) that marks a link as one of the state folder ``state_id``."""
    return f"{_MARK}{state_id}"


def is_marked(alias: str) -> bool:
    """Return whether a link with this alias belongs to niso, whichever state folder made it."""
    return alias.startswith(_MARK)


def state_id_of(alias: str) -> str:
    """Return the id of the state folder that made the link with this alias."""
    return alias.removeprefix(_MARK)


def mac(service: str, network: str, owner: str) -> str:
    """Return an endpoint's locally administered unicast MAC (IEEE 802, 8.2.2).

    ``owner`` is the id of the state folder, or of the cluster if the network spans hosts. So it
    does not change between activations, or when the service moves to another host.
    """
    digest = sha256(f"{owner}/{service}/{network}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x0A, *digest[:5]))


def own_hosts_folder(service: str) -> str:
    """Return the folder of a service's own hosts file: without a network, or with extra hosts.

    No network's name begins with "=".
    """
    return f"={service}"


def hosts_folder(networks: tuple[str, ...]) -> str:
    """Return the folder of the hosts file shared by all services with this list of networks."""
    plain = "+".join(networks)
    return plain if len(plain) <= 100 else f"{plain[:80]}+{_digest(plain, 16)}"
