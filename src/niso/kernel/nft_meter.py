"""Count the bytes of each flow while a command runs, in temporary nftables tables.

The tables have the flag ``owner`` (nft(8)): the kernel deletes them with the socket that created
them, also if this process is killed. docs/design/seeing.md explains where the rules are.
"""

from __future__ import annotations

import itertools
import os

from niso.base.lite_typing import TYPE_CHECKING
from niso.base.prefixes import unpacked
from niso.kernel import sensor
from niso.kernel.libnftables import Nft
from niso.kernel.nft_sensor import TRACKED
from niso.kernel.nft_trace import PREFIX

if TYPE_CHECKING:
    Key = tuple[str, str, str, int]
    """Source, destination, protocol and port, after DNAT; as of `sensor.Recorded`."""

_PORTED = "{ tcp, udp, sctp }"
_SIZE = 65_535
_KEPT_S = 10
"""The lifetime of an element after its last packet: a few readings."""
_WORDS = {4: "ip", 6: "ip6"}
_THERE, _BACK, _EITHER = "there", "back", "either"
_numbers = itertools.count()


class Meter:
    """Counts bytes from its creation on. Raises KernelError."""

    def __init__(self) -> None:
        self._name = f"{PREFIX}{os.getpid()}_meter{next(_numbers)}"
        self._before: dict[tuple[str, tuple[object, ...]], int] = {}
        self._nft = Nft()
        try:
            self._nft.run(tables(self._name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the tables."""
        self._nft.close()

    def __del__(self) -> None:
        if hasattr(self, "_nft"):
            self.close()

    def read(self) -> dict[Key, int]:
        """Return the bytes of each flow since the last call, both directions added up.

        Some keys belong to no flow: on a bridge that is not tracked, the direction of a flow is
        unknown, so both are returned. Raises KernelError.
        """
        now: dict[tuple[str, tuple[object, ...]], int] = {}
        switched: dict[Key, int] = {}
        tracked: dict[Key, int] = {}

        def moved(name: str, key: tuple[object, ...], octets: int) -> int:
            now[name, key] = octets
            before = self._before.get((name, key), 0)
            return octets - before if octets >= before else octets

        for number in _WORDS:
            for key, octets in sensor.dump(f"bridge {self._name}", f"{_EITHER}{number}", _either):
                source, to, proto, source_port, port = key
                more = moved(_EITHER, key, octets)
                for flow in ((source, to, proto, port), (to, source, proto, source_port)):
                    switched[flow] = switched.get(flow, 0) + more
            for way in (_THERE, _BACK):
                for row in sensor.flows_in(f"inet {self._name}", f"{way}{number}"):
                    more = moved(way, row[:4], row.octets)
                    tracked[row[:4]] = tracked.get(row[:4], 0) + more
        self._before = now
        # if another program's rule made both tables count a flow, the inet table's figure counts
        return switched | tracked


def _either(key: bytes, fields: dict[int, bytes]) -> tuple[tuple[str, str, str, int, int], int]:
    """Return addresses, protocol and both ports of an element, and its bytes."""
    size = 16 if len(key) == 44 else 4
    source, to = (unpacked(key[at : at + size]) for at in (0, size))
    proto, ports = key[2 * size], key[2 * size + 4 :]
    source_port, port = (int.from_bytes(ports[at : at + 2], "big") for at in (0, 4))
    return (source, to, sensor.proto_name(proto), source_port, port), sensor.counted(fields)[1]


def tables(name: str) -> str:
    """Return the tables in nft(8) syntax. A full set counts no new flow, and drops no packet."""

    def sets(way: str, ports: str) -> str:
        limits = f"size {_SIZE}; flags dynamic, timeout; timeout {_KEPT_S}s; counter;"
        return "\n".join(
            f"\tset {way}{number} {{ type ipv{number}_addr . ipv{number}_addr . inet_proto ."
            f" {ports}; {limits} }}"
            for number in _WORDS
        )

    def rules(way: str, key: str) -> str:
        return "\n\t\t".join(
            f"update @{way}{number} {{ {key.format(word=word)} }} accept"
            for number, word in _WORDS.items()
        )

    one, two = "inet_service", "inet_service . inet_service"
    return f"""\
table inet {name} {{
	flags owner
{sets(_THERE, one)}
{sets(_BACK, one)}
	chain replies {{
		{rules(_BACK, "{word} daddr . {word} saddr . meta l4proto . th sport")}
	}}
	chain count {{
		meta l4proto != {_PORTED} accept
		ct direction reply goto replies
		{rules(_THERE, "{word} saddr . {word} daddr . meta l4proto . th dport")}
	}}
	chain away {{
		type filter hook postrouting priority filter; policy accept;
		oifname "niso-*" goto count
		iifname "niso-*" goto count
	}}
	chain host {{
		type filter hook input priority filter; policy accept;
		iifname "niso-*" goto count
	}}
}}
table bridge {name} {{
	flags owner
{sets(_EITHER, two)}
	chain switched {{
		type filter hook forward priority 100; policy accept;
		iifname != "n*" accept comment "niso's ports begin so, not all that do are"
		meta mark & {TRACKED} != 0 accept
		meta l4proto != {_PORTED} accept
		ip frag-off & 0x1fff != 0 accept
		{rules(_EITHER, "{word} saddr . {word} daddr . meta l4proto . th sport . th dport")}
	}}
}}
"""
