"""From the kernel to a `State`: of just the things that are asked about, or of everything that is niso's.

What is niso's is told from the kernel alone: the two tables, and the alias on links and on ``lo`` of namespaces.
Something of a needed name that is not niso's is a Conflict. How things are read is said by their kinds (kernel/kinds).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.kinds import order
from niso.kernel.state import State

if TYPE_CHECKING:
    from typing import Any, TypeVar

    from niso.kernel.interface import Foreign
    from niso.kernel.kinds.kind import Thing
    from niso.kernel.rtnetlink import Rtnl
    from niso.kernel.rtnl_records import Link, LinkAddress, LinkRoute
    from niso.kernel.rtnl_sockets import Sockets

    T = TypeVar("T", bound=Thing)


class Space:
    """One network namespace while it is read, ``""`` is the host's. What readers ask of a link is asked of the kernel once."""

    def __init__(self, reading: Reading, name: str, things: dict[type, Collection[Any]]) -> None:
        self.reading = reading
        self.name = name
        self.is_open = not name
        """Whether it is there and niso's; known once the namespaces' kind has been read."""
        self._things = things
        self._links: dict[str, Link | None] = {}
        self._addresses: dict[int, list[LinkAddress]] = {}
        self._routes: dict[int, list[LinkRoute]] = {}
        self._all: list[Link] | None = None
        self._of_concern: list[Link] | None = None

    @property
    def rtnl(self) -> Rtnl:
        """A socket in it. Raises KernelError."""
        return self.reading.sockets.at(self.name)

    def things(self, kind: type[T]) -> Collection[T]:
        """Return the candidates of a kind that are read here."""
        return self._things.get(kind, ())

    def link(self, name: str) -> Link | None:
        if name not in self._links:
            self._links[name] = self.rtnl.link(name)
        return self._links[name]

    def own_link(self, name: str) -> Link | None:
        """Return the link if it is niso's. Raises Conflict, or notes it, where it is somebody else's."""
        link = self.link(name)
        if link is None or link.alias == self.reading.alias:
            return link
        whose = f"it carries the alias {link.alias!r}" if link.alias else "it has no alias"
        self.reading.note_foreign(
            name,
            Conflict(
                f"link {name!r} exists and is not this niso's own ({whose})",
                f"rename it (ip link set {name} down name NEW), or choose another name",
            ),
        )
        return None

    def all_links(self) -> list[Link]:
        if self._all is None:
            self._all = self.rtnl.links()
        return self._all

    def links_of_concern(self) -> list[Link]:
        """Return the links that candidates are about; when everything is read, also all others that are niso's."""
        if self._of_concern is not None:
            return self._of_concern
        names = {
            name
            for kind in order.KINDS
            if kind.names_links
            for thing in self.things(kind.thing)
            for name in kind.links(thing)
        }
        if self.reading.everything:
            alias = self.reading.alias
            names |= {
                link.name
                for link in self.all_links()
                if (link.kind == "veth" if self.name else link.alias == alias)
                and (self.name or link.kind == "bridge")
            }
        links = (self.link(name) for name in sorted(names))
        self._of_concern = [link for link in links if link is not None]
        return self._of_concern

    def addresses(self, link: Link) -> list[LinkAddress]:
        if link.index not in self._addresses:
            self._addresses[link.index] = self.rtnl.addresses(link.index)
        return self._addresses[link.index]

    def routes(self, link: Link) -> list[LinkRoute]:
        if link.index not in self._routes:
            self._routes[link.index] = self.rtnl.routes(link.index)
        return self._routes[link.index]


class Reading:
    """What all readers of one `read` share. ``strays``: also what others have done to the candidates' links."""

    def __init__(
        self, alias: str, sockets: Sockets, foreign: Foreign | None, strays: bool, everything: bool
    ) -> None:
        self.alias = alias
        self.state_id = alias.partition(":")[2]
        self.sockets = sockets
        self.foreign = foreign
        self.strays = strays
        self.everything = everything
        self.candidates = State()
        self.host = Space(self, "", {})
        self.inner_spaces: list[Space] = []
        self.elements: dict[tuple[str, str, str], tuple[str, str]] | None = None
        self.hosts_texts: dict[str, str] = {}
        self._present: dict[type, set[Any]] = {}

    def so_far(self, kind: type[T]) -> Collection[T]:
        """Return what has been read of a kind."""
        return self._present.get(kind, ())

    def note_foreign(self, name: str, error: Conflict) -> None:
        """Note that a link or namespace is somebody else's. Raises Conflict where nobody asked for notes."""
        if self.foreign is None:
            raise error
        self.foreign[name] = error

    def note_foreign_netns(self, name: str) -> None:
        self.note_foreign(
            name,
            Conflict(
                f"network namespace {name!r} exists and is not this niso's own",
                f"remove it (ip netns delete {name}), or choose another name for the service",
            ),
        )

    def run(self, candidates: State, taken: bool = False) -> State:
        """Read the candidates. With ``taken`` things of transactions are as the candidates say, without a look."""
        self.candidates = candidates
        spaces: dict[str, dict[type, Collection[Any]]] = {"": {}}
        for kind in order.KINDS:
            for name, things in kind.by_space(candidates[kind.thing]).items():
                spaces.setdefault(name, {})[kind.thing] = things
        self.host = Space(self, "", spaces.pop(""))
        self.inner_spaces = [Space(self, name, spaces[name]) for name in sorted(spaces)]
        for space in (self.host, *self.inner_spaces):
            for kind in order.KINDS:
                if taken and kind.is_transactional:
                    self._present[kind.thing] = set(candidates[kind.thing])
                elif space.is_open or kind.reads_closed_spaces:
                    present = kind.read(space, space.things(kind.thing))
                    self._present.setdefault(kind.thing, set()).update(present)
        if self.everything:
            self.inner_spaces = [space for space in self.inner_spaces if space.is_open]
            for kind in order.KINDS:
                self._present[kind.thing].update(kind.left_over(self))
        return State.of_kinds(lambda kind: self._present.get(kind.thing, ()))


def read(
    candidates: State,
    alias: str,
    sockets: Sockets,
    foreign: Foreign | None = None,
    strays: bool = False,
    taken: bool = False,
) -> State:
    """Return which of ``candidates`` the kernel has, as they are there. See `niso.kernel.interface.Kernel.read`."""
    return Reading(alias, sockets, foreign, strays, everything=False).run(candidates, taken)


def read_all(want: State, alias: str, sockets: Sockets, foreign: Foreign) -> State:
    """Return everything that is niso's. See `niso.kernel.interface.Kernel.read_all`."""
    reading = Reading(alias, sockets, foreign, strays=True, everything=True)
    claimed: Iterable[Any] = (thing for kind in order.KINDS for thing in kind.claimed(reading))
    return reading.run(want | State(claimed))
