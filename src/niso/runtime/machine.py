"""Define `Machine`, what commands change: the store, the kernel and the processes of services."""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from niso.kernel.interface import Kernel
    from niso.runtime.processes import Processes
    from niso.store.store import Store


def _alone() -> None:
    """Return None: this host is in no cluster."""


class Machine(NamedTuple):
    """The store, kernel and processes that a command uses, and its access to the cluster.

    All commands take a Machine, so that tests can pass one in memory.
    """

    store: Store
    kernel: Kernel
    processes: Processes
    joined: Callable[[], Any] = _alone
    """Returns this host's access to its cluster (`niso.cluster.engine.Joined`), or None."""
