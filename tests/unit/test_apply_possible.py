"""What is wanted of a kernel without IPv6, and of links of the host that are gone."""

from __future__ import annotations

import pytest

from niso.plan.desired import FORWARDING6
from niso.plan.state import Bridge, State, Sysctl
from niso.reconcile import converge

WANT = State(
    bridges=frozenset({Bridge("niso-backend", 1500, "niso:1")}),
    sysctls=frozenset(
        {
            Sysctl("", "net/ipv4/ip_forward", "1"),
            Sysctl("", "net/ipv6/conf/niso-backend/disable_ipv6", "1"),
            Sysctl("", "net/ipv6/conf/gone0/force_forwarding", "0"),
            Sysctl("niso-api", "net/ipv6/conf/default/disable_ipv6", "1"),
        }
    ),
)


def names(state: State) -> set[str]:
    return {thing.name for thing in state.sysctls}


def test_nothing_of_ipv6_is_wanted_where_the_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converge.sysctl, "read", lambda name: None if "ipv6" in name else "0")
    assert names(converge._possible(WANT)) == {"net/ipv4/ip_forward"}


def test_what_was_noted_of_a_link_that_is_gone_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converge.sysctl, "read", lambda name: "0" if name == FORWARDING6 else None)
    assert names(converge._possible(WANT)) == names(WANT) - {"net/ipv6/conf/gone0/force_forwarding"}
