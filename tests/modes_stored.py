"""Store services of several modes."""

from __future__ import annotations

from stored import service_spec

from niso.change.scope import Target
from niso.plan.records import Entry, NetworkRecord, Peer, Policy, SubnetRecord
from niso.runtime.package import PackageFiles

ONE = NetworkRecord("one", "", 1500, (SubnetRecord(4, "10.99.1.0/24", "10.99.1.1"),))
TWO = NetworkRecord(
    "two",
    "",
    1500,
    (SubnetRecord(4, "10.99.2.0/24", "10.99.2.1"), SubnetRecord(6, "fd00:2::/64", "fd00:2::1")),
)


def target(name: str, **network: object) -> Target:
    return Target(
        service_spec(name, network=network),
        f"/srv/{name}/manifest.toml",
        PackageFiles(f"/p/{name}", None, "0", (), ()),
    )


def policy(*allow: str) -> Policy:
    entries = tuple(
        Entry(f"network.policy.allow_from[{i}]", name, Peer("service", name), 0, 65535, "")
        for i, name in enumerate(allow)
    )
    return Policy(allow_from=entries)
