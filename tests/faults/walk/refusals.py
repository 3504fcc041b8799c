"""The classes of refusals that a command can be predicted to end with, by what its error says."""

from __future__ import annotations

import re

REFUSALS = {
    "unknown service": r"no service '",
    "inactive": r"service '\S+' is not active",
    "port taken": r"host port \S+ is published by '",
    "port used": r"host port \S+ is used by ",
    "forwarded": r"is forwarded to another port of '",
    "ambiguous": r"(is|would be) ambiguous",
    "name taken": r"the name '\S+' is already used by service '",
    "address taken": r"is leased to service '",
    "address outside": r"is not in \S+, the subnet of network '",
    "subnet taken": r"overlaps \S+ of ",
    "shared": r"'\S+' (shares|share) its network namespace",
    "no namespace": r"has mode host and no network namespace|has no network namespace of its own",
    "no network of its own": r"has mode (host|none)(: it cannot be reached)?$|has mode none: it cann",
    "peer of mode host": r"names a service of mode host|names this service",
    "network used": r"network '\S+' is used by ",
    "unknown network": r"no network '",
    "network differs": r"network '\S+' already exists ",
    "other stack": r"belongs to stack '",
    "elsewhere": r"is already the service of ",
    "in the manifest": r"is in the manifest of '",
    "not forwarded": r"is not forwarded to '",
    "provider not enabled": r", which is not enabled",
    "sharer enabled": r", which is enabled, shares the namespace",
}
AT_ONCE = {
    "busy": r"is being changed by another command|has just (begun|taken)|package copy .* is gone",
    "gone meanwhile": r"no service '|is not active",
}
"""Classes that a command may also end with if another one runs at the same time."""


def classes(words: str, known: dict[str, str] | None = None) -> set[str]:
    """Return the classes of refusals that an error output names."""
    lines = [line.removeprefix("niso: ") for line in words.splitlines()]
    return {
        name
        for name, pattern in (known or REFUSALS).items()
        for line in lines
        if re.search(pattern, line)
    }
