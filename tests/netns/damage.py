"""Say what a damage is, and how findings name what it hits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from damage_world import World

Found = list[tuple[str, str]]

API = r"veth niapi-\S+ to niso-api eth0"
SHAPED = "^bandwidth of niso-api eth0$"
API1 = r"veth niapi-\S+ to niso-api eth1"
OWN_MAC = "mac=$(ip -n niso-api -br link show eth0 | awk '{print $3}');"
FIXED = "lladdr 02:00:00:00:00:01"


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


def damage(
    of: str | tuple[str, ...],
    do: Callable[[World], object],
    *,
    missing: str | list[str] | tuple[()] = (),
    different: str | list[str] | tuple[()] = (),
    foreign: str | list[str] | tuple[()] = (),
    **more: Any,
) -> Damage:
    """Make a `Damage` of what is found missing, different and foreign."""
    problems = {"missing": missing, "different": different, "foreign": foreign}
    found = [
        (problem, pattern)
        for problem, patterns in problems.items()
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    ]
    return Damage((of,) if isinstance(of, str) else of, do, found, **more)


def sysctl(setting: str, right: str, netns: str | None = None, stack: str = "") -> Damage:
    """Set ``KEY=VALUE`` in a namespace; the right value is another one."""
    path, inside = setting.partition("=")[0].replace(".", "/"), f" in {netns}" if netns else ""
    what = f"^sysctl {path}='{right}'{inside}$"
    return damage("Sysctl.value", lambda w: w.sysctl(setting, netns), different=what, stack=stack)


def row(statement: str, *, missing: str = "", foreign: str = "", stack: str = "") -> Damage:
    """Change the store's rows; ``missing`` or ``foreign`` is ``TABLE of service NAME``."""
    what = f"^store: {missing or foreign}$"
    problem = {"missing" if missing else "foreign": what}
    return damage("store row", lambda w: w.sql(statement), **problem, stack=stack)


def hosts_file(do: Callable[[World], object]) -> Damage:
    """Change the hosts file of backend."""
    what = "^hosts file /run/niso/hosts/backend/hosts$"
    return damage("HostsFile missing", do, different=what)
