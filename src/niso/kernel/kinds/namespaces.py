"""Define the kinds for network namespaces: niso's own, and names for those of other programs.

niso creates one namespace for each service with mode bridge or none. An attachment is a service in
a namespace that another program, such as a container engine, has created; niso only adds a name for
this namespace. In such a namespace, niso reads and writes only its own interfaces, because the rest
belongs to the other program.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import netns
from niso.kernel.kinds.kind import Kind, Reading, Space, Step
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from niso.kernel.real import Writer


class NetnsName(NamedTuple):
    """A symbolic link in /run/netns, which gives an attachment's namespace the name ``name``.
    ``target`` is the path of the namespace. ``cookie`` identifies the namespace (SO_NETNS_COOKIE),
    and is 0 if the namespace no longer exists.
    """

    name: str
    target: str
    cookie: int

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Names(Kind[NetnsName], of=NetnsName):
    noun_format = "name {0.name} of the network namespace {0.target}"
    field_texts = (("cookie", "it leads to another namespace"), ("target", "it leads to {}"))
    parent_name_format = "netns {0.name}"
    is_acknowledged = True
    reads_closed_spaces = True

    def space(self, obj: NetnsName) -> str:
        return obj.name

    def describe(self, step: Step[NetnsName]) -> str:
        path = f"/run/netns/{step.obj.name}"
        return f"rm {path}" if step.action == "delete" else f"ln -sfT {step.obj.target} {path}"

    def claimed(self, reading: Reading) -> Iterable[NetnsName]:
        """Yield niso's links in /run/netns to namespaces with veth ends of this state folder."""
        own: set[tuple[int, int]] | None = None
        for name in netns.symlinks():
            if not netns.exists(name):  # left by a removed attachment; no record says which one
                continue
            if own is None:
                links = reading.host.rtnl.links()
                own = {(x.peer_index, x.index) for x in links if x.alias == reading.alias}
            with netns.inside(name), Rtnl() as rtnl:
                inner = {(x.index, x.peer_index) for x in rtnl.links() if x.kind == "veth"}
            if inner & own:
                target = netns.target(name) or ""
                yield NetnsName(name, target, netns.cookie_at(target) or 0)

    def read(self, space: Space, objects: Collection[NetnsName]) -> Iterable[NetnsName]:
        if not objects:
            return ()
        target = netns.target(space.name)
        if target is None:
            return ()
        known = {obj.target for obj in objects}
        if not target or (target not in known and netns.exists(space.name)):
            space.reading.note_foreign_netns(space.name)
            space.is_foreign = True
            return ()
        cookies = {obj.cookie for obj in objects if obj.target == target}
        cookie = netns.pin(space.name, target, cookies)
        space.is_open = cookie in cookies
        space.is_of_others = True
        return (NetnsName(space.name, target, cookie),)

    def write(self, writer: Writer, steps: Sequence[Step[NetnsName]]) -> None:
        (step,) = steps
        name, target, cookie = step.obj
        if step.action == "delete":
            netns.unlink(name)
        elif netns.pin(name, target, (cookie,)) != cookie:
            raise OSError(errno.ESTALE, "this network namespace has ended", target)
        else:
            netns.link(name, target)


class Netns(NamedTuple):
    """A network namespace that niso created. ``alias`` is the alias of ``lo`` in the namespace,
    which contains the id of the state folder. ``up`` is true if ``lo`` is up.
    """

    name: str
    alias: str
    up: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Namespaces(Kind[Netns], of=Netns):
    noun_format = "network namespace {0.name}"
    parent_name_format = "netns {0.name}"
    is_acknowledged = True
    reads_closed_spaces = True

    def space(self, obj: Netns) -> str:
        return obj.name

    def describe(self, step: Step[Netns]) -> str:
        if step.action == "change":
            return f"ip -n {step.obj.name} link set lo up"
        return f"ip netns {'delete' if step.action == 'delete' else 'add'} {step.obj.name}"

    def claimed(self, reading: Reading) -> Iterable[Netns]:
        wanted = {obj.name for obj in reading.candidates[Netns]}
        attached = {obj.cookie for obj in reading.candidates[NetnsName]}
        for name in netns.own_names():
            # desired namespaces are read anyway; the engine owns the namespace of an attachment
            if name in wanted or (attached and netns.cookie_of(name) in attached):
                continue
            with netns.inside(name), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is not None and lo.alias == reading.alias:
                yield Netns(name, reading.alias)

    def read(self, space: Space, objects: Collection[Netns]) -> Iterable[Netns]:
        if not objects or not netns.exists(space.name):
            return ()
        lo = space.link("lo")
        if lo is None or lo.alias != space.reading.alias:
            space.reading.note_foreign_netns(space.name)
            space.is_foreign = True
            return ()
        space.is_open = True
        return (Netns(space.name, lo.alias, lo.up),)

    def write(self, writer: Writer, steps: Sequence[Step[Netns]]) -> None:
        (step,) = steps
        name = step.obj.name
        if step.action == "delete":
            netns.delete(name)
        elif step.action == "change":
            writer.rtnl(name).set_link("lo", up=True)
        else:
            writer.sockets.keep(name, netns.make(name, alias=step.obj.alias))
