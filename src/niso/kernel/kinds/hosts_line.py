"""Define the kind of lines in hosts files: one for each service in each file that lists it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Steps

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.state import State


class HostsLine(NamedTuple):
    """A line. ``names`` is the text after the address."""

    folder: str
    address: str
    names: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _HostsLines(Kind[HostsLine]):
    def lies_in(self, thing: HostsLine) -> tuple[str, ...]:
        return (f"hosts {thing.folder}",)

    def what(self, thing: HostsLine) -> str:
        return f"line {thing.address} {thing.names} in hosts file of {thing.folder}"

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        return Steps()  # the steps of the hosts file change its lines

    def by_space(self, things: Iterable[HostsLine]) -> dict[str, Collection[HostsLine]]:
        return {"": frozenset(things)}

    def read(self, space: Space, things: Collection[HostsLine]) -> Iterable[HostsLine]:
        """Read the candidates' lines.

        Searches them in the text, since parsing a whole file takes time for each of its services.
        """
        from niso.kernel import hosts_text

        if space.name:
            return ()
        texts = space.reading.hosts_texts
        if space.reading.everything:
            return (
                HostsLine(folder, address, names)
                for folder, text in texts.items()
                for address, names in hosts_text.lines(text) or ()
            )
        return (
            line
            for line in things
            if f"\n{hosts_text.line(line.address, line.names)}" in texts.get(line.folder, "")
        )


KIND = _HostsLines(HostsLine)
