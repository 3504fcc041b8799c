"""Say what a damage is, and how findings name what it hits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from damage_world import World

Found = list[tuple[str, str]]


class Damage(NamedTuple):
    """``of`` says what it is a case of: ``Veth missing``, ``Veth foreign``, ``Veth.mtu``, or a word of `OTHERS`.

    ``found`` is (problem, pattern of what), no more and no fewer. ``anew``: what is lost is made again, so the kernel's own
    facts of it differ afterwards. ``quiet``: no packet may come while the rules are away: the kernel itself would end the
    connection. ``stack``: where it can be done, "dual" or "single".
    """

    of: tuple[str, ...]
    do: Callable[[World], object]
    found: Found
    anew: bool = False
    quiet: bool = False
    stack: str = ""


API = r"veth niapi-\S+ to niso-api eth0"
SHAPED = "^bandwidth of niso-api eth0$"
API1 = r"veth niapi-\S+ to niso-api eth1"
OWN_MAC = "mac=$(ip -n niso-api -br link show eth0 | awk '{print $3}');"
FIXED = "lladdr 02:00:00:00:00:01"
