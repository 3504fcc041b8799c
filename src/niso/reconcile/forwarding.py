"""Forwarding by the host: what must be on while services are active, and what was found before, which is on record.

IPv4 has one switch. That of IPv6 (conf/all/forwarding) also makes a router of every link: it drops the routes that the host
has learned from router advertisements, and takes no more but where accept_ra is 2. Linux 6.17 has force_forwarding, which
only has the link that a packet comes by forward it. It is set on each link and as the default of those to come: in
conf/all it is no state but a command, which does nothing where it reads 1 already, and does not reach later links.
(Documentation/networking/ip-sysctl.rst, net/ipv6/addrconf.c.)
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.kernel.interface import Kernel
from niso.kernel.kinds.setting import FORWARDING, FORWARDING6, ON
from niso.store.store import Store

CONF6 = "net/ipv6/conf"
FORCE, ACCEPT_RA = "force_forwarding", "accept_ra"


def record(kernel: Kernel, store: Store, networks: Iterable[str]) -> None:
    """Note what is found of all that will change for an active service on these networks, where it is not on record yet.

    The caller is in a transaction. Raises KernelError.
    """
    before = store.sysctls_before()
    if FORWARDING not in before:
        store.set_sysctl_before(FORWARDING, kernel.sysctl(FORWARDING) or "0")
    known = [store.require_network(name) for name in networks]
    bridges = [each.bridge for each in known if any(subnet.family == 6 for subnet in each.subnets)]
    if not bridges:
        return
    if not any(name.startswith(CONF6) for name in before):
        for name, value in _found6(kernel).items():
            store.set_sysctl_before(name, value)
        before = store.sysctls_before()
    if f"{CONF6}/default/{FORCE}" in before:
        for bridge in bridges:
            store.set_sysctl_before(f"{CONF6}/{bridge}/{FORCE}", "0")


def note_late(kernel: Kernel, store: Store) -> None:
    """Note the links that came while IPv6 was forwarded and so began as it needs, once no active service needs it.

    The caller is in a transaction, and then makes the kernel as it was. Raises KernelError.
    """
    if store.any_active(6):
        return
    for name, general in _late(kernel, store.sysctls_before()).items():
        store.set_sysctl_before(name, general)


def _late(kernel: Kernel, before: dict[str, str]) -> dict[str, str]:
    """The sysctls of links that are not in ``before`` and are as niso has those that come: what they would be without it."""
    found = {}
    for what in (FORCE, ACCEPT_RA):
        general = before.get(f"{CONF6}/default/{what}", ON[what])
        if general != ON[what]:
            for link in kernel.receiving6():
                name = f"{CONF6}/{link}/{what}"
                if name not in before and kernel.sysctl(name) == ON[what]:
                    found[name] = general
    return found


def forget(store: Store) -> None:
    """Forget what was found before, where no active service needs a change and the kernel is as it was."""
    if not store.any_active():
        store.clear_sysctls_before("*")
    elif not store.any_active(6):
        store.clear_sysctls_before(f"{CONF6}/*")


def put_back(kernel: Kernel, store: Store) -> None:
    """Make all as it was found, whatever the kernel has now, and forget it. No service is active. Raises KernelError."""
    for name, value in to_put_back(kernel, store.sysctls_before()):
        kernel.set_sysctl(name, value)
    forget(store)


def to_put_back(kernel: Kernel, before: dict[str, str]) -> list[tuple[str, str]]:
    """(sysctl, value) of all that is not as it was found, in the order in which it can be; with the links that came later."""
    # first what resets others, which then have their own value again
    wanted = sorted(
        {**before, **_late(kernel, before)}.items(),
        key=lambda found: (found[0] != FORWARDING6, found),
    )
    resets = any(
        name == FORWARDING6 and kernel.sysctl(name) not in (None, value) for name, value in wanted
    )
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
        values = {name: kernel.sysctl(f"{CONF6}/{name}/{FORCE}") for name in names}
        return {
            f"{CONF6}/{name}/{FORCE}": value for name, value in values.items() if value is not None
        }
    found = {FORWARDING6: "0"}
    for name in names:
        # 0 and 2 do not depend on forwarding; a link that was a router's by itself would not be one afterwards
        for what in (ACCEPT_RA, "forwarding"):
            if kernel.sysctl(f"{CONF6}/{name}/{what}") == "1":
                found[f"{CONF6}/{name}/{what}"] = "1"
    return found
