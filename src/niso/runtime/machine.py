"""Define `Machine`, through which commands reach the store, the kernel and processes."""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from niso.kernel.real import Kernel
    from niso.runtime.processes import Processes
    from niso.store.store import Store


class Machine(NamedTuple):
    """Everything that a command reads and changes: store, kernel, processes and cluster."""

    store: Store
    kernel: Kernel
    processes: Processes
    joined: Callable[[], Any] = lambda: None
    """Return this host's access to its cluster (`niso.cluster.config.Config`), or None."""
