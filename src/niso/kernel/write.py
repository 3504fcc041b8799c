"""From steps to the kernel: the one place that changes it. Nothing here can fail on what a user wrote."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from niso import failpoint, paths
from niso.diff import AnyStep, Edit, HostsEdit, NftTransaction, Step
from niso.errors import KernelError, NisoError
from niso.kernel import modules, neighbours, netns, sysctl
from niso.kernel.announce import Announcements
from niso.kernel.nftables import Nft
from niso.kernel.nftset import HEADERS, Change, Nfnetlink, can_change
from niso.kernel.rtnetlink import Rtnl
from niso.render import hosts
from niso.state import Address, Attached, Bridge, HostsFile, Neighbour, Netns, Route, Sysctl, Veth


def write(steps: Iterable[AnyStep]) -> None:
    """Do all steps in their order; the first failure ends it. Raises KernelError with the step's words."""
    done = list(steps)
    for several in _batches(done):
        _do(*several)
    with Announcements() as news:
        for step in done:
            if isinstance(step, Step) and isinstance(step.thing, Address) and step.action == "add" and step.thing.netns:
                _announce(news, step.thing)


def write_what_can_be(steps: Iterable[AnyStep]) -> list[NisoError]:
    """Do all steps, going on after a failure (teardown); gives the errors met.

    After a failure no rule goes: what it guards may be what could not be taken away.
    """
    errors: list[NisoError] = []
    for several in _batches(list(steps)):
        if errors and isinstance(several[0], NftTransaction):
            continue
        try:
            _do(*several)
        except NisoError as error:
            errors.append(error)
            for step in several[1:] if len(several) > 1 else ():
                try:
                    _do(step)
                except NisoError as other:
                    errors.append(other)
    return errors


def _batches(steps: list[AnyStep]) -> list[list[AnyStep]]:
    """The steps in their order, each by itself, but veth pairs that go one after another together: the kernel waits for its
    readers once for all of them, and else some 20 ms for each."""
    found: list[list[AnyStep]] = []
    for step in steps:
        if _is_veth_end(step) and found and _is_veth_end(found[-1][0]):
            found[-1].append(step)
        else:
            found.append([step])
    return found


def _is_veth_end(step: AnyStep) -> bool:
    return isinstance(step, Step) and step.action == "delete" and isinstance(step.thing, Veth)


def _do(step: AnyStep, *more: AnyStep) -> None:
    words = step.describe()
    try:
        for each in (step, *more):
            words = each.describe()
            failpoint.hit(words)
        if more:
            with Rtnl() as rtnl:
                rtnl.delete_links(
                    [
                        each.thing.name
                        for each in (step, *more)
                        if isinstance(each, Step) and isinstance(each.thing, Veth)
                    ]
                )
        elif isinstance(step, NftTransaction):
            _transaction(step)
        elif isinstance(step, HostsEdit):
            _edit_hosts(step)
        else:
            _one(step)
    except OSError as error:
        raise KernelError(f"{words.splitlines()[0]}: {error.strerror}", errno=error.errno or 0) from error


def _transaction(step: NftTransaction) -> None:
    edits = [edit for edit in step.edits if isinstance(edit, Edit)]
    headers = [HEADERS[edit.element.table, edit.element.container] for edit in edits]
    if len(edits) < len(step.edits) or not all(map(can_change, headers)):
        with Nft() as kernel:
            kernel.run("\n".join(step.statements))
        return
    what = f"apply nftables elements ({step.statements[0][:80]})"
    with Nfnetlink() as netlink:
        netlink.change(
            what,
            (
                Change(edit.verb == "add", header, edit.element.element, edit.element.value, edit.element.comment)
                for edit, header in zip(edits, headers, strict=True)
            ),
        )


def _one(step: Step) -> None:
    thing = step.thing
    if isinstance(thing, Bridge):
        _bridge(step, thing)
    elif isinstance(thing, Netns):
        if step.action == "delete":
            netns.delete(thing.name)
        elif step.action == "change":
            with netns.inside(thing.name), Rtnl() as rtnl:
                rtnl.set_link("lo", up=True)
        else:
            netns.create(thing.name, alias=thing.alias)
    elif isinstance(thing, Veth):
        _veth(step, thing)
    elif isinstance(thing, Address):
        _address(step.action, thing)
    elif isinstance(thing, Route):
        _route(step, thing)
    elif isinstance(thing, Sysctl):
        _sysctl(thing)
    elif isinstance(thing, Attached):
        with Rtnl() as rtnl:
            rtnl.set_link(thing.link, master="")
    elif isinstance(thing, Neighbour):
        _neighbour(thing)
    elif isinstance(thing, HostsFile):
        remove_hosts(thing.folder)
    else:
        raise AssertionError(f"a step of its own for {thing!r}")


