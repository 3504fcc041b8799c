"""Make chains of other programs in memory."""

from __future__ import annotations

import struct

from niso.kernel.foreign_chains import Between, ChainVerdict, Mask, RegisterLoad, Rule

INET, IP, BRIDGE, IP6 = 1, 2, 7, 10
ACCEPT, DROP, RETURN = ChainVerdict("accept"), ChainVerdict("drop"), ChainVerdict("return")
R1, R2 = 16, 32  # NFT_REG_1, NFT_REG_2
IIF, OIF, STATE, STATUS = (
    RegisterLoad(R1, "meta", 6),
    RegisterLoad(R1, "meta", 7),
    RegisterLoad(R1, "ct", 0),
    RegisterLoad(R1, "ct", 2),
)
BACKEND = ("niso-backend", 7, {4: "10.99.1.1/24"})


class Rules:
    """A table by hand: chains by name, and sets of (length of a key, elements)."""

    def __init__(
        self,
        *base: Rule,
        sets: dict[str, tuple[int, dict[bytes, ChainVerdict | None]]] | None = None,
        **chains,
    ):
        self.chains: dict[str, list[Rule]] = {"FORWARD": list(base)} | {
            name: list(rules) for name, rules in chains.items()
        }
        self.sets = sets or {}
        self.asked: list[bytes] = []

    def rules(self, family: int, table: str, chain: str) -> list[Rule]:
        return self.chains.get(chain, [])

    def key_length(self, family: int, table: str, name: str) -> int:
        return self.sets.get(name, (0, {}))[0]

    def element(
        self, family: int, table: str, name: str, key: bytes
    ) -> tuple[bool, ChainVerdict | None]:
        self.asked.append(key)
        elements = self.sets[name][1]
        return key in elements, elements.get(key)


def named(name: str, *, inverted: bool = False) -> Between:
    """Whether the name in R1 is this one; with a "*" at its end, whether it begins so."""
    data = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    return Between(R1, data, data, inverted)


def bits(number: int) -> tuple[Mask, Between]:
    """Whether the word in R1 has one of these bits."""
    return Mask(R1, R1, struct.pack("=I", number), bytes(4)), Between(R1, bytes(4), bytes(4), True)


IN, OUT = (IIF, named("niso-backend"), ACCEPT), (OIF, named("niso-backend"), ACCEPT)
REPLIES = (STATE, *bits(2 | 4), ACCEPT)
