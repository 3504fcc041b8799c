"""From steps to the kernel: the one place that changes it. Nothing here can fail on what a user wrote."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable
from contextlib import nullcontext, suppress

from niso.base import failpoint, files, paths
from niso.base.errors import KernelError, NisoError
from niso.kernel import bridge_flags, modules, neighbours, netns, sysctl
from niso.kernel.announce import announce
from niso.kernel.nft_elements import HEADERS, Change, Nfnetlink, can_change
from niso.kernel.rtnetlink import Rtnl
from niso.kernel.rtnl_sockets import Sockets
from niso.plan import hosts_text
from niso.plan.diff import AnyStep, Edit, HostsEdit, NftTransaction, Step
from niso.plan.state import (
    Address,
    Attached,
    Bridge,
    HostsFile,
    Neighbour,
    Netns,
    Route,
    Sysctl,
    Veth,
)


def write(
    steps: Iterable[AnyStep],
    sockets: Sockets,
    ending: list[str] | None = None,
    known: Container[tuple[str, str]] = (),
) -> None:
    """Do all steps in their order; the first failure ends it. Raises KernelError with the step's words.

    Neighbours are told of new addresses, since they may know them with another MAC; but of those that are ``known``
    (namespace, address) they know the right one. It costs 3 ms on a network of 1,000 services, which all hear it.

    With ``ending`` a veth pair whose namespace goes too is only detached, and its name added there: whoever gave it has then to
    `end_links`. The kernel needs some 20 ms to delete a pair.
    """
    writer = _Writer(steps, sockets, ending)
    for several in writer.batches():
        writer.do(*several)
    for step in writer.steps:
        thing = step.thing if isinstance(step, Step) and step.action == "add" else None
        if (
            isinstance(thing, Address)
            and thing.netns
            and (thing.netns, thing.address.partition("/")[0]) not in known
        ):
            announce(sockets, thing.netns, thing.link, thing.address)


def write_what_can_be(
    steps: Iterable[AnyStep], sockets: Sockets, ending: list[str] | None = None
) -> list[NisoError]:
    """Do all steps, going on after a failure (teardown); gives the errors met. ``ending`` as in `write`.

    After a failure no rule goes: what it guards may be what could not be taken away.
    """
    writer = _Writer(steps, sockets, ending)
    errors: list[NisoError] = []
    for several in writer.batches():
        if errors and isinstance(several[0], NftTransaction):
            continue
        try:
            writer.do(*several)
        except NisoError as error:
            errors.append(error)
            for step in several[1:] if len(several) > 1 else ():
                try:
                    writer.do(step)
                except NisoError as other:
                    errors.append(other)
    return errors


def end_links(names: list[str]) -> None:
    """Delete the links that `write` has detached, so that they are gone when this comes back. Raises KernelError."""
    if names:
        what = f"delete links {', '.join(names)}"
        try:
            failpoint.hit(what)
        except OSError as error:
            raise KernelError(f"{what}: {error.strerror}", errno=error.errno or 0) from error
        with Rtnl() as rtnl:
            _delete(rtnl, names)


def _delete(rtnl: Rtnl, names: list[str]) -> None:
    """Delete links; for one alone the kernel need not walk all links for its group."""
    if len(names) == 1:
        rtnl.delete_link(names[0])
    else:
        rtnl.delete_links(names)


class _Writer:
    """Steps, and how they are done: by sockets that are opened once."""

    def __init__(
        self, steps: Iterable[AnyStep], sockets: Sockets, ending: list[str] | None
    ) -> None:
        self.steps = list(steps)
        self._sockets = sockets
        self._ending = ending if ending is not None else []
        gone = (
            step.thing for step in self.steps if isinstance(step, Step) and step.action == "delete"
        )
        self._detached = (
            {thing.name for thing in gone if isinstance(thing, Netns)}
            if ending is not None
            else set()
        )

    def batches(self) -> list[list[AnyStep]]:
        """The steps in their order, each by itself, but together what costs as much as one: veth pairs that go, for which the kernel
        waits for its readers some 20 ms each time, and sysctls of one namespace, which has to be entered."""
        found: list[list[AnyStep]] = []
        last: tuple[str, str] | None = None
        for step in self.steps:
            kind = self._kind(step)
            if kind is not None and kind == last:
                found[-1].append(step)
            else:
                found.append([step])
            last = kind
        return found

    def _kind(self, step: AnyStep) -> tuple[str, str] | None:
        """What steps that may be done together have in common."""
        if isinstance(step, Step) and isinstance(step.thing, Sysctl):
            return ("sysctls", step.thing.netns)
        if isinstance(step, Step) and isinstance(step.thing, Veth) and step.action == "delete":
            return ("detach" if step.thing.netns in self._detached else "delete", "")
        return None

    def do(self, step: AnyStep, *more: AnyStep) -> None:
        """Do steps of one batch. Raises KernelError with the words of the one that failed, or of the first."""
        words = step.describe()
        try:
            for each in (step, *more):
                words = each.describe()
                failpoint.hit(words)
            if isinstance(step, NftTransaction):
                _transaction(step)
            elif isinstance(step, HostsEdit):
                _edit_hosts(step)
            else:
                self._things([each for each in (step, *more) if isinstance(each, Step)])
        except OSError as error:
            raise KernelError(
                f"{words.splitlines()[0]}: {error.strerror}", errno=error.errno or 0
            ) from error

    def _things(self, steps: list[Step]) -> None:
        step, thing = steps[0], steps[0].thing
        if isinstance(thing, Bridge):
            self._bridge(step, thing)
        elif isinstance(thing, Netns):
            self._namespace(step.action, thing)
        elif isinstance(thing, Veth) and step.action == "delete":
            self._veths_end([each.thing for each in steps if isinstance(each.thing, Veth)])
        elif isinstance(thing, Veth):
            self._veth(step, thing)
        elif isinstance(thing, Address):
            self._address(step, thing)
        elif isinstance(thing, Route):
            self._route(step, thing)
        elif isinstance(thing, Sysctl):
            with netns.inside(thing.netns) if thing.netns else nullcontext():
                sysctl.write_all(
                    (each.thing.name, each.thing.value)
                    for each in steps
                    if isinstance(each.thing, Sysctl)
                )
        elif isinstance(thing, Attached):
            self._sockets.at("").set_link(thing.link, master="")
        elif isinstance(thing, Neighbour):
            self._neighbour(thing)
        elif isinstance(thing, HostsFile):
            remove_hosts(thing.folder)
        else:
            raise AssertionError(f"a step of its own for {thing!r}")

    def _namespace(self, action: str, thing: Netns) -> None:
        if action == "delete":
            netns.delete(thing.name)
        elif action == "change":
            self._sockets.at(thing.name).set_link("lo", up=True)
        else:
            self._sockets.keep(thing.name, netns.make(thing.name, alias=thing.alias))

    def _bridge(self, step: Step, bridge: Bridge) -> None:
        action = step.action
        if action != "delete" and (bridge.tracked4 or bridge.tracked6):
            modules.load_bridge_netfilter()
        rtnl = self._sockets.at("")
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

    def _veths_end(self, veths: list[Veth]) -> None:
        """All of them are only detached, or none; the kernel needs some 20 ms to delete one, or many together."""
        rtnl = self._sockets.at("")
        if veths[0].netns in self._detached:
            rtnl.detach([veth.name for veth in veths])
            self._ending += [veth.name for veth in veths]
        else:
            _delete(rtnl, [veth.name for veth in veths])

    def _veth(self, step: Step, veth: Veth) -> None:
        rtnl = self._sockets.at("")
        inside = ""
        if step.action == "add":
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
            found = step.was.strange if isinstance(step.was, Veth) else ""
            inside = bridge_flags.ARP_OFF if bridge_flags.ARP_OFF_INSIDE in found else ""
            # another bridge's port is a new one
            strange = found if isinstance(step.was, Veth) and step.was.bridge == veth.bridge else ""
            rtnl.set_link(
                veth.name,
                mtu=veth.mtu,
                master=veth.bridge,
                hairpin=veth.hairpin,
                up=True,
                strange=strange,
            )
        self._sockets.at(veth.netns).set_link(veth.peer, mtu=veth.mtu, up=True, strange=inside)

    def _address(self, step: Step, address: Address) -> None:
        action = step.action
        rtnl, index = self._link(address.netns, address.link)
        if action == "delete":
            if index is not None:
                rtnl.delete_address(index, address.address)
            return
        index = _there(index, address.link)
        if action == "change":
            if isinstance(step.was, Address) and not step.was.lasting:
                rtnl.add_address(index, address.address, replace=True)
            rtnl.add_connected_route(index, address.address)
        else:
            rtnl.add_address(index, address.address)

    def _route(self, step: Step, route: Route) -> None:
        if route.type:  # none of these is wanted
            self._sockets.at(route.netns).delete_nowhere(route.destination, route.type)
            return
        gone = route if step.action == "delete" else step.was
        if isinstance(gone, Route):
            rtnl, index = self._link(gone.netns, gone.link)
            if index is not None:
                rtnl.delete_route(gone.destination, gone.gateway, index)
        if step.action != "delete":
            rtnl, index = self._link(route.netns, route.link)
            rtnl.add_route(route.destination, route.gateway, _there(index, route.link))

    def _neighbour(self, entry: Neighbour) -> None:
        rtnl, index = self._link(entry.netns, entry.link)
        if index is not None:
            neighbours.delete(rtnl, neighbours.Fixed(index, entry.address, entry.mac))

    def _link(self, name: str, link: str) -> tuple[Rtnl, int | None]:
        """A socket of the namespace, and the link's number there; None where it is gone, and what lay on it with it."""
        rtnl = self._sockets.at(name)
        try:
            return rtnl, rtnl.index(link)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            return rtnl, None


