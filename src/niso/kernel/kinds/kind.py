"""Define `Kind` (a type of kernel object), `State` (sets of objects), and how a State is read.

A kernel object is represented by a NamedTuple. The fields that `key` returns identify the object;
the other fields are its desired or actual properties. A file in kernel/kinds imports modules with
I/O only inside methods, so that code that only uses State loads no netlink code.

The parents of an object are the namespace, network interface or tables that it is in, each named by
a string: ``netns NAME``, ``link /NETNS/NAME`` (NETNS is empty for the host), or ``ruleset``.

`ORDER` is the order in which kinds are created; deletion is in reverse. Rules are created before
all objects that could carry a packet, and deleted after these objects. Therefore a change that is
only partly made never allows more packets than the manifests do.

Addresses are strings in their canonical form (``10.99.1.2``, ``fd00::2``), or with a prefix length.
IPv4 and IPv6 use the same kinds. ``netns`` is a name in /run/netns, and ``""`` is the host.

A State is read either for requested objects only, which are called candidates, or for all objects
of a state folder. The kernel itself shows to which state folder an object belongs: the id of the
state folder is in the set ``owner`` of niso's nftables tables, and in the alias of interfaces and
of ``lo`` in namespaces. If an object with a requested name belongs to another program or state
folder, the object is *foreign*, and a Conflict is raised or recorded.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from functools import cached_property

from niso.base.errors import Conflict, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import neighbour_tables
from niso.kernel.link_records import Link, LinkAddress, LinkRoute
from niso.kernel.neighbour_tables import StaticEntry
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from typing import Any, Generic, Literal, Protocol, TypeVar

    from niso.kernel.kinds.hosts_files import HostsEdit
    from niso.kernel.kinds.nft import NftTransaction
    from niso.kernel.netlink import Message
    from niso.kernel.netns import Sockets
    from niso.kernel.nft_elements import Atoms, Element
    from niso.kernel.real import Writer

    Problem = Literal["missing", "foreign", "different", "gone", "dropped"]

    class KernelObject(Protocol):
        """The interface of the NamedTuples that represent links, routes and other kernel objects.

        ``key`` returns the fields that identify the object.
        """

        def key(self) -> tuple[str, ...]: ...
        def __hash__(self) -> int: ...
        def __lt__(self, other: Any, /) -> bool: ...
        def __iter__(self) -> Iterator[Any]: ...

    T = TypeVar("T", bound=KernelObject)
else:  # importing typing takes 6 ms
    KernelObject, Generic, T = tuple, {None: object}, None


class Step(NamedTuple, Generic[T]):
    """One step of a change: a kernel object is added, deleted or changed. ``action`` is "add",
    "delete" or "change". If an object is changed, ``actual`` is the object before the change.
    """

    action: str
    obj: T
    actual: T | None = None

    def describe(self) -> str:
        return self.kind.describe(self)

    @property
    def kind(self) -> Kind[T]:
        return kind_of(self.obj)

    def objects(self) -> tuple[T, ...]:
        """Return the objects to read from the kernel after the step, for verification."""
        return (self.obj,) if self.kind.is_read_back(self) else ()


type AnyStep = Step[Any] | HostsEdit | NftTransaction
"""A step of a plan. HostsEdit and NftTransaction consist of several changes, written together."""


type Steps = tuple[Sequence[AnyStep], Sequence[AnyStep], Sequence[AnyStep], Sequence[AnyStep]]
"""The steps of one kind: (first of all steps, additions and changes, deletions, last of all steps).
"""
NO_STEPS: Steps = ((), (), (), ())


class Finding(NamedTuple):
    """A problem that `niso net check` reports: one difference between desired and actual objects.
    ``what`` names the object, and ``detail`` says how it differs. If `niso net repair` needs
    special code for the problem (niso.runtime.sources), ``defect`` names the problem.
    """

    problem: Problem
    """missing, foreign, different, gone or dropped."""
    what: str
    """The name of the object."""
    detail: str = ""
    """How the object differs; "" if ``problem`` says it all."""
    defect: str = ""

    @property
    def text(self) -> str:
        """Return the problem as one line for the user."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


TOGETHER = "together"
"""The key of steps whose messages are sent together (`Kind.batch`)."""

