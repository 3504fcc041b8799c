"""Test the desired state on a kernel without IPv6, and of host links that are gone."""

from __future__ import annotations

from fakes.kernel import Fake

from niso.kernel.kinds.kind import State
from niso.kernel.kinds.links import Bridge
from niso.kernel.kinds.sysctls import FORWARDING6, Sysctl

WANT = State(
    [
        Bridge("niso-backend", 1500, "niso:1"),
        Sysctl("", "net/ipv4/ip_forward", "1"),
        Sysctl("", "net/ipv6/conf/niso-backend/disable_ipv6", "1"),
        Sysctl("", "net/ipv6/conf/gone0/force_forwarding", "0"),
        Sysctl("niso-api", "net/ipv6/conf/default/disable_ipv6", "1"),
    ]
)


def possible(kernel: Fake) -> State:
    return State.of_kinds(lambda kind: kind.possible(WANT, None, kernel.sysctl))


def names(state: State) -> set[str]:
    return {thing.name for thing in state[Sysctl]}


def test_nothing_of_ipv6_is_wanted_where_the_kernel_has_none() -> None:
    kernel = Fake()
    kernel.sysctl = lambda name: None if "ipv6" in name else "0"  # type: ignore[method-assign]
    assert names(possible(kernel)) == {"net/ipv4/ip_forward"}


def test_what_was_noted_of_a_link_that_is_gone_is_not_wanted() -> None:
    kernel = Fake()
    assert kernel.sysctl(FORWARDING6) is not None
    assert names(possible(kernel)) == names(WANT) - {"net/ipv6/conf/gone0/force_forwarding"}
