"""Define the kind of leftovers of interrupted writes of hosts files, which later writes reuse."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.hosts_file import HostsFile, folders, path_of, remove
from niso.kernel.kinds.kind import Kind, Step, kind_of

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class HostsLeftover(NamedTuple):
    """A folder that is empty or contains only a draft; it does not count as a hosts file."""

    folder: str

    def key(self) -> tuple[str, ...]:
        return (self.folder,)


class _HostsLeftovers(Kind[HostsLeftover]):
    def describe(self, step: Step[HostsLeftover]) -> str:
        return f"hosts file {step.thing.folder}: {step.action}"

    def what(self, thing: HostsLeftover) -> str:
        file = HostsFile(thing.folder)
        return kind_of(file).what(file)

    def wanted(self, want: State, have: State) -> frozenset[HostsLeftover]:
        """Return the leftovers of desired files, so that they are not deleted but reused."""
        files = want[HostsFile]
        return frozenset(r for r in have[HostsLeftover] if HostsFile(r.folder) in files)

    def read(self, space: Space, things: Collection[HostsLeftover]) -> Iterable[HostsLeftover]:
        reading = space.reading
        if space.name:
            return ()
        names = {thing.folder for thing in things}
        names.update(file.folder for file in space.things(HostsFile))
        names.update(folders() if reading.everything else ())
        return (
            HostsLeftover(name)
            for name in sorted(names - reading.hosts_texts.keys())
            if _is_leftover(name)
        )

    def write(self, writer: Writer, steps: Sequence[Step[HostsLeftover]]) -> None:
        remove(steps[0].thing.folder)


def _is_leftover(folder: str) -> bool:
    path = path_of(folder)
    try:
        return not os.path.islink(path) and set(os.listdir(path)) <= {"hosts.new"}
    except OSError:
        return False


KIND = _HostsLeftovers(HostsLeftover)
