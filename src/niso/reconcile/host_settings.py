"""Set and restore the host's forwarding sysctls; write services' names to the host's hosts file.

IPv4 forwarding has one sysctl. The sysctl for IPv6 forwarding (conf/all/forwarding) also makes each
network interface a router: the host then deletes the routes that it has learned from router
advertisements, and learns no more unless accept_ra is 2. Since Linux 6.17, each interface has the
sysctl force_forwarding, which enables only the forwarding of packets that arrive on this interface.
niso sets force_forwarding for each interface, and as the default for new interfaces. niso does not
write conf/all/force_forwarding: writing 1 has no effect if 1 was written before, and never applies
to later interfaces. (Documentation/networking/ip-sysctl.rst, net/ipv6/addrconf.c.)

niso records the values before its first change. If another program needs IPv4 forwarding too and
sets ip_forward to 1 while it already is 1, niso cannot see this. niso therefore assumes that such a
program exists if other programs have added NAT rules since niso's first service was activated.
Forwarding then stays on after the last service is deactivated. While the host forwards only because
services need it, niso drops all packets that neither come from nor go to a bridge of niso.

The names of active services are written to the host's own hosts file only if the administrator has
enabled this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DOMAIN
from niso.base.report import Report, WarningEvent, silent
from niso.kernel.kinds.sysctls import FORWARDING, FORWARDING6, ON
from niso.store.store import Store

if TYPE_CHECKING:
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
    for name, value in unrecorded(kernel, store, before, networks).items():
        store.set_sysctl_before(name, value)


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
    """Return the nftables chains to which other programs have added NAT rules since niso's first
    service was activated, as "FAMILY TABLE CHAIN". The list is empty if IPv4 forwarding was on
    before: niso then never turns it off. Raises KernelError.
    """
    if store.sysctls_before().get(FORWARDING) != "0":
        return []
    return added_nat(kernel, store.nat_before())


def added_nat(kernel: Kernel, before: Mapping[str, int]) -> list[str]:
    """Return the nftables chains of other programs that have more NAT rules than ``before``."""
    now = kernel.foreign_nat()
    return sorted(chain for chain, rules in now.items() if rules > before.get(chain, 0))


def note_late(kernel: Kernel, store: Store) -> None:
    """Record the sysctls that other programs still need after niso's last service is deactivated.

    If other programs added NAT rules while services were active, the recorded value of IPv4
    forwarding becomes 1. Network interfaces that were added in this time got the IPv6 defaults that
    niso had set; for these interfaces, the defaults without niso are recorded. The caller must be
    in a transaction of the store, and restores the sysctls afterwards. Raises KernelError.
    """
    if not store.any_active() and others(kernel, store):
        store.clear_sysctls_before(FORWARDING)
        store.set_sysctl_before(FORWARDING, "1")
    if store.any_active(6):
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
    if not store.any_active():
        store.clear_sysctls_before("*")
        store.forget_nat_before()
    elif not store.any_active(6):
        store.clear_sysctls_before(f"{CONF6}/*")


def put_back(kernel: Kernel, store: Store) -> None:
    """Restore all recorded host sysctls, and delete the records. The caller must ensure that no
    service is active. Raises KernelError.
    """
    for name, value in to_put_back(kernel, store.sysctls_before()):
        kernel.set_sysctl(name, value)
    forget(store)


def to_put_back(kernel: Kernel, before: dict[str, str]) -> list[tuple[str, str]]:
    """Return the host sysctls to restore, with their values, in the order in which to write them.
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


def update_host_names(kernel: Kernel, store: Store, report: Report = silent) -> bool:
    """Write the names of active services to the host's hosts file. Returns whether the file
    changed. An error is only reported as a warning, because services do not depend on this file.
    The caller must have niso's lock.
    """
    try:
        return kernel.write_host_names(store.state_id(), wanted(store))
    except KernelError as error:
        hints = (*([error.hint] if error.hint else []), "niso net names --host off ends this")
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
