"""Write the names of active services to the host's own hosts file, if this is enabled."""

from __future__ import annotations

from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DOMAIN
from niso.base.report import Caution, Report, silent
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel


def wanted(store: Store) -> list[str]:
    """Return the desired lines: each address on a service's first network, and ``NAME.niso.local``.

    Names without the domain, hostnames and aliases are left out: the host may use them for others.
    """
    names: dict[str, list[str]] = {}
    for service in store.active_services():
        own = store.addresses(service)
        for network, address in own:
            if network == own[0][0]:
                names.setdefault(address, []).append(f"{service}.{DOMAIN}")
    return [f"{address}  {' '.join(called)}" for address, called in names.items()]


def settle(kernel: Kernel, store: Store, report: Report = silent) -> bool:
    """Bring the host's hosts file up to date; return whether it changed.

    A failure is reported, since services do not depend on it. The caller holds the lock.
    """
    try:
        return kernel.write_host_names(store.state_id(), wanted(store))
    except KernelError as error:
        hints = (*([error.hint] if error.hint else []), "niso net names --host off ends this")
        report(Caution(f"the host does not know the present names of services: {error}", hints))
        return False


def differs(kernel: Kernel, store: Store) -> str:
    """Describe how the host's hosts file differs from the store; "" if it does not."""
    try:
        have = kernel.host_names(store.state_id())
    except KernelError as error:
        return error.message
    missing = set(wanted(store)).symmetric_difference(have)
    return f"{len(missing)} lines of services differ" if missing else ""
