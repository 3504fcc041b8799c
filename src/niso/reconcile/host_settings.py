"""Set and restore the host's forwarding sysctls; write services' names to the host's hosts file.

IPv4 forwarding has one sysctl. The sysctl for IPv6 forwarding (conf/all/forwarding) also makes each
network interface a router: the host then deletes the routes that it has learned from router
advertisements, and learns no more unless accept_ra is 2. Since Linux 6.17, each interface has the
sysctl force_forwarding, which enables only the forwarding of packets that arrive on this interface.
niso sets force_forwarding for each interface, and as the default for new interfaces. niso does not
write conf/all/force_forwarding: writing 1 has no effect if 1 was written before, and never applies
to later interfaces. (Documentation/networking/ip-sysctl.rst, net/ipv6/addrconf.c.)

niso records the values before its first change, and the links that exist. While the host forwards
because of niso, niso drops the packets that the host would route between two of these links. Later
links of container engines and VPNs (`ROUTED_KINDS`) are not restricted.

If another program needs forwarding too and sets ip_forward to 1 while it already is 1, niso cannot
see this. niso therefore assumes that such a program exists if other programs have added NAT rules
or a bridge since niso's first service was activated. Forwarding then stays on after the last
service is deactivated, and the former links stay restricted.

The names of active services are written to the host's own hosts file only if the administrator has
enabled this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DOMAIN, alias
from niso.base.report import Report, WarningEvent
from niso.kernel.kinds.sysctls import FORWARDING, FORWARDING6, ON
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from niso.kernel.link_records import Link
    from niso.kernel.real import Kernel


CONF6 = "net/ipv6/conf"
FORCE, ACCEPT_RA = "force_forwarding", "accept_ra"


def record(kernel: Kernel, store: Store, networks: Iterable[str]) -> None:
    """Record the present values of the host sysctls that niso will change for services on these
    networks. The caller must be in a transaction of the store. Raises KernelError.
    """
    before = store.sysctls_before()
    if FORWARDING not in before:
        store.set_nat_before(kernel.foreign_nat())
    added = unrecorded(kernel, store, before, networks)
    for name, value in added.items():
        store.set_sysctl_before(name, value)
    had = {_version(name) for name in before}
    if fresh := {_version(name) for name in added} - had:
        links = [(link.index, link.name) for link in kernel.routed_links()]
        store.set_links_before({**store.links_before(), **dict.fromkeys(fresh, links)})


def without_forwarding(before: Mapping[str, str]) -> dict[str, str]:
    """Return the sysctls of ``before`` to restore even if other programs need forwarding."""
    return {name: value for name, value in before.items() if name.endswith(FORCE)}


def _links(store: Store, version: int = 4) -> set[int | str] | None:
    """Return the indexes and names of the links that existed when niso enabled forwarding for an IP
    version. None means that they are not recorded. niso's rules then restrict every link.
    """
    links = store.links_before().get(version)
    return None if links is None else {part for link in links for part in link}


def _version(sysctl: str) -> int:
    return 6 if sysctl.startswith(CONF6) else 4


def unrecorded(
    kernel: Kernel, store: Store, before: Mapping[str, str], networks: Iterable[str]
) -> dict[str, str]:
    """Return the host sysctls that `record` would add to the store, with their current values.
    ``before`` has the sysctls that are in the store. Raises KernelError.
    """
    added = {} if FORWARDING in before else {FORWARDING: kernel.sysctl(FORWARDING) or "0"}
    known = map(store.require_network, networks)
    bridges = [net.bridge for net in known if any(subnet.family == 6 for subnet in net.subnets)]
    if not bridges:
        return added
    if not any(name.startswith(CONF6) for name in before):
        added |= _found6(kernel)
    if f"{CONF6}/default/{FORCE}" in before.keys() | added.keys():
        for bridge in bridges:
            name = f"{CONF6}/{bridge}/{FORCE}"
            if name not in before:
                added.setdefault(name, "0")
    return added


def others(kernel: Kernel, store: Store) -> list[str]:
    """Return the nftables chains, as "FAMILY TABLE CHAIN", in which other programs have added NAT
    rules since niso's first service, and whose packets niso drops. The list is empty if IPv4
    forwarding was on before niso's first service, or if there are `later` links, which niso does
    not restrict. Raises KernelError.
    """
    if store.sysctls_before().get(FORWARDING) != "0":
        return []
    chains = added_nat(kernel, store.nat_before())
    return [] if chains and later(kernel, _links(store)) else chains


def later(kernel: Kernel, before: AbstractSet[int | str] | None) -> list[Link]:
    """Return the links of other programs that need forwarding and whose index and name are not in
    ``before``. Raises KernelError.
    """
    if before is None:
        return []
    return [one for one in kernel.routed_links() if before.isdisjoint((one.index, one.name))]


def later_routes(kernel: Kernel, store: Store) -> dict[str, str]:
    """Return {prefix: link} for other programs' routes and addresses, without default routes. The
    link is "" if it existed before niso enabled forwarding. Raises KernelError.
    """
    new = {
        version: {link.name for link in later(kernel, _links(store, version))} for version in (4, 6)
    }
    used = kernel.used_prefixes(alias(store.state_id()))
    return {str(net): name if name in new[net.version] else "" for net, name in used}


def is_needed(kernel: Kernel, nat: Mapping[str, int], links: AbstractSet[int | str] | None) -> bool:
    """Return whether other programs have added NAT rules or a bridge since niso enabled forwarding.
    ``nat`` maps the NAT chains to their numbers of rules at that time. ``links`` are the indexes
    and names of the links that existed then. Raises KernelError.
    """
    if added_nat(kernel, nat):
        return True
    return any(link.up and link.kind == "bridge" for link in later(kernel, links))


def added_nat(kernel: Kernel, before: Mapping[str, int]) -> list[str]:
    """Return the nftables chains of other programs that have more NAT rules than ``before``."""
    now = kernel.foreign_nat()
    return sorted(chain for chain, rules in now.items() if rules > before.get(chain, 0))


def note_late(kernel: Kernel, store: Store) -> None:
    """Record the sysctls that other programs still need after niso's last service is deactivated.

    If other programs added NAT rules or bridges while services were active, the host continues to
    forward, and niso continues to restrict the former links. If there are new NAT rules but no new
    links, the rules are for the former links, and the recorded value of ip_forward becomes 1.

    Network interfaces that were added in this time got the IPv6 defaults that niso had set; for
    these interfaces, the defaults without niso are recorded. The caller must be in a transaction of
    the store, and restores the sysctls afterwards. Raises KernelError.
    """
    before = store.sysctls_before()
    ended = [] if store.any_active() else [FORWARDING]
    ended += [] if store.any_active(6) else [FORWARDING6]
    if any(before.get(name) == "0" for name in ended):
        if FORWARDING in ended and others(kernel, store):
            store.clear_sysctls_before(FORWARDING)
            store.set_sysctl_before(FORWARDING, "1")
        else:
            store.set_keeps_forwarding(is_needed(kernel, store.nat_before(), _links(store)))
    if store.host_forwards(6):
        return
    for name, general in _late(kernel, store.sysctls_before()).items():
        store.set_sysctl_before(name, general)


def _late(kernel: Kernel, before: dict[str, str]) -> dict[str, str]:
    """Return IPv6 sysctls of network interfaces that were created while niso's defaults were set,
    with the values that these interfaces would have without niso. Sysctls in ``before``, which are
    already recorded, are left out.
    """
    late = {}
    for what in (FORCE, ACCEPT_RA):
        general = before.get(f"{CONF6}/default/{what}", ON[what])
        if general != ON[what]:
            for link in kernel.receiving6():
                name = f"{CONF6}/{link}/{what}"
                if name not in before and kernel.sysctl(name) == ON[what]:
                    late[name] = general
    return late


def forget(store: Store) -> None:
    """Delete the recorded values of host sysctls that active services no longer need. The caller
    must already have restored these sysctls.
    """
    if not store.host_forwards():
        store.clear_sysctls_before("*")
        store.forget_nat_before()
        store.set_links_before({})
        store.set_keeps_forwarding(False)
    elif not store.host_forwards(6):
        store.clear_sysctls_before(f"{CONF6}/*")
        if 6 in (links := store.links_before()):
            store.set_links_before({4: links[4]} if 4 in links else {})


def put_back(kernel: Kernel, store: Store) -> None:
    """Restore all recorded host sysctls that no other program needs, and delete the records. The
    caller must ensure that no service is active. Raises KernelError.
    """
    before = store.sysctls_before()
    if store.keeps_forwarding():
        before = without_forwarding(before)
    for name, value in to_put_back(kernel, before):
        kernel.set_sysctl(name, value)
    forget(store)


def to_put_back(kernel: Kernel, before: dict[str, str]) -> list[tuple[str, str]]:
    """Return (sysctl, value) for each host sysctl to restore, in the order in which to write them.
    ``before`` maps the recorded sysctls to their values. Sysctls of interfaces that were added
    later are included.
    """
    # the global switch first: it resets the others, which are then written again
    values = {**before, **_late(kernel, before)}
    wanted = sorted(values.items(), key=lambda item: (item[0] != FORWARDING6, item))
    is_six = FORWARDING6 in values
    resets = is_six and kernel.sysctl(FORWARDING6) not in (None, values[FORWARDING6])
    return [
        (name, value)
        for name, value in wanted
        if (now := kernel.sysctl(name)) is not None
        and (now != value or (resets and name.startswith(CONF6) and name.endswith("/forwarding")))
    ]


def _found6(kernel: Kernel) -> dict[str, str]:
    if kernel.sysctl(FORWARDING6) == "1":
        return {FORWARDING6: "1"}
    names = ["default", *kernel.receiving6()]
    if kernel.sysctl(f"{CONF6}/default/{FORCE}"):
        forced = [f"{CONF6}/{name}/{FORCE}" for name in names]
        return {name: value for name in forced if (value := kernel.sysctl(name)) is not None}
    values6 = {FORWARDING6: "0"}
    for name in names:
        # accept_ra 0 and 2 do not depend on forwarding; an interface with its own forwarding on
        # would lose it
        for what in (ACCEPT_RA, "forwarding"):
            if kernel.sysctl(f"{CONF6}/{name}/{what}") == "1":
                values6[f"{CONF6}/{name}/{what}"] = "1"
    return values6


def wanted(store: Store) -> list[str]:
    """Return the lines that niso's block in the host's own hosts file should have. A line contains
    the address of an active service on its first network, and ``NAME.niso.local``. Aliases are left
    out, because they may mean something else on the host.
    """
    names: dict[str, list[str]] = {}
    for service in store.active_services():
        own = store.addresses(service)
        for network, address in own:
            if network == own[0][0]:
                names.setdefault(address, []).append(f"{service}.{DOMAIN}")
    return [f"{address}  {' '.join(called)}" for address, called in names.items()]


def update_host_names(kernel: Kernel, store: Store, report: Report) -> bool:
    """Write the names of active services to the host's hosts file. Returns whether the file
    changed. An error is only reported as a warning, because services do not depend on this file.
    The caller must have niso's lock.
    """
    try:
        return kernel.write_host_names(store.state_id(), wanted(store))
    except KernelError as error:
        hints = (*([error.hint] if error.hint else []), "niso net names off ends this")
        report(
            WarningEvent(f"the host does not know the present names of services: {error}", hints)
        )
        return False


def differs(kernel: Kernel, store: Store) -> str:
    """Return how niso's block in the host's hosts file differs from the store's rows, or ""."""
    try:
        have = kernel.host_names(store.state_id())
    except KernelError as error:
        return error.message
    missing = set(wanted(store)).symmetric_difference(have)
    return f"{len(missing)} lines of services differ" if missing else ""
