"""Model VXLAN devices and the entries of services of other hosts; see `niso.kernel.fake`."""

from __future__ import annotations

import errno
from collections.abc import Callable

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.fake_tables import refuse_unless
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.kind import Step, kind_of
from niso.kernel.kinds.peer import Peer
from niso.kernel.kinds.vxlan import Vxlan

if TYPE_CHECKING:
    from typing import Any


class FakeWire:
    """The devices by name, and objects of kinds for which only the parents are checked."""

    def __init__(self) -> None:
        self.bridges: dict[str, Bridge] = {}
        self.vxlans: dict[str, Vxlan] = {}
        self.others: dict[type, dict[tuple[str, ...], Any]] = {}
        self.is_space: Callable[[str], bool]
        self._absent: Callable[[int, object], None]
        self._check_new: Callable[[str], None]
        self._places: Callable[[], set[str]]
        self._link_gone: Callable[[str, str], None]

    def _vxlan(self, step: Step[Vxlan], vxlan: Vxlan) -> None:
        if step.action == "delete":
            if self.vxlans.pop(vxlan.name, None) is None:
                self._absent(errno.ENODEV, vxlan)
            else:
                self._link_gone("", vxlan.name)
            return
        refuse_unless(vxlan.bridge in self.bridges, errno.ENODEV, vxlan)
        if step.action == "change":
            present = self.vxlans.get(vxlan.name)
            refuse_unless(present is not None, errno.ENODEV, vxlan)
            same = present is not None and present.fixed == vxlan.fixed
            refuse_unless(same, errno.EOPNOTSUPP, "it cannot be changed")
        else:
            self._check_new(vxlan.name)
            for other in self.vxlans.values():
                if (other.vni, other.port) == (vxlan.vni, vxlan.port):
                    raise Conflict(f"another VXLAN device has VNI {vxlan.vni}")
        self.vxlans[vxlan.name] = vxlan

    def lose_ports(self, bridge: str) -> None:
        """Detach the VXLAN devices of a bridge that is deleted, as the kernel does."""
        for vxlan in [vxlan for vxlan in self.vxlans.values() if vxlan.bridge == bridge]:
            self.vxlans[vxlan.name] = vxlan._replace(bridge="")

    def _other(self, step: Step[Any], thing: Any) -> None:
        """Execute a step of a kind for which only the parents are checked."""
        things = self.others.setdefault(type(thing), {})
        if step.action == "delete":
            if things.pop(thing.key(), None) is None:
                self._absent(errno.ENOENT, thing)
            return
        netns = kind_of(thing).space(thing)
        refuse_unless(not netns or self.is_space(netns), errno.ENOENT, thing)
        refuse_unless(
            all(place in self._places() for place in kind_of(thing).hangs_on(thing)),
            errno.ENODEV,
            thing,
        )
        if step.action == "add" and not kind_of(thing).replaces:
            refuse_unless(thing.key() not in things, errno.EEXIST, thing)
        things[thing.key()] = thing

    def lose_neighbours(self, netns: str, link: str) -> None:
        """Delete the IPv4 neighbours of a link that has lost its last IPv4 address."""
        self.others[Peer] = {
            key: peer
            for key, peer in self.others.get(Peer, {}).items()
            if (peer.netns, peer.link) != (netns, link) or ":" in peer.address
        }

    def _others_gone(self, place: str) -> None:
        for kind, things in self.others.items():
            self.others[kind] = {
                key: thing
                for key, thing in things.items()
                if place not in kind_of(thing).lies_in(thing)
            }
