"""Define the part of the ruleset for policies: their maps in lookup order, and their logging."""

from __future__ import annotations

from niso.kernel.nft_sensor import REFUSE

LOG_GROUP = 28271
"""The nfnetlink_log group for packets dropped by policies with ``log = true``."""
LOG_RATE = "rate 20/second burst 50 packets"

POLICY_PARTS = {
    "port": ("{own} . {peer} . inet_proto . inet_service", False),
    "ports": ("{own} . {peer} . inet_proto . inet_service", True),
    "peer": ("{own} . {peer}", False),
    "prefix_ports": ("{own} . {peer} . inet_proto . inet_service", True),
    "prefix": ("{own} . {peer}", True),
    "any_port": ("{own} . inet_proto . inet_service", False),
    "any_ports": ("{own} . inet_proto . inet_service", True),
    "rest": ("{own}", False),
}
"""Maps each part of a policy to (fields of its key, whether they are intervals), in lookup order.

``own`` is an address of the service with the policy. plan/policy_maps.py explains the parts.
"""


def _maps() -> str:
    return "\n".join(
        f"\tmap {way}{family}_{part} {{ type {fields.format(own=kind, peer=kind)} : verdict;"
        f"{' flags interval;' if interval else ''} counter; last; }}"
        for way in ("in", "out")
        for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
        for part, (fields, interval) in POLICY_PARTS.items()
    )


def _chains() -> str:
    chains = []
    for way, own, peer in (("in", "daddr", "saddr"), ("out", "saddr", "daddr")):
        for family, word in ((4, "ip"), (6, "ip6")):
            read = {
                "{own}": f"{word} {own}",
                "{peer}": f"{word} {peer}",
                "inet_proto": "meta l4proto",
                "inet_service": "th dport",
            }
            lines = [f"\tchain check_{way}{family} {{"]
            for part, (fields, _) in POLICY_PARTS.items():
                key = " . ".join(read[field] for field in fields.split(" . "))
                lines.append(f"\t\t{key} vmap @{way}{family}_{part}")
            chains.append("\n".join((*lines, "\t}")))
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
