"""The section [isolation.resources]: how much of the machine a service may have."""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values

if TYPE_CHECKING:
    from typing import Any

MIN_MEMORY = 1 << 20
MAX_MEMORY = 1 << 60
MIN_PIDS, MAX_PIDS = (
    2,
    4_194_304,
)  # PID 1 of the service and its program; PID_MAX_LIMIT (linux/threads.h)
MAX_PERCENT = 1_000_000


def memory_max(text: str, key: str) -> int:
    """Bytes of ``512M``, at least 1M: with less not even PID 1 starts."""
    size = values.size(text, key)
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise values.wrong(key, text, "it is out of range", "a size of 1M to 1000000000G", '"512M"')
    return size


def cpu_max(text: str, key: str) -> int:
    """Per cent of one CPU: ``200%`` is two of them."""
    digits = text.removesuffix("%")
    number = (
        int(digits)
        if digits.isascii() and digits.isdigit() and len(digits) <= 7 and digits[0] != "0"
        else 0
    )
    if digits == text or not 1 <= number <= MAX_PERCENT:
        right = f"a whole number of 1 to {MAX_PERCENT} with %, where 100% is one CPU"
        raise values.wrong(key, text, "it is no share of CPUs", right, '"200%"')
    return number


def problems(section: Mapping[str, Any], parsed: dict[str, Any]) -> list[InvalidInput]:
    """Every wrong value of the section as tomllib returned it; what has the wrong type is left to `niso.manifest.validate.walk`.

    What right texts mean is added to ``parsed``, by their keys.
    """
    errors: list[InvalidInput] = []
    for name, rule in (("memory_max", memory_max), ("cpu_max", cpu_max)):
        text = section.get(name)
        if isinstance(text, str):
            key = f"isolation.resources.{name}"
            try:
                parsed[key] = rule(text, key)
            except InvalidInput as error:
                errors.append(error)
    pids, key = section.get("pids_limit"), "isolation.resources.pids_limit"
    if type(pids) is int and not MIN_PIDS <= pids <= MAX_PIDS:
        right = f"a number of {MIN_PIDS} (PID 1 and the program) to {MAX_PIDS}"
        errors.append(values.wrong(key, pids, "it is out of range", right, "4096"))
    return errors
