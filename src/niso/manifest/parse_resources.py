"""Parse [isolation.resources], the resource limits of a service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan.records import SENDS_RAW

if TYPE_CHECKING:
    from typing import Any

MIN_MEMORY = 1 << 20
MAX_MEMORY = 1 << 60
MIN_PIDS = 2  # PID 1 of the service and its program
MAX_PIDS = 4_194_304  # PID_MAX_LIMIT (linux/threads.h)
MAX_PERCENT = 1_000_000
PIDS = 2048
"""The limit of processes and threads of a service whose manifest sets none; as Podman's."""
SHM = "64M"
"""The size of /dev/shm; as Docker's and Podman's."""
TMP = 256 << 20
"""The size of /tmp, /run and /var/tmp without a memory limit."""
MIN_TMPFS = 64 << 10
NEW_FLOWS, ARP, NEW_NEIGHBOURS = 1000, 100, 20
"""Per second, like all limits of the network; 0: no limit."""
FRAGMENTS = 40
"""IP fragments per second for a service that can send incomplete packets: the host keeps their
parts for 30 s, in 4 MiB (net.ipv4.ipfrag_time, ipfrag_high_thresh): 1,600 large ones."""
MAX_RATE = 1_000_000
WAYS = ("in", "out")
_RATE_UNITS = {"K": 1000, "M": 10**6, "G": 10**9}
MIN_RATE, MAX_BANDWIDTH = 64_000, 100 * 10**9
RATES = ("new_flows_limit", "arp_limit", "fragments_limit", "new_neighbours_limit")


def memory_max(text: str, key: str) -> int:
    """Parse ``512M`` to bytes. Raises InvalidInput, also below 1M: PID 1 could not start."""
    size = values.size(text, key)
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise values.wrong(key, text, "is out of range", "1M to 1000000000G", '"512M"')
    return size


def rate(text: str, key: str) -> int:
    """Parse ``100M``, in bits per second (powers of 1000), to bytes per second.

    Raises InvalidInput.
    """
    unit = _RATE_UNITS.get(text[-1:])
    digits = text[:-1]
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else 0
    if unit is None or not number or digits[0] == "0":
        right = "a whole number above 0 with unit K, M or G: bits per second"
        raise values.wrong(key, text, "is not a valid rate", right, '"100M"')
    return rate_of_bits(number * unit, key, text)


def rate_of_bits(bits: int, key: str, written: object) -> int:
    """Convert bits per second to bytes per second. Raises InvalidInput if out of range."""
    if not MIN_RATE <= bits <= MAX_BANDWIDTH:
        raise values.wrong(key, written, "is out of range", "64K to 100G bits per second", '"100M"')
    return bits // 8


def ways(network: Mapping[str, object], parsed: dict[str, Any]) -> Iterator[InvalidInput]:
    """Yield an error for each invalid rate of network.bandwidth.

    Valid rates are added to ``parsed``.
    """
    from niso.manifest.validate import join

    table = network.get("bandwidth")
    for way, text in table.items() if isinstance(table, dict) else ():
        path = join("network.bandwidth", way)
        if way not in WAYS:
            yield values.wrong(path, way, "is an unknown direction", "in or out")
        elif isinstance(text, str):
            try:
                parsed[path] = rate(text, path)
            except InvalidInput as error:
                yield error


def cpu_max(text: str, key: str) -> int:
    """Parse a percentage of one CPU: ``200%`` is two CPUs. Raises InvalidInput."""
    digits = text.removesuffix("%")
    number = (
        int(digits)
        if digits.isascii() and digits.isdigit() and len(digits) <= 7 and digits[0] != "0"
        else 0
    )
    if digits == text or not 1 <= number <= MAX_PERCENT:
        right = f"1% to {MAX_PERCENT}%, a whole number, where 100% is one CPU"
        raise values.wrong(key, text, "is not a valid CPU limit", right, '"200%"')
    return number


def tmpfs(text: str, key: str) -> int:
    """Parse the size of a tmpfs that niso creates itself to bytes. Raises InvalidInput."""
    size = values.size(text, key)
    if not MIN_TMPFS <= size <= MAX_MEMORY:
        raise values.wrong(key, text, "is out of range", "64K to 1000000000G", '"256M"')
    return size


def tmp_default(memory_max: int | None) -> str:
    """Return the default size of /tmp, /run and /var/tmp.

    It is 256M, or a quarter of the memory limit.
    """
    size = TMP if memory_max is None else memory_max // 4
    if size >= 1 << 39:  # the text of a size has at most nine digits
        return f"{size >> 30}G"
    return f"{size >> 10}K" if size & (1 << 20) - 1 else f"{size >> 20}M"


def fragments_default(capabilities: Collection[str]) -> int:
    """Return the default limit of IP fragments.

    0 (none) unless a capability allows partial packets.

    For other services the kernel sends complete packets only.
    """
    return 0 if SENDS_RAW.isdisjoint(capabilities) else FRAGMENTS


RULES: dict[str, Callable[[str, str], int]] = {
    "memory_max": memory_max,
    "cpu_max": cpu_max,
    "shm_size": tmpfs,
    "tmp_size": tmpfs,
}
"""The rule for each key with a text value."""


def problems(section: Mapping[str, Any], parsed: dict[str, Any]) -> list[InvalidInput]:
    """Return an error for each invalid value of the section, given as tomllib returned it.

    Values of a wrong type are skipped: `niso.manifest.validate.walk` reports them.
    Valid values are added to ``parsed`` under their keys.
    """
    errors: list[InvalidInput] = []
    for name, rule in RULES.items():
        text = section.get(name)
        if isinstance(text, str):
            key = f"isolation.resources.{name}"
            try:
                parsed[key] = rule(text, key)
            except InvalidInput as error:
                errors.append(error)
    pids, key = section.get("pids_limit"), "isolation.resources.pids_limit"
    if type(pids) is int and not MIN_PIDS <= pids <= MAX_PIDS:
        right = f"{MIN_PIDS}, for PID 1 and the program, to {MAX_PIDS}"
        errors.append(values.wrong(key, pids, "is out of range", right, "4096"))
    for name in RATES:
        rate, key = section.get(name), f"isolation.resources.{name}"
        if type(rate) is int and not 0 <= rate <= MAX_RATE:
            right = f"0, for no limit, to {MAX_RATE} a second"
            errors.append(values.wrong(key, rate, "is out of range", right, "5000"))
    return errors
