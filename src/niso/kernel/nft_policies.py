"""Define the part of the ruleset for policies: their maps in lookup order, and their logging."""

from __future__ import annotations

from niso.kernel.nft_sensor import REFUSE

LOG_GROUP = 28271
"""The nfnetlink_log group for packets dropped by policies with ``log = true``."""
LOG_RATE = "rate 20/second burst 50 packets"

CLASS = "class"
"""The part that gives no verdict: its map sets the packet's priority to the class of the peer."""
FIRST_CLASS = 0x4E000000
"""Classes are multiples of 16 above that.

Queues sort packets by such a priority as ordinary ones: no queue has this number, and the lowest 4
bits are 0.
"""

POLICY_PARTS = {
    "port": ("{own} . {peer} . inet_proto . inet_service", False),
    "ports": ("{own} . {peer} . inet_proto . inet_service", True),
    "peer": ("{own} . {peer}", False),
    CLASS: ("{own} . {peer}", True),
    "class_ports": ("{own} . classid . inet_proto . inet_service", True),
    "class_all": ("{own} . classid", False),
    "any_port": ("{own} . inet_proto . inet_service", False),
    "any_ports": ("{own} . inet_proto . inet_service", True),
    "class_rest": ("{own} . classid", False),
    "rest": ("{own}", False),
}
"""Maps each part of a policy to (fields of its key, whether they are intervals), in lookup order.

``own`` is an address of the service with the policy. plan/policy_maps.py explains the parts.
"""


def _maps() -> str:
    return "\n".join(
        f"\tmap {way}{family}_{part} {{ type {fields.format(own=kind, peer=kind)} :"
        f" {'classid' if part == CLASS else 'verdict'};{' flags interval;' if interval else ''}"
        f"{'' if part == CLASS else ' counter; last;'} }}"
        for way in ("in", "out")
        for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
        for part, (fields, interval) in POLICY_PARTS.items()
    )


def _chains() -> str:
    chains = []
    parts = list(POLICY_PARTS)
    at = parts.index(CLASS)
    before, classed = parts[:at], parts[at + 1 :]
    others = [part for part in classed if not part.startswith(CLASS)]
    for way, own, peer in (("in", "daddr", "saddr"), ("out", "saddr", "daddr")):
        for family, word in ((4, "ip"), (6, "ip6")):
            name = f"{way}{family}"
            read = {
                "{own}": f"{word} {own}",
                "{peer}": f"{word} {peer}",
                "classid": "meta priority",
                "inet_proto": "meta l4proto",
                "inet_service": "th dport",
            }
            keys = {
                part: " . ".join(read[field] for field in fields.split(" . "))
                for part, (fields, _) in POLICY_PARTS.items()
            }

            def asks(some: list[str], keys: dict[str, str] = keys, name: str = name) -> list[str]:
                return [f"\t\t{keys[part]} vmap @{name}_{part}" for part in some]

            lines = [
                f"\tchain classed_{name} {{",
                *asks(classed),
                "\t}",
                "",
                f"\tchain check_{name} {{",
                *asks(before),
                "\t\tmeta priority set none",
                f"\t\tmeta priority set {keys[CLASS]} map @{name}_{CLASS}",
                f"\t\tmeta priority != none goto classed_{name}",
                *asks(others),
                "\t}",
            ]
            chains.append("\n".join(lines))
    return "\n\n".join(chains)


SETS = f"""\
{_maps()}
	set log_in4 {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
	set log_in6 {{ type ipv6_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
	set log_out4 {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
	set log_out6 {{ type ipv6_addr; size 65535; flags dynamic, timeout; timeout 1m; }}"""

CHAINS = f"""\
{_chains()}

	chain log_in {{
		update @log_in4 {{ ip daddr limit {LOG_RATE} }} log prefix "niso in" group {LOG_GROUP}
		update @log_in6 {{ ip6 daddr limit {LOG_RATE} }} log prefix "niso in" group {LOG_GROUP}
		goto {REFUSE}
	}}

	chain log_out {{
		update @log_out4 {{ ip saddr limit {LOG_RATE} }} log prefix "niso out" group {LOG_GROUP}
		update @log_out6 {{ ip6 saddr limit {LOG_RATE} }} log prefix "niso out" group {LOG_GROUP}
		goto {REFUSE}
	}}"""
