"""Refuse to treat a lost store as empty while objects created with it still exist."""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import state_id_of
from niso.store.sqlite import way_back

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.runtime.processes import Processes


def refuse(kernel: Kernel, processes: Processes) -> None:
    """Raise Conflict if state.db is missing but objects of niso exist.

    Such objects are links with niso's mark in this network namespace, and services in the run
    folder.
    """
    if os.path.lexists(paths.database()):
        return
    what = [
        f"link {name} of the niso state folder with id {state_id_of(mark)}"
        for name, mark in kernel.marked_links().items()
    ]
    folder = os.path.join(paths.run_dir(), "services")
    what += [f"service {name!r} in {folder}" for name in processes.services()]
    if what:
        more = f" and {len(what) - 1} more" if len(what) > 1 else ""
        raise Conflict(
            f"{paths.database()} is missing, but objects that niso created still exist: "
            f"{what[0]}{more}",
            "set NISO_STATE_DIR to the folder that has it; "
            "if it is lost, net repair has --sweep, which stops its services and removes what is "
            f"left; then {way_back()}",
        )
