"""Made answers of DNS for outside names, and the addresses in them."""

from __future__ import annotations

from niso.plan.dns_answers import DnsAnswer

API, OTHER = "api.example.com", "other.example.com"
ONE, TWO, THREE = "203.0.113.1", "203.0.113.2", "203.0.113.3"
SIX = "2001:db8:9::1"


def heard(*addresses: str, ttl_s: float = 300.0) -> tuple[DnsAnswer, ...]:
    return (
        DnsAnswer(4, tuple(a for a in addresses if ":" not in a), ttl_s),
        DnsAnswer(6, tuple(a for a in addresses if ":" in a), ttl_s),
    )


NOBODY = tuple(
    DnsAnswer(family, problem="no name server answered", silent=True) for family in (4, 6)
)
NOTHING = tuple(DnsAnswer(family, problem="DNS has no such name") for family in (4, 6))
