"""Test from where a port can be reached, narrowed by a policy, and who listens there."""

from __future__ import annotations

import pytest
from fakes.kernel import Fake

from niso.kernel.sockets import Listener
from niso.look import other_firewalls
from niso.look.listening import ServiceSockets
from niso.manifest.policy import parse
from niso.plan.records import Policy

WAYS = ["this host", "services", "other machines via 192.0.2.1 on uplink0"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, WAYS),
        (Policy(log=True), WAYS),
        (parse([], [], None, [], False), ["this host", "nobody else: allow_from is empty"]),
        (
            parse(["web", "10.0.0.0/8:80"], ["network:guests"], None, [], False),
            [
                *WAYS,
                "of these only allow_from: web, 10.0.0.0/8:80",
                "but not deny_from: network:guests",
            ],
        ),
    ],
)
def test_policy_narrows_who_can_reach_a_port(policy: Policy | None, expected: list[str]) -> None:
    assert other_firewalls.narrowed(WAYS, policy) == expected
    assert other_firewalls.narrowed(["this host"], policy) == ["this host"]


def test_programs_of_many_sockets_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search reads the open files of all processes of the host."""
    kernel, searches = Fake(), []
    kernel.programs = {number: (number, f"program{number}") for number in range(1, 9)}
    monkeypatch.setattr(
        kernel,
        "listeners_in",
        lambda name, proto: [
            Listener(4, "0.0.0.0", 80, int(name[-1])),
            Listener(4, "0.0.0.0", 90, 9),  # no process has the socket open
        ],
    )
    found = kernel.socket_holders
    monkeypatch.setattr(
        kernel, "socket_holders", lambda inodes: searches.append({*inodes}) or found(inodes)
    )
    sockets = ServiceSockets(kernel)
    homes = [f"service{number}" for number in range(1, 9)]
    for home in homes:
        sockets.of(home, "tcp")
    missing = [sockets.at(home, home, "10.99.0.2", 81, "tcp") for home in homes]
    assert [one.others[0].program for one in missing if one] == [f"program{n}" for n in range(1, 9)]
    assert {one.others[1].program for one in missing if one} == {None}
    assert searches == [set(range(1, 10))]
    sockets.at("service1", "service1", "10.99.0.2", 81, "udp")
    assert len(searches) == 1
