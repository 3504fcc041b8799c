"""Run one of this host's agents in the foreground."""

from __future__ import annotations

import os
from collections.abc import Callable

from niso.base.errors import Conflict
from niso.base.lite_typing import NamedTuple
from niso.base.locks import service_lock
from niso.runtime import unit


class Following(NamedTuple):
    """An agent of this host. ``run`` returns after ``stop``, which a signal handler may call."""

    run: Callable[[], None]
    stop: Callable[[], None]


def alone(lock: str, held: Conflict, work: Callable[[], None]) -> None:
    """Run an agent of which a host has only one. Raises ``held`` if it is running already."""
    try:
        taken = service_lock(lock, 0)
        taken.__enter__()
    except Conflict:
        raise held from None
    try:
        if "NOTIFY_SOCKET" in os.environ:
            unit.tell("READY=1")
        work()
    finally:
        taken.__exit__()
