"""Add the names of services to the host's own hosts file, or remove them."""

from __future__ import annotations

from niso.base.errors import KernelError
from niso.base.locks import Lock
from niso.reconcile import host_names
from niso.services.machine import Machine


def show(machine: Machine, on: bool) -> bool:
    """Keep the names of services in the host's hosts file from now on, or remove them.

    Returns whether anything changed. Raises KernelError; then nothing has changed.
    """
    store, kernel = machine.store, machine.kernel
    with Lock():
        was, mark = store.host_knows(), store.state_id()
        if on and not was:  # recorded first, so that the next command completes it
            with store.transaction():
                store.set_host_knows(True)
        try:
            lines = host_names.wanted(store) if on else []
            changed = kernel.write_host_names(mark, lines, always=on and not was)
        except KernelError:
            if on and not was:
                with store.transaction():
                    store.set_host_knows(False)
            raise
        if was and not on:
            with store.transaction():
                store.set_host_knows(False)
        return changed or was != on
