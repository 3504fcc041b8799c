"""Read a `State` from the kernel: requested objects only, or everything that belongs to niso.

Ownership is visible in the kernel itself: by the owner mark in the two tables, and by the alias of
links and of ``lo`` in namespaces. A foreign object with a required name is a Conflict. Each kind
has the code that reads its objects (kernel/kinds).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.kinds import order
from niso.kernel.state import State

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.interface import Foreign
    from niso.kernel.kinds.kind import Kind, T, Thing
    from niso.kernel.neighbours import Fixed
    from niso.kernel.rtnetlink import Rtnl
    from niso.kernel.rtnl_records import Link, LinkAddress, LinkRoute
    from niso.kernel.rtnl_sockets import Sockets


class Space:
    """One network namespace during a reading; ``""`` is the host's.

    It caches the kernel's answers.
    """

    def __init__(self, reading: Reading, name: str, things: dict[type, Collection[Any]]) -> None:
        self.reading = reading
        self.name = name
        self.is_open = not name
        """Whether the namespace exists and is niso's; set once its kind has been read."""
        self.is_foreign = False
        """Whether a foreign object has the namespace's name."""
        self.is_of_others = False
        """Whether another program created the namespace; only the candidates in it are niso's."""
        self._things = things
        # the kernel's answers
        self._links: dict[str, Link | None] = {}
        self._addresses: dict[int, list[LinkAddress]] | None = None
        self._routes: dict[int, list[LinkRoute]] = {}
        self._all: list[Link] | None = None
        self._by_index: dict[int, Link] | None = None
        self._all_routes: list[LinkRoute] | None = None
        self._tables: dict[int, set[Fixed]] = {}
        self._of_concern: list[Link] | None = None

    @property
    def rtnl(self) -> Rtnl:
        """Return an rtnetlink socket in the namespace. Raises KernelError."""
        return self.reading.sockets.at(self.name)

    def things(self, kind: type[T]) -> Collection[T]:
        """Return the candidates of a kind in this namespace."""
        return self._things.get(kind, ())

    def link(self, name: str) -> Link | None:
        """Return a link; when everything is read, from the list of `all_links`.

        A name that is missing in the list may be an alternative name, so the kernel is asked.
        """
        if self.reading.everything:
            self.all_links()
        if name not in self._links:
            self._links[name] = self.rtnl.link(name)
        return self._links[name]

    def other_end(self, link: Link) -> Link | None:
        """Return the other end of a veth link of another namespace, if that end is in this one."""
        if self._by_index is None:
            self._by_index = {link_.index: link_ for link_ in self.all_links()}
        end = self._by_index.get(link.peer_index)
        return end if end is not None and end.peer_index == link.index else None

    def own_link(self, name: str) -> Link | None:
        """Return the link if it is niso's. A foreign one is recorded, or raises Conflict."""
        link = self.link(name)
        if link is None or link.alias == self.reading.alias:
            return link
        whose = f"its alias is {link.alias!r}" if link.alias else "it has no alias"
        self.reading.note_foreign(
            name,
            Conflict(
                f"link {name!r} exists and does not belong to this niso ({whose})",
                f"rename it (ip link set {name} down name NEW), or choose another name",
            ),
        )
        return None

    def all_links(self) -> list[Link]:
        if self._all is None:
            self._all = self.rtnl.links()
            self._links.update((link.name, link) for link in self._all)
        return self._all

    def links_of_concern(self) -> list[Link]:
        """Return the links of the candidates; when everything is read, all links of niso's."""
        if self._of_concern is not None:
            return self._of_concern
        names = {
            name
            for kind in order.KINDS
            if kind.names_links
            for thing in self.things(kind.thing)
            for name in kind.links(thing)
        }
        if self.reading.everything and not self.is_of_others:
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
        """Return the addresses of a link; when everything is read, from one dump for all links."""
        everything = self.reading.everything
        if self._addresses is None:
            self._addresses = {}
            for address in self.rtnl.addresses() if everything else ():
                self._addresses.setdefault(address.index, []).append(address)
        if link.index not in self._addresses:
            self._addresses[link.index] = [] if everything else self.rtnl.addresses(link.index)
        return self._addresses[link.index]

    def routes(self, link: Link) -> list[LinkRoute]:
        """Return the routes of a link; with strays in a service, from `all_routes`."""
        if self.name and self.reading.strays:
            return [route for route in self.all_routes() if route.index == link.index]
        if link.index not in self._routes:
            self._routes[link.index] = self.rtnl.routes(link.index)
        return self._routes[link.index]

    def all_routes(self) -> list[LinkRoute]:
        """Return all routes of the main table. A host can have a million."""
        if self._all_routes is None:
            self._all_routes = self.rtnl.routes()
        return self._all_routes

    def bridge_table(self, bridge_index: int) -> set[Fixed]:
        """Return the static entries of a bridge's forwarding database.

        When everything is read, one request covers all bridges.
        """
        if bridge_index not in self._tables:
            from niso.kernel import neighbours

            asked = 0 if self.reading.everything else bridge_index
            # the answer has nothing about a bridge without entries
            self._tables[bridge_index] = set()
            self._tables.update(neighbours.of_bridges(self.rtnl, asked))
        return self._tables[bridge_index]


