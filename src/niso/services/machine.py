"""The state that commands change: the store, the kernel and the processes of services."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.cluster.engine import Joined
    from niso.kernel.interface import Kernel
    from niso.runtime.processes import Processes
    from niso.store.store import Store


def _joined() -> Joined | None:
    from niso.cluster import config  # only hosts of a cluster need it

    return config.load()


class Machine(NamedTuple):
    """The store, kernel and processes that a command uses, and its access to the cluster.

    Every command takes one, so that tests can pass one in memory.
    """

    store: Store
    kernel: Kernel
    processes: Processes
    joined: Callable[[], Joined | None] = _joined


def real(store: Store) -> Machine:
    """Return the machine of this host, with this store."""
    from niso.kernel.real import Real
    from niso.runtime.real_processes import RealProcesses

    return Machine(store, Real(), RealProcesses())
