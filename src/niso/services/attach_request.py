"""Describe a requested attachment, and the records that it needs."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import count

from niso.base import paths
from niso.base.addresses import family_of
from niso.base.errors import Conflict, InvalidInput
from niso.base.lite_typing import NamedTuple
from niso.base.names import MAC_PREFIX
from niso.kernel.foreign_netns import ForeignNetns
from niso.plan.records import Policy, Port
from niso.plan.service_spec import Published, ServiceSpec
from niso.services.admit import Target
from niso.store.attached_rows import Attached, Link
from niso.store.sqlite import encoded
from niso.store.store import Store

CLI = "cli"
"""The owner of attachments that a person made."""
BY_INTERFACE = "docker"
"""The owner with one attachment for each interface, which sets the default route itself."""
_MAX_INTERFACE = 15  # IFNAMSIZ - 1, linux/if.h
_NO_INTERFACE = ("", ".", "..", "lo", "all", "default")
"""Names that are no valid link name, or that have another meaning in /proc/sys/net."""


class Wish(NamedTuple):
    """A network to attach a namespace to."""

    network: str
    interface: str = ""  # "": the one it has there, or the next free eth<n>
    ips: tuple[str, ...] = ()  # at most one of each family
    mac: str = ""  # "": derived from the names


class Request(NamedTuple):
    """The wanted state of an attachment; it replaces the present one."""

    name: str
    netns: str  # the path of the namespace; "": niso creates one
    wishes: tuple[Wish, ...]
    ports: tuple[Port, ...] = ()
    aliases: tuple[str, ...] = ()
    policy: Policy = Policy()
    owner: str = CLI
    id: str = ""
    given: str = ""  # the name that the owner gave it; "": the name
    # what the owner reports about it, such as (pod_namespace, shop)
    labels: tuple[tuple[str, str], ...] = ()
    bandwidth: tuple[tuple[str, int], ...] = ()  # "in" and "out", bytes per second
    policies: tuple[tuple[str, Policy], ...] = ()
    """(network, policy): the policy must also allow packets of an attachment on that network."""
    awaited: bool = False
    """Whether the namespace will soon be replaced: until then only the rules change."""


def target_of(
    store: Store, request: Request, foreign: ForeignNetns | None, before: Attached | None
) -> Target:
    """Return the target to record. Raises InvalidInput, Conflict."""
    links = _links(store, request, foreign, before)
    attached = Attached(
        request.name,
        request.owner,
        request.id,
        request.given or request.name,
        request.netns,
        foreign.cookie if foreign is not None else 0,
        encoded(
            {
                "policy": request.policy,
                "labels": dict(request.labels),
                "policies": dict(request.policies),
            }
        ),
    )
    return Target(
        request.name, _spec(request), "", "", None, None, attached=attached, links=tuple(links)
    )


def _links(
    store: Store, request: Request, foreign: ForeignNetns | None, before: Attached | None
) -> list[Link]:
    """Choose the interface of each link. Raises InvalidInput, Conflict.

    A link that was attached before keeps its interface. The first link on a network that is not
    internal has the default route, else the first link, unless the namespace has one already.
    """
    had = {link.network: link for link in store.attachments.links(request.name)} if before else {}
    _refuse_twice([wish.network for wish in request.wishes], "--network")
    own = {link.interface for link in had.values()}
    taken = (foreign.links if foreign is not None else frozenset(["lo"])) - own
    kept_names = {had[wish.network].interface for wish in request.wishes if wish.network in had}
    free = _free_names(taken | kept_names | {wish.interface for wish in request.wishes})
    routed = (
        foreign is not None and bool(foreign.routed) and not any(x.routes for x in had.values())
    )
    routed |= request.owner == BY_INTERFACE
    links: list[Link] = []
    for wish in request.wishes:
        kept = had.get(wish.network)
        interface = wish.interface or (kept.interface if kept is not None else "")
        if interface in {link.interface for link in links} or not interface:
            interface = next(free)
        if interface in taken:
            raise Conflict(
                f"interface {interface!r} already exists in {request.netns or 'it'}",
                "name another one, or none: niso chooses the next free eth<n>",
                "interface",
            )
        own_mac = _own_mac(store, request.name, wish, kept.mac if kept is not None else "")
        links.append(Link(wish.network, interface, own_mac, False))
    _refuse_twice([link.interface for link in links], "interface")
    if links and not routed:
        known = [store.network(link.network) for link in links]
        outer = (at for at, network in enumerate(known) if network is None or not network.internal)
        first = next(outer, 0)
        links[first] = links[first]._replace(routes=True)
    return links


def _own_mac(store: Store, name: str, wish: Wish, had: str) -> str:
    """Return the MAC that an attachment chooses on a network; "" for the one that niso derives.

    MACs that begin as niso's are for what niso derives: bridges and services, also of other hosts
    and of names that nothing has yet. One that an earlier version accepted (``had``) is kept.
    Raises InvalidInput.
    """
    chosen = mac(wish.mac) if wish.mac else ""
    if not chosen or chosen == store.derived_mac(name, wish.network):
        return ""
    if chosen.startswith(MAC_PREFIX) and chosen != had:
        raise InvalidInput(
            f"{chosen!r}: MAC addresses that begin with {MAC_PREFIX} are those of niso's bridges"
            " and services",
            "choose one that begins with 02:, or none: niso derives one",
        )
    return chosen


def _spec(request: Request) -> ServiceSpec:
    """Return the spec of a service without a process."""
    return ServiceSpec(
        name=request.name,
        rootfs=None,
        entrypoint="",
        args=(),
        working_dir="/",
        environment={},
        user=None,
        restart="no",
        restart_delay_s=0.0,
        stop_timeout_s=0.0,
        capabilities=(),
        read_only=False,
        memory_max=None,
        cpu_max=None,
        pids_limit=None,
        healthcheck=None,
        volumes=(),
        mode="attached",
        share=None,
        networks=tuple(wish.network for wish in request.wishes),
        addresses=_statics(request, 4),
        addresses6=_statics(request, 6),
        hostname=request.name,
        aliases=request.aliases,
        ports=tuple(Published(port, f"--port {port.text}") for port in request.ports),
        policy=_whole_policy(request),
        manifest={},
        bandwidth=dict(request.bandwidth),
    )


def _statics(request: Request, family: int) -> dict[str, str]:
    return {
        wish.network: ip for wish in request.wishes for ip in wish.ips if family_of(ip) == family
    }


def _whole_policy(request: Request) -> Policy:
    networks = tuple(wish.network for wish in request.wishes)
    own = [request.policy, *(policy for on, policy in request.policies if on in networks)]
    files: Iterable[Policy] = ()
    # also without the folder: who can write to the one above can take it away
    if os.path.lexists(os.path.dirname(paths.policy_dir())):
        from niso.manifest.policy_files import Subject, about

        files = about(Subject(request.name, networks, request.owner, dict(request.labels)))
    from niso.services.policies import combined

    return combined([*own, *files])


def _refuse_twice(values: Sequence[str], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidInput(f"{what} {value} is given twice", "name each once")


def _free_names(taken: Container[str]) -> Iterator[str]:
    return (name for number in count() if (name := f"eth{number}") not in taken)


def interface_name(text: str) -> str:
    """Validate the name of a new link (dev_valid_name, net/core/dev.c). Raises InvalidInput."""
    bad = text in _NO_INTERFACE or len(text.encode()) > _MAX_INTERFACE
    if bad or any(c in "/:" or c.isspace() or not c.isprintable() for c in text):
        raise InvalidInput(
            f"{text!r} is not a valid name of an interface",
            f"at most {_MAX_INTERFACE} characters, none of them a space, / or :",
        )
    return text


def mac(text: str) -> str:
    """Parse a unicast MAC address (IEEE 802, 8.2). Raises InvalidInput."""
    parts = text.lower().replace("-", ":").split(":")
    octets = [int(p, 16) for p in parts if len(p) == 2 and not set(p) - set("0123456789abcdef")]
    if len(parts) != 6 or len(octets) != 6 or octets[0] & 1 or not any(octets):
        raise InvalidInput(
            f"{text!r} is not a MAC address of one station", "six octets like 02:00:00:00:00:01"
        )
    return ":".join(f"{octet:02x}" for octet in octets)