BY_TYPE: dict[type, Kind[Any]] = {}
"""The kinds by the type of their objects."""


def kind_of(obj: T) -> Kind[T]:
    return BY_TYPE[type(obj)]


class Kind(Generic[T]):
    """A type of kernel object, with the code that plans, reads, writes and describes its objects. A
    subclass is declared with ``of=TYPE``, the type of its objects. Python creates the only instance
    when the class is defined. Methods are called only with objects of this type.
    """

    is_transactional = False
    """Whether steps are nftables transactions. Then objects are not read again after a change."""
    noun_format = ""
    """The name of an object in messages. In this format and the next two, ``{0}`` is the object."""
    parent_name_format = ""
    """The name of an object as the parent of other objects; "" if it can be no parent."""
    parents_format: tuple[str, ...] = ()
    """The names of the parents of an object."""
    field_texts: tuple[tuple[str, str], ...] = ()
    """Pairs (field, text for a difference of this field). ``{}`` in the text is the actual value.
    """
    names_links = False
    """Whether `links` can return names of network interfaces."""
    is_read_by_link = False
    """Whether reading returns all objects on an interface, not only the candidates."""
    replaces = False
    """Whether adding an object replaces an existing object with the same key."""
    is_of_host = False
    """Whether objects are only in the host's namespace, and `read` is called only for it."""
    is_acknowledged = False
    """Whether niso relies on the kernel's acknowledgement when objects are added and deleted. Then
    they are not read back.
    """
    reads_closed_spaces = False
    """Whether `read` is also called for network namespaces that are missing or foreign."""

    def __init__(self, obj_type: type[T]) -> None:
        self.type = obj_type
        BY_TYPE[obj_type] = self
        KINDS.append(self)
        KINDS.sort(key=lambda kind: ORDER.index(kind.type.__name__))

    if not TYPE_CHECKING:

        def __class_getitem__(cls, _):
            return cls

    def __init_subclass__(cls, of: type[Any] | None = None) -> None:
        if of is not None:
            cls(of)

    def space(self, obj: T) -> str:
        """Return the name of the object's network namespace, which is "" for the host."""
        return getattr(obj, "netns", "")

    def links(self, obj: T) -> tuple[str, ...]:
        """Return the network interfaces on which an object is, by their names in the namespace."""
        return ()

    def parent_name(self, obj: T) -> str:
        return self.parent_name_format.format(obj)

    def parents(self, obj: T) -> tuple[str, ...]:
        return tuple(name.format(obj) for name in self.parents_format)

    def dependencies(self, obj: T) -> tuple[str, ...]:
        """Return the parents (namespaces, interfaces and tables) that an object needs: each must
        exist and belong to niso before the object can be created.
        """
        return self.parents(obj)

    def guards(self, obj: T) -> Iterable[Element]:
        """Return the nftables elements by which niso's rules apply to a bridge, port or tunnel."""
        return ()

    def describe(self, step: Step[T]) -> str:
        """Return a shell command with the same effect as a step, or else a description. A change
        that only repairs an object is described by the differences, as `niso net check` does.
        """
        text = f"{step.action} {self.noun(step.obj)}"
        if step.actual is None:
            return text
        found = self.differences(step.obj, step.actual, ())
        return f"{text} ({'; '.join(one.detail for one in found)})"

    def noun(self, obj: T) -> str:
        """Return the object's name in messages, such as "bridge niso-backend"."""
        if self.noun_format:
            return self.noun_format.format(obj)
        return f"{type(obj).__name__.lower()} {' '.join(obj.key())}"

    def wanted(self, want: State, have: State) -> frozenset[T]:
        """Return this kind's desired objects, which may depend on the actual state ``have``."""
        return want[self.type]

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[T]:
        """Return the desired objects of this kind that the running kernel supports. ``before`` is
        the desired state before the change, or None. ``sysctl`` returns the value of a host sysctl,
        or None if the kernel does not have it.
        """
        return want[self.type]

    def blocking(self, want: State, have: State) -> frozenset[T]:
        """Return existing objects to delete first, because they conflict with desired objects."""
        return frozenset()

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        """Return the steps for this kind that change the actual state ``have`` to the desired state
        ``want``. ``disappearing`` are the parents (namespaces, interfaces, tables) that the change
        deletes. Objects in them need no step, because they are deleted with their parents.
        """
        made: list[AnyStep] = []
        deleted: list[AnyStep] = []
        before, more = by_key(want[self.type], have[self.type])
        for obj in sorted(want[self.type]):
            actual = before.pop(obj.key(), None)
            if actual is None:
                made.append(Step("add", obj))
            elif actual != obj:
                made.append(Step("change", obj, actual))
        for obj in sorted([*before.values(), *more]):
            if not any(parent in disappearing for parent in self.parents(obj)):
                deleted.append(Step("delete", obj))
        return (), made, deleted, ()

    def is_read_back(self, step: Step[T]) -> bool:
        """Return whether niso verifies a step by reading the object from the kernel again."""
        return step.action == "change" or not self.is_acknowledged

    def causes(self, obj: T, actual: T | None) -> tuple[str, ...]:
        """Return the conditions that would explain why ``obj`` is missing (``actual`` is None) or
        different. A condition is a string, such as "link /NETNS/NAME down" (`conditions`).
        """
        return ()

    def conditions(self, obj: T, actual: T) -> Iterable[str]:
        """Return the conditions by which the difference between ``obj`` and ``actual`` explains
        problems of other objects. For example, "link /NETNS/NAME down" explains missing routes.
        """
        return ()

    def differences(self, obj: T, actual: T, known: Collection[str]) -> list[Finding]:
        """Return the problems to report if ``actual`` differs from the desired object ``obj``.
        ``known`` are missing parents and conditions that are already reported. Fields that differ
        only for these reasons are left out.
        """
        texts = [
            self.describe_field(field, wanted, present)
            for field, wanted, present in zip(fields(obj), obj, actual, strict=True)
            if wanted != present and not self.is_field_explained(obj, field, present, known)
        ]
        return [Finding("different", self.noun(obj), "; ".join(texts))] if texts else []

    def is_field_explained(
        self, obj: T, field: str, present: object, known: Collection[str]
    ) -> bool:
        """Return whether reported problems (``known``) explain a field's value ``present``."""
        return False

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        """Describe the difference between the desired and the actual value of a field."""
        text = dict(self.field_texts).get(field)
        return text.format(present) if text else f"{field} is {present!r}, should be {wanted!r}"

    def claimed(self, reading: Reading) -> Iterable[T]:
        """Return the kernel's objects of this kind that have the mark of this state folder. They
        are the requested objects when all of niso's objects are read.
        """
        return ()

    def by_space(self, objects: Iterable[T]) -> dict[str, Collection[T]]:
        """Group objects by the name of the network namespace from which they are read."""
        if self.is_of_host:
            return {"": frozenset(objects)}
        spaces: dict[str, list[T]] = {}
        for obj in objects:
            spaces.setdefault(self.space(obj), []).append(obj)
        return dict(spaces)

    def read(self, space: Space, objects: Collection[T]) -> Iterable[T]:
        """Return the objects among ``objects`` that exist in a namespace, with their actual fields.
        The method is called for one namespace after another, and in each namespace for all kinds in
        `ORDER`. Some kinds also return other objects on the same interfaces. Raises KernelError,
        and Conflict if an object with a requested name belongs to another program.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def leftovers(self, reading: Reading) -> Iterable[T]:
        """Return existing objects of this state folder that `read` has not returned. The method is
        called only if all of niso's objects are read.
        """
        return ()

    def batch(self, step: Step[T], writer: Writer) -> Hashable:
        """Return the key of the group that a step belongs to. Consecutive steps with the same key
        are passed to `write` in one call. A step with the key None is written alone.

        Steps with the key `TOGETHER` are executed by their rtnetlink messages (`messages`). They
        form one group for each namespace, even if they are of different kinds. `write` passes this
        group to `Writer.send`.
        """
        return None

    def messages(self, step: Step[T], index: int | None) -> Iterable[Message]:
        """Return the rtnetlink messages that execute a step. ``index`` is the index of the network
        interface that the object is on, or None if the interface does not exist. Each message must
        be harmless if an earlier one fails, since the kernel does not stop at an error.
        """
        raise NotImplementedError(f"{type(self).__name__}.messages")

    def write(self, writer: Writer, steps: Sequence[Any]) -> None:
        """Change the kernel as the steps say. The steps form one group (see `batch`).

        Raises KernelError and OSError.
        """
        raise NotImplementedError(f"{type(self).__name__}.write")


def by_key(
    wanted: Collection[T], present: Collection[T]
) -> tuple[dict[tuple[str, ...], T], list[T]]:
    """Return (the objects ``present`` by their keys, the other objects with the same keys).

    The kernel can have several routes with one key, if their metrics differ. The first result then
    prefers a route that is also in ``wanted``, and the second result has the other routes.
    """
    objects: dict[tuple[str, ...], T] = {}
    more = []
    for obj in present:
        other = objects.setdefault(obj.key(), obj)
        if other is not obj:
            right = obj in wanted
            objects[obj.key()] = obj if right else other
            more.append(other if right else obj)
    return objects, more


def fields(obj: KernelObject) -> tuple[str, ...]:
    return obj._fields  # type: ignore[attr-defined, no-any-return]


def inside(netns: str) -> str:
    """Return the beginning of an iproute2 command: ``ip -n NAME``, or ``ip`` for the host."""
    return f"ip -n {netns} " if netns else "ip "


def existing(index: int | None, link: str) -> int:
    """Return ``index``, or raise KernelError if it is None: the interface ``link`` is missing."""
    if index is None:
        raise KernelError(f"link {link!r} does not exist", "niso net repair", errno.ENODEV)
    return index


def in_netns(netns: str) -> str:
    """Return the words " in NAME" for a message about an object, or "" for the host's namespace."""
    return f" in {netns}" if netns else ""


