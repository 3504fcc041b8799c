"""What niso should know of one network and of one service."""

from __future__ import annotations

from dataclasses import dataclass, field

from walk.parts import Manifest, Port


@dataclass
class Network:
    """``subnet`` is the /24's first three numbers, "" until the kernel has said which.

    With ``six`` it has an IPv6 subnet too; ``subnet6`` is the /64 without its last colon.
    """

    subnet: str = ""
    six: bool = False
    subnet6: str = ""
    internal: bool = False
    implicit: bool = False


@dataclass
class Service:
    """``published`` are the ports of the manifest that it has; ``leases`` are by network."""

    manifest: Manifest
    active: bool = True
    enabled: bool = False
    stack: str = ""
    names: tuple[str, ...] = ()
    published: list[Port] = field(default_factory=list)
    forwards: list[Port] = field(default_factory=list)
    leases: dict[str, str] = field(default_factory=dict)
    leases6: dict[str, str] = field(default_factory=dict)

    @property
    def ports(self) -> list[Port]:
        return [*self.published, *self.forwards]
