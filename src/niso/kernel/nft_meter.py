"""Count the bytes of each flow while a command runs, in tables that end with it.

The tables have the flag ``owner`` (nft(8)): the kernel deletes them with the socket that made them,
also if this process is killed. docs/design/seeing.md explains the places of the rules.
"""

from __future__ import annotations

import itertools
import os

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import sensor
from niso.kernel.libnftables import Nft
from niso.kernel.nft_sensor import TRACKED
from niso.kernel.nft_trace import PREFIX

if TYPE_CHECKING:
    Key = tuple[str, str, str, int]
    """Source, destination, protocol and port, after DNAT; as of `sensor.Recorded`."""

_PORTED = "{ tcp, udp, sctp }"
_SIZE = 65_535
_KEPT_S = 20
"""How long an element lives after its last packet: a few looks."""
_WORDS = {4: "ip", 6: "ip6"}
_THERE, _BACK = "there", "back"
_numbers = itertools.count()


class Meter:
    """Counts bytes from its creation on. Raises KernelError."""

    def __init__(self) -> None:
        self._name = f"{PREFIX}{os.getpid()}_meter{next(_numbers)}"
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
        """Return the bytes of each flow, in both directions together. Raises KernelError.

        A count begins again after `_KEPT_S` without a packet. There are keys that are no flow's:
        within a bridge that is not tracked, nothing says who began.
        """
        counts: dict[Key, int] = {}
        for family in ("bridge", "inet"):
            own: dict[Key, int] = {}
            for way in (_THERE, _BACK):
                for number in _WORDS:
                    for row in sensor.flows_in(f"{family} {self._name}", f"{way}{number}"):
                        own[row[:4]] = own.get(row[:4], 0) + row.octets
            # what another program's rule made both tables count is in the second one
            counts |= own
        return counts


def tables(name: str) -> str:
    """Return the tables, as nft(8) reads them."""
    sets = "\n".join(
        f"\tset {way}{number} {{ type ipv{number}_addr . ipv{number}_addr . inet_proto ."
        f" inet_service; size {_SIZE}; flags dynamic, timeout; timeout {_KEPT_S}s; counter; }}"
        for way in (_THERE, _BACK)
        for number in _WORDS
    )
    there, back = (
        [f"update @{way}{number} {{ {key.format(word=word)} }}" for number, word in _WORDS.items()]
        for way, key in (
            (_THERE, "{word} saddr . {word} daddr . meta l4proto . th dport"),
            (_BACK, "{word} daddr . {word} saddr . meta l4proto . th sport"),
        )
    )
    tracked = [f"ct direction original {rule}" for rule in there]
    tracked += [f"ct direction reply {rule}" for rule in back]
    return f"""\
table inet {name} {{
	flags owner
{sets}
	chain away {{
		type filter hook postrouting priority filter; policy accept;
		oifname "niso-*" goto count
		iifname "niso-*" goto count
	}}
	chain host {{
		type filter hook input priority filter; policy accept;
		iifname "niso-*" goto count
	}}
	chain count {{
		meta l4proto != {_PORTED} accept
		{_lines(tracked)}
	}}
}}
table bridge {name} {{
	flags owner
{sets}
	chain switched {{
		type filter hook forward priority 100; policy accept;
		iifname != "n*" accept comment "niso's ports begin so, not all that do are"
		meta mark & {TRACKED} != 0 accept
		meta l4proto != {_PORTED} accept
		ip frag-off & 0x1fff != 0 accept
		{_lines([*there, *back])}
	}}
}}
"""


def _lines(rules: list[str]) -> str:
    return "\n\t\t".join(rules)