ORDER = (
    *("Ruleset", "Element", "RoutingRule", "WireGuard", "Bridge", "Vxlan", "Netns", "NetnsName"),
    *("Sysctl", "Fdb", "Veth", "Shaper", "Address", "Route", "PermanentNeighbour", "ForeignPort"),
    *("Neighbour", "HostsFile", "HostsLine"),
)
"""Class names of the objects, in the order of their creation; deletion is in reverse."""

KINDS: list[Kind[Any]] = []
"""The kinds whose modules are loaded, in `ORDER`. A State contains only objects of these kinds."""

Foreign = dict[str, Conflict]
"""Maps names of other programs' interfaces and namespaces that niso itself needs to Conflicts."""

_NONE: frozenset[Any] = frozenset()


class State:
    """An immutable set of kernel objects for each kind: ``state[Bridge]`` contains the bridges."""

    __slots__ = ("_by_type",)

    def __init__(self, objects: Iterable[KernelObject] = ()) -> None:
        sets: dict[type, set[KernelObject]] = {}
        for obj in objects:
            sets.setdefault(type(obj), set()).add(obj)
        self._by_type: dict[type, frozenset[Any]] = {
            kind: frozenset(some) for kind, some in sets.items()
        }

    @classmethod
    def of_sets(cls, sets: Iterable[tuple[type[Any], frozenset[Any]]]) -> State:
        state = cls()
        state._by_type = {kind: objects for kind, objects in sets if objects}
        return state

    @classmethod
    def of_kinds(cls, objects: Callable[[Kind[Any]], Iterable[Any]]) -> State:
        """Build a state from the objects that the function ``objects`` returns for each kind."""
        return cls.of_sets((kind.type, frozenset(objects(kind))) for kind in KINDS)

    def __getitem__(self, kind: type[T]) -> frozenset[T]:
        return self._by_type.get(kind, _NONE)

    def __iter__(self) -> Iterator[Any]:
        for kind in KINDS:
            yield from self[kind.type]

    def __or__(self, other: State) -> State:
        """Return the union of two States. If objects with one key differ, it contains both."""
        both = dict(self._by_type)
        for kind, objects in other._by_type.items():
            both[kind] = both[kind] | objects if kind in both else objects
        return State.of_sets(both.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self._by_type == other._by_type

    def __hash__(self) -> int:
        return hash(frozenset(self._by_type.items()))

    def __bool__(self) -> bool:
        return bool(self._by_type)

    def __repr__(self) -> str:
        return f"State({list(self)!r})"

    def keys(self) -> set[tuple[type, tuple[str, ...]]]:
        """Return (type, key) of each object in the State."""
        return {(type(obj), obj.key()) for obj in self}

    def without(self, other: State) -> State:
        """Return the objects of this state whose type and key do not occur in ``other``."""
        keys = other.keys()
        return State(obj for obj in self if (type(obj), obj.key()) not in keys)

    def replace(self, kind: type[T], objects: Iterable[T]) -> State:
        return State.of_sets({**self._by_type, kind: frozenset(objects)}.items())


class Space:
    """A network namespace from which a State is read. Answers of the kernel are cached. The name of
    the host's own namespace is "". If all of niso's objects are read, all interfaces and addresses
    of the namespace are listed at once.
    """

    def __init__(self, reading: Reading, name: str, objects: dict[type, Collection[Any]]) -> None:
        self.reading = reading
        self.name = name
        # whether the namespace exists and is not foreign: set when the namespace itself is read
        self.is_open = not name
        self.is_foreign = False  # whether its name belongs to an object that is foreign
        # whether another program created it: then only the candidates in it are niso's
        self.is_of_others = False
        self._objects = objects
        # the kernel's answers
        self._links: dict[str, Link | None] = {}
        self._addresses: dict[int, list[LinkAddress]] | None = None
        self._routes: dict[int, list[LinkRoute]] = {}
        self._tables: dict[int, set[StaticEntry]] = {}

    @property
    def rtnl(self) -> Rtnl:
        """Return an rtnetlink socket in this namespace. Raises KernelError."""
        return self.reading.sockets.at(self.name)

    def objects(self, kind: type[T]) -> Collection[T]:
        """Return the requested objects of a kind that are in this namespace."""
        return self._objects.get(kind, ())

    def link(self, name: str) -> Link | None:
        """Return the network interface with this name, or None if it does not exist."""
        if self.reading.everything:
            return self._by_name.get(name)
        if name not in self._links:
            self._links[name] = self.rtnl.link(name)
        return self._links[name]

    def other_end(self, link: Link) -> Link | None:
        """Return the other end of a veth interface, or None if it is not in this namespace."""
        end = self._by_index.get(link.peer_index)
        return end if end is not None and end.peer_index == link.index else None

    @cached_property
    def all_links(self) -> list[Link]:
        return self.rtnl.links()

    @cached_property
    def _by_name(self) -> dict[str, Link]:
        return {link.name: link for link in self.all_links}

    @cached_property
    def _by_index(self) -> dict[int, Link]:
        return {link.index: link for link in self.all_links}

    def own_link(self, name: str) -> Link | None:
        """Return the network interface with this name, or None if it does not exist. If it does not
        belong to this state folder, return None and add a Conflict to `Reading.foreign`. If
        `Reading.foreign` is None, raise the Conflict.
        """
        link = self.link(name)
        if link is None or link.alias == self.reading.alias:
            return link
        whose = f"its alias is {link.alias!r}" if link.alias else "it has no alias"
        reason = f"link {name!r} exists and does not belong to this niso ({whose})"
        hint = f"rename it (ip link set {name} down name NEW), or choose another name"
        self.reading.note_foreign(name, Conflict(reason, hint))
        return None

    def own_links(self, kind: str) -> list[Link]:
        """Return this namespace's interfaces of type ``kind`` with this state folder's alias."""
        own = (kind, self.reading.alias)
        return [link for link in self.all_links if (link.kind, link.alias) == own]

    @cached_property
    def links_of_concern(self) -> list[Link]:
        """Return this namespace's network interfaces with requested objects.

        If all of niso's objects are read, return also all bridges of niso on the host, and all veth
        interfaces in a service's namespace.
        """
        names = {
            name
            for kind in KINDS
            if kind.names_links
            for obj in self.objects(kind.type)
            for name in kind.links(obj)
        }
        if self.reading.everything and not self.is_of_others:
            veths = (link for link in self.all_links if link.kind == "veth")
            names |= {link.name for link in (veths if self.name else self.own_links("bridge"))}
        return [link for name in sorted(names) if (link := self.link(name)) is not None]

    def addresses(self, link: Link) -> list[LinkAddress]:
        """Return the addresses of a network interface in this namespace."""
        everything = self.reading.everything
        if self._addresses is None:
            self._addresses = {}
            for address in self.rtnl.addresses() if everything else ():
                self._addresses.setdefault(address.index, []).append(address)
        if link.index not in self._addresses:
            self._addresses[link.index] = [] if everything else self.rtnl.addresses(link.index)
        return self._addresses[link.index]

    def routes(self, link: Link) -> list[LinkRoute]:
        """Return the routes of this namespace that use a network interface."""
        if self.name and self.reading.with_strays:
            return [route for route in self.all_routes if route.index == link.index]
        if link.index not in self._routes:
            self._routes[link.index] = self.rtnl.routes(link.index)
        return self._routes[link.index]

    @cached_property
    def all_routes(self) -> list[LinkRoute]:
        """Return all routes of the main table. Slow, because a host can have a million routes."""
        return self.rtnl.routes()

    def bridge_table(self, bridge_index: int) -> set[StaticEntry]:
        """Return the static entries in a bridge's forwarding database."""
        if bridge_index not in self._tables:
            asked = 0 if self.reading.everything else bridge_index
            # the answer has nothing about a bridge without entries
            self._tables[bridge_index] = set()
            self._tables.update(neighbour_tables.of_bridges(self.rtnl, asked))
        return self._tables[bridge_index]


class Reading:
    """The data that all kinds share while one State is read. With ``with_strays``, objects that
    other programs have added to the interfaces of requested objects are read too. With
    ``everything``, all objects of this state folder are read.
    """

    def __init__(
        self,
        alias: str,
        sockets: Sockets,
        foreign: Foreign | None,
        with_strays: bool,
        everything: bool,
    ) -> None:
        self.alias = alias
        self.state_id = alias.partition(":")[2]
        self.sockets = sockets
        self.foreign = foreign
        self.with_strays = with_strays
        self.everything = everything
        self.candidates = State()
        self.host = Space(self, "", {})
        self._open: list[str] = []
        """The names of the namespaces that exist and have been read."""
        self.elements: dict[Atoms, Element] | None = None
        self.hosts_texts: dict[str, str] = {}
        self._present: dict[type, set[Any] | frozenset[Any]] = {}

    def so_far(self, kind: type[T]) -> Collection[T]:
        """Return the objects of a kind that are already read. `ORDER` is the order of the kinds."""
        return self._present.get(kind, ())

    def note_foreign(self, name: str, error: Conflict) -> None:
        """Record a Conflict about a foreign object, or raise it if ``self.foreign`` is None."""
        if self.foreign is None:
            raise error
        self.foreign[name] = error

    def note_foreign_netns(self, name: str) -> None:
        reason = f"network namespace {name!r} exists and does not belong to this niso"
        hint = "choose another name for the service, or take that name off the namespace"
        self.note_foreign(name, Conflict(reason, hint))

    def run(self, candidates: State, skip_transactional: bool = False) -> State:
        """Return the objects of ``candidates`` that exist, with their actual fields. Some kinds add
        other objects (`Kind.read`). With ``skip_transactional``, nftables tables and elements are
        not read, but assumed to be as in ``candidates``. A Reading can run only once.
        """
        self.candidates = candidates
        spaces: dict[str, dict[type, Collection[Any]]] = {"": {}}
        for kind in KINDS:
            for name, objects in kind.by_space(candidates[kind.type]).items():
                spaces.setdefault(name, {})[kind.type] = objects
        self.host = Space(self, "", spaces.pop(""))
        for name in ("", *sorted(spaces)):
            asked = spaces.pop(name) if name else {}
            space = Space(self, name, asked) if name else self.host
            # without objects on the interfaces of the namespace, nothing on them is read
            inside = not name or self.with_strays
            inside = inside or not all(BY_TYPE[of].reads_closed_spaces for of in asked)
            for kind in KINDS:
                if name and kind.is_of_host:
                    continue
                objects = space.objects(kind.type)
                if skip_transactional and kind.is_transactional:
                    self._note(kind, candidates[kind.type])
                elif kind.reads_closed_spaces or (space.is_open and inside):
                    present = kind.read(space, objects)
                    if space.is_of_others:
                        present = _asked(kind, present, objects)
                    self._note(kind, _same(objects, present))
            if name and space.is_open:
                self._open.append(name)
        if self.everything:
            for kind in KINDS:
                self._note(kind, frozenset(kind.leftovers(self)))
        present = self._present
        # this object and its spaces refer to each other, so the data would stay in memory
        self._present, self.elements, self.hosts_texts = {}, None, {}
        self.candidates, self.host, self._open = State(), Space(self, "", {}), []
        return State.of_kinds(lambda kind: present.get(kind.type, ()))

    def inner_spaces(self) -> Iterator[Space]:
        """Yield the namespaces of services that exist and have been read."""
        return (Space(self, name, {}) for name in self._open)

    def _note(self, kind: Kind[Any], present: frozenset[Any]) -> None:
        known = self._present.get(kind.type)
        if not known:
            self._present[kind.type] = present
        elif present:
            if not isinstance(known, set):
                known = self._present[kind.type] = set(known)
            known.update(present)


def _same[T: KernelObject](objects: Collection[T], present: Iterable[T]) -> frozenset[T]:
    # an object that is equal to a requested one is replaced by it: a state is large, and shared
    # objects save memory
    missing = set(objects)
    others = []
    for obj in present:
        if obj in missing:
            missing.remove(obj)
        else:
            others.append(obj)
    same = frozenset(objects)
    if missing:
        same -= missing
    return same.union(others) if others else same


def _asked(kind: Kind[Any], present: Iterable[Any], objects: Collection[Any]) -> list[Any]:
    keys = {(obj.key(), kind.links(obj)) for obj in objects}
    by_name = {obj.key() for obj in objects if not kind.is_read_by_link}
    return [obj for obj in present if obj.key() in by_name or (obj.key(), kind.links(obj)) in keys]


# --- the steps from an actual to a desired state --------------------------------------------------


def diff(want: State, have: State) -> list[AnyStep]:
    """Return the steps that change the kernel from the actual state ``have`` to the desired state
    ``want``, which must concern the same services and networks. Objects that are only in ``have``
    are deleted.
    """
    want = wanted(want, have)
    first: list[AnyStep] = []
    made: list[AnyStep] = []
    deleted: list[AnyStep] = []
    last: list[AnyStep] = []
    early = State.of_kinds(lambda kind: kind.blocking(want, have))
    have = _without(have, early)
    disappearing = _disappearing_parents(want, have)
    for kind in KINDS:
        before, additions, deletions, after = kind.steps(want, have, disappearing)
        first[:0] = before  # groups of bridges before the rules that compare them
        made += [Step("delete", obj) for obj in sorted(early[kind.type])]
        made += additions
        deleted[:0] = deletions
        last += after
    return [*first, *made, *deleted, *last]


def wanted(want: State, have: State) -> State:
    """Return the desired state after each kind has adjusted its objects to the actual state
    (`Kind.wanted`). For example, niso does not set the sysctl that enables IPv6 in a service. If
    another program has disabled IPv6 there, the sysctl becomes part of the desired state.
    """
    return State.of_kinds(lambda kind: kind.wanted(want, have))


def _disappearing_parents(want: State, have: State) -> set[str]:
    disappearing: set[str] = set()
    for kind in KINDS:
        if kind.parent_name_format:
            keys = {obj.key() for obj in want[kind.type]}
            disappearing |= {kind.parent_name(t) for t in have[kind.type] if t.key() not in keys}
    return disappearing


def _without(have: State, early: State) -> State:
    if not early:
        return have
    parents = {kind_of(obj).parent_name(obj) for obj in early}
    return State.of_kinds(
        lambda kind: (
            obj
            for obj in have[kind.type] - early[kind.type]
            if kind.is_transactional or parents.isdisjoint(kind.parents(obj))
        )
    )


def without_foreign(states: tuple[State, State], names: set[str]) -> tuple[State, State]:
    """Return two states without the objects that depend on foreign interfaces or namespaces.
    ``names`` are the names of these interfaces and namespaces.
    """
    if not names:
        return states
    lost = {parent for name in names for parent in (f"link //{name}", f"netns {name}")}
    keys: set[tuple[type, tuple[str, ...]]] = set()
    both = states[0] | states[1]
    size = -1
    while len(keys) > size:  # until nothing more depends on a removed object
        size = len(keys)
        for obj in both:
            kind = kind_of(obj)
            parent = kind.parent_name(obj)
            if parent in lost or not lost.isdisjoint(kind.dependencies(obj)):
                keys.add((type(obj), obj.key()))
                lost |= {parent} - {""}
    one, other = (
        State(obj for obj in state if (type(obj), obj.key()) not in keys) for state in states
    )
    return one, other
