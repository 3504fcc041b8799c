"""Define `Machine`, through which commands reach the store, the kernel and processes."""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import WarningEvent, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from niso.base.report import Report
    from niso.kernel.real import Kernel
    from niso.runtime.processes import Processes
    from niso.store.store import Store


class Machine(NamedTuple):
    """Everything that a command reads and changes, and the receiver of its events."""

    store: Store
    kernel: Kernel
    processes: Processes
    joined: Callable[[], Any] = lambda: None
    """Return this host's access to its cluster (`niso.cluster.config.Config`), or None."""
    report: Report = silent
    """Pass an event to the command's caller."""

    def caution(self, text: str, hints: Iterable[str] = ()) -> None:
        """Report a warning with next steps."""
        self.report(WarningEvent(text, tuple(hints)))
