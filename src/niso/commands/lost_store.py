"""A store that is not there while what it set up is: nothing may be read from it as if nothing were known."""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Conflict
from niso.base.names import is_marked, state_id_of
from niso.kernel.rtnetlink import Rtnl
from niso.store.sqlite import way_back


def refuse() -> None:
    """Raise Conflict where state.db is missing and something that carries niso's mark lives in this network namespace or run folder."""
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
            f"{paths.database()} is not there, but what niso set up is: {what[0]}{more}",
            f"set NISO_STATE_DIR to the folder that has it; if it is lost, niso net repair --sweep; {way_back()}",
        )