def _there(index: int | None, link: str) -> int:
    if index is None:
        raise KernelError(f"link {link!r} is not there", "niso net repair")
    return index


def _transaction(step: NftTransaction) -> None:
    edits = [edit for edit in step.edits if isinstance(edit, Edit)]
    headers = [HEADERS[edit.element.table, edit.element.container] for edit in edits]
    if len(edits) < len(step.edits) or not all(map(can_change, headers)):
        from niso.kernel.libnftables import Nft

        with Nft() as kernel:
            kernel.run("\n".join(step.statements))
        return
    what = f"apply nftables elements ({step.statements[0][:80]})"
    with Nfnetlink() as netlink:
        netlink.change(
            what,
            (
                Change(
                    edit.verb == "add",
                    header,
                    edit.element.element,
                    edit.element.value,
                    edit.element.comment,
                )
                for edit, header in zip(edits, headers, strict=True)
            ),
        )


def _edit_hosts(step: HostsEdit) -> None:
    folder = os.path.join(paths.hosts_root(), step.folder)
    path = os.path.join(folder, "hosts")
    text = hosts_text.HEADER
    if step.create:
        _make_folder(folder)
    else:
        text = (files.read(path) or b"").decode()
    text = hosts_text.edit(
        text,
        {hosts_text.line(line.address, line.names) for line in step.remove},
        {hosts_text.line(line.address, line.names) for line in step.add},
    )
    # a reader sees the old file or the new one; the services see the folder, so that a renamed file reaches them
    temporary = f"{path}.new"
    try:
        fd = files.make(temporary, 0o644)
        try:
            os.fchmod(fd, 0o644)
            files.write(fd, text.encode())
        finally:
            os.close(fd)
        failpoint.hit(f"rename {path}")
        files.rename(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):  # it could not even be made
            os.unlink(temporary)
        if step.create and not os.path.exists(path):
            os.rmdir(folder)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise KernelError(
                f"{path} is a folder that is not empty", "move it away, then niso net repair"
            ) from error
        raise


def _make_folder(folder: str) -> None:
    """Make it for everybody to read in, whatever is there in its place."""
    try:
        os.makedirs(folder, mode=0o755)
    except FileExistsError:
        if os.path.isdir(folder) and not os.path.islink(folder):
            os.chmod(folder, 0o755)
        else:
            os.unlink(folder)
            os.makedirs(folder, mode=0o755)


def remove_hosts(folder: str) -> None:
    path = os.path.join(paths.hosts_root(), folder)
    for name in ("hosts", "hosts.new"):
        try:
            files.remove(os.path.join(path, name))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                raise
    try:
        os.rmdir(path)
    except NotADirectoryError:
        os.unlink(path)
    except OSError as error:
        if error.errno not in (
            errno.ENOENT,
            errno.ENOTEMPTY,
        ):  # what somebody has put there is not niso's
            raise