class Reading:
    """The shared state of one `read`.

    ``strays``: also read foreign changes to the candidates' links.
    """

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
        self._open: list[str] = []
        """The namespaces that have been read."""
        self.elements: dict[tuple[str, str, str], tuple[str, str]] | None = None
        self.hosts_texts: dict[str, str] = {}
        self._present: dict[type, set[Any] | frozenset[Any]] = {}

    def so_far(self, kind: type[T]) -> Collection[T]:
        """Return the objects of a kind that have been read up to now."""
        return self._present.get(kind, ())

    def note_foreign(self, name: str, error: Conflict) -> None:
        """Record that a link or namespace is foreign.

        Raises Conflict if the caller passed no record.
        """
        if self.foreign is None:
            raise error
        self.foreign[name] = error

    def note_foreign_netns(self, name: str) -> None:
        self.note_foreign(
            name,
            Conflict(
                f"network namespace {name!r} exists and does not belong to this niso",
                "choose another name for the service, or take that name off the namespace",
            ),
        )

    def run(self, candidates: State, taken: bool = False) -> State:
        """Read the candidates, one namespace after another.

        With ``taken``, objects of transactional kinds (tables, elements) are not read: they are
        assumed to be as in ``candidates``.
        """
        self.candidates = candidates
        spaces: dict[str, dict[type, Collection[Any]]] = {"": {}}
        for kind in order.KINDS:
            for name, things in kind.by_space(candidates[kind.thing]).items():
                spaces.setdefault(name, {})[kind.thing] = things
        self.host = Space(self, "", spaces.pop(""))
        for name in ("", *sorted(spaces)):
            space = Space(self, name, spaces.pop(name)) if name else self.host
            for kind in order.KINDS:
                things = space.things(kind.thing)
                if taken and kind.is_transactional:
                    self._note(kind, candidates[kind.thing])
                elif space.is_open or kind.reads_closed_spaces:
                    present = kind.read(space, things)
                    if space.is_of_others:
                        present = _asked(kind, present, things)
                    self._note(kind, _same(things, present))
            if name and space.is_open:
                self._open.append(name)
        if self.everything:
            for kind in order.KINDS:
                self._note(kind, frozenset(kind.left_over(self)))
        present = self._present
        self._drop()
        return State.of_kinds(lambda kind: present.get(kind.thing, ()))

    def inner_spaces(self) -> Iterator[Space]:
        """Yield the namespaces of services that have been read, for further queries."""
        for name in self._open:
            yield Space(self, name, {})

    def _note(self, kind: Kind[Any], present: frozenset[Any]) -> None:
        """Record the objects read in one namespace.

        The first set of a kind is stored without a copy.
        """
        known = self._present.get(kind.thing)
        if not known:
            self._present[kind.thing] = present
            return
        if not present:
            return
        if not isinstance(known, set):
            known = self._present[kind.thing] = set(known)
        known.update(present)

    def _drop(self) -> None:
        """Drop what was read: a reference cycle with the spaces would keep it in memory."""
        self._present, self.elements, self.hosts_texts = {}, None, {}
        self.candidates, self.host, self._open = State(), Space(self, "", {}), []


def _same[T: Thing](things: Collection[T], present: Iterable[T]) -> frozenset[T]:
    """Return ``present``, but with the candidate itself in place of each equal object.

    A state is large, and most of it is as desired: sharing objects saves memory. If all are equal,
    the result equals ``things``.
    """
    missing = set(things)
    others = []
    for thing in present:
        if thing in missing:
            missing.remove(thing)
        else:
            others.append(thing)
    same = frozenset(things)
    if missing:
        same -= missing
    return same.union(others) if others else same


def _asked(kind: Kind[Any], present: Iterable[Any], things: Collection[Any]) -> list[Any]:
    """Return the objects that are candidates, on the links where they are candidates."""
    keys = {(thing.key(), kind.links(thing)) for thing in things}
    by_name = {thing.key() for thing in things if not kind.is_read_by_link}
    return [
        thing
        for thing in present
        if thing.key() in by_name or (thing.key(), kind.links(thing)) in keys
    ]


def read(
    candidates: State,
    alias: str,
    sockets: Sockets,
    foreign: Foreign | None = None,
    strays: bool = False,
    taken: bool = False,
) -> State:
    """Return those of ``candidates`` that exist. See `niso.kernel.interface.Kernel.read`."""
    return Reading(alias, sockets, foreign, strays, everything=False).run(candidates, taken)


def read_all(want: State, alias: str, sockets: Sockets, foreign: Foreign) -> State:
    """Return everything that is niso's. See `niso.kernel.interface.Kernel.read_all`."""
    reading = Reading(alias, sockets, foreign, strays=True, everything=True)
    reading.candidates = want
    claimed: Iterable[Any] = (thing for kind in order.KINDS for thing in kind.claimed(reading))
    return reading.run(want | State(claimed))