def _bridge(step: Step, bridge: Bridge) -> None:
    action = step.action
    if action != "delete" and (bridge.tracked4 or bridge.tracked6):
        modules.load_bridge_netfilter()
    with Rtnl() as rtnl:
        if action == "delete":
            rtnl.delete_link(bridge.name)
        elif action == "add":
            rtnl.add_bridge(
                bridge.name,
                mtu=bridge.mtu,
                alias=bridge.alias,
                # made anew it has the same: for up to a minute services send to the one that they know
                mac=bridge.mac or None,
                call_iptables=bridge.tracked4,
                call_ip6tables=bridge.tracked6,
            )
        else:
            rtnl.set_link(
                bridge.name,
                mtu=bridge.mtu,
                mac=bridge.mac or None,
                up=True,
                call_iptables=bridge.tracked4,
                call_ip6tables=bridge.tracked6,
                strange=step.was.strange if isinstance(step.was, Bridge) else "",
            )


def _veth(step: Step, veth: Veth) -> None:
    action = step.action
    with Rtnl() as rtnl:
        if action == "delete":
            rtnl.delete_link(veth.name)
            return
        if action == "add":
            fd = netns.open_fd(veth.netns)
            try:
                rtnl.add_veth(
                    veth.name,
                    peer=veth.peer,
                    peer_netns_fd=fd,
                    peer_mac=veth.mac,
                    mtu=veth.mtu,
                    bridge=veth.bridge,
                    hairpin=veth.hairpin,
                    alias=veth.alias,
                )
            finally:
                os.close(fd)
        else:
            strange = step.was.strange if isinstance(step.was, Veth) and step.was.bridge == veth.bridge else ""
            rtnl.set_link(veth.name, mtu=veth.mtu, master=veth.bridge, hairpin=veth.hairpin, up=True, strange=strange)
    with netns.inside(veth.netns), Rtnl() as rtnl:
        rtnl.set_link(veth.peer, mtu=veth.mtu, up=True)


def _address(action: str, address: Address) -> None:
    with _at(address.netns), Rtnl() as rtnl:
        if action == "delete" and _is_gone(address.link):
            return
        index = _index(rtnl, address.link)
        if action == "delete":
            rtnl.delete_address(index, address.address)
        elif action == "change":
            rtnl.add_connected_route(index, address.address)
        else:
            rtnl.add_address(index, address.address)


def _neighbour(entry: Neighbour) -> None:
    with _at(entry.netns), Rtnl() as rtnl:
        if _is_gone(entry.link):
            return
        neighbours.delete(rtnl, neighbours.Fixed(_index(rtnl, entry.link), entry.address, entry.mac))


def _announce(news: Announcements, address: Address) -> None:
    """Neighbours may have the address with the MAC of the service that had it before."""
    with netns.inside(address.netns), Rtnl() as rtnl:
        link = rtnl.link(address.link)
        if link is not None:
            news.send(link.name, link.mac, address.address.partition("/")[0])


def _route(step: Step, route: Route) -> None:
    with _at(route.netns), Rtnl() as rtnl:
        gone = route if step.action == "delete" else step.was
        if isinstance(gone, Route) and not _is_gone(gone.link):
            rtnl.delete_route(gone.destination, gone.gateway, _index(rtnl, gone.link))
        if step.action != "delete":
            rtnl.add_route(route.destination, route.gateway, _index(rtnl, route.link))


def _sysctl(thing: Sysctl) -> None:
    with _at(thing.netns):
        sysctl.write(thing.name, thing.value)


def _at(name: str) -> netns.Elsewhere | _Here:
    return netns.inside(name) if name else _Here()


class _Here:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _is_gone(link: str) -> bool:
    """Whether there is no such link (any more): what lay on it has gone with it."""
    try:
        socket.if_nametoindex(link)
    except OSError:
        return True
    return False


def _index(rtnl: Rtnl, name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise KernelError(f"link {name!r} is not there", "niso net repair") from None


def _edit_hosts(step: HostsEdit) -> None:
    folder = os.path.join(paths.hosts_root(), step.folder)
    path = os.path.join(folder, "hosts")
    os.makedirs(folder, mode=0o755, exist_ok=True)
    text = hosts.HEADER
    if not step.create:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    text = hosts.edit(
        text,
        {hosts.line(line.address, line.names) for line in step.remove},
        {hosts.line(line.address, line.names) for line in step.add},
    )
    # a reader sees the old file or the new one; the services see the folder, so that a renamed file reaches them
    temporary = f"{path}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        failpoint.hit(f"rename {path}")
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        if step.create and not os.path.exists(path):
            os.rmdir(folder)
        raise


def remove_hosts(folder: str) -> None:
    path = os.path.join(paths.hosts_root(), folder)
    for name in ("hosts", "hosts.new"):
        try:
            os.unlink(os.path.join(path, name))
        except FileNotFoundError:
            pass
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
