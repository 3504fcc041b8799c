"""Refuse to treat a lost store as an empty one while objects made with it still exist."""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Conflict
from niso.base.names import is_marked, state_id_of
from niso.kernel.rtnetlink import Rtnl
from niso.store.sqlite import way_back


def refuse() -> None:
    """Raise Conflict if state.db is missing but objects of niso exist.

    Such objects are marked links in this network namespace and services in the run folder.
    """
    if os.path.lexists(paths.database()):
        return
    with Rtnl() as rtnl:
        marked = [link for link in rtnl.links() if is_marked(link.alias)]
    what = [
        f"link {link.name} of the niso state folder with id {state_id_of(link.alias)}"
        for link in marked
    ]
    folder = os.path.join(paths.run_dir(), "services")
    what += [
        f"service {name!r} in {folder}"
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ())
    ]
    if what:
        more = f" and {len(what) - 1} more" if len(what) > 1 else ""
        raise Conflict(
            f"{paths.database()} is missing, but objects that niso created still exist: "
            f"{what[0]}{more}",
            "set NISO_STATE_DIR to the folder that has it; "
            f"if it is lost, niso net repair --sweep; {way_back()}",
        )
