"""Test from where a port can be reached, narrowed by a policy."""

from __future__ import annotations

import pytest

from niso.look import exposure
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
    assert exposure.narrowed(WAYS, policy) == expected
    assert exposure.narrowed(["this host"], policy) == ["this host"]
