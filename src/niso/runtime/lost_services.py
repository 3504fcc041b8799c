"""Find services whose runtime files were deleted, by the cgroups that niso created for them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from niso.base.lite_typing import NamedTuple
from niso.runtime import cgroup, process, status


class Lost(NamedTuple):
    """A service that has a cgroup, but no runtime files in this run folder."""

    service: str
    state_id: str
    stranger: int | None
    """The pid of one of its processes, if no conmon of this run folder supervises them."""

    @property
    def cgroup(self) -> str:
        """Return its cgroup, relative to the hierarchy."""
        return f"/niso-{self.state_id}/{self.service}"


def find(state_ids: Iterable[str]) -> list[Lost]:
    """Return the services of these state folders that lost their runtime files, sorted."""
    known = set(status.services())
    places = [
        (state_id, name)
        for state_id in sorted(set(state_ids))
        for name in sorted(
            {name for root in cgroup.roots() for name in _folders(f"{root}/niso-{state_id}")}
            - {*known, cgroup.KEEPERS}
        )
    ]
    return [_lost(state_id, name) for state_id, name in places]


def _lost(state_id: str, service: str) -> Lost:
    lost = Lost(service, state_id, None)
    pids = cgroup.pids(lost.cgroup)
    if pids and not process.has_conmon(service):
        return lost._replace(stranger=pids[0])
    return lost


def _folders(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]
