"""Test the desired state on a kernel without IPv6, in a user namespace, and of links that are gone."""

from __future__ import annotations

import io

import pytest
from fakes.kernel import Fake

from niso.kernel.kinds import sysctls
from niso.kernel.kinds.kind import State, kind_of
from niso.kernel.kinds.links import Bridge
from niso.kernel.kinds.sysctls import ALL_GROUPS, FORWARDING6, Sysctl

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


def test_sysctls_of_neighbours_are_not_wanted_where_a_user_namespace_lacks_them() -> None:
    solicit = Sysctl("niso-api", "net/ipv4/neigh/eth0/mcast_solicit", "0")
    kind = kind_of(solicit)
    for value in (None, "3"):
        known = {"net/ipv4/neigh/lo/mcast_solicit": value, FORWARDING6: "0"}
        wanted = kind.possible(State([solicit]), None, known.get)
        assert wanted == ({solicit} if value else set())


@pytest.mark.parametrize(
    ("lines", "groups"),
    [
        ("0 0 4294967295", ALL_GROUPS),
        ("0 1000 1\n1 100000 59999\n65534 159999 1\n1900000000 160000 5536", "0\t1900005535"),
        ("0 900000 1\n1 100000 59999\n65534 159999 1", "1\t65534"),
    ],
)
def test_all_groups_are_those_that_are_mapped(
    monkeypatch: pytest.MonkeyPatch, lines: str, groups: str
) -> None:
    """The kernel compares the groups outside: the lowest and the highest of these are named."""
    monkeypatch.setattr(sysctls, "open", lambda *_, **__: io.StringIO(lines), raising=False)
    assert sysctls.all_mapped_groups() == groups
