"""Make random changes to a store's rows."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from samples import samples
from snapshots_made import network
from stored import add_network, put

from niso.plan.records import PortMapping
from niso.store.store import Store

BOUNDED = settings(max_examples=samples(20, 60), deadline=None)
NETWORKS = (network(0), network(1, dual=True), network(2, internal=True))
NAMES = tuple(one.name for one in NETWORKS)
SERVICES = ("api", "db", "cache", "web")
PORTS = (
    *(8000, 8001),  # all addresses of both families, TCP
    PortMapping("", 8010, 8010, "tcp", 5),
    PortMapping("127.0.0.1", 8020, 9000, "udp", 3),
    PortMapping("::", 8030, 80, "sctp"),
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "put", "deactivate", "forget")),
        st.sampled_from(SERVICES),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).map(tuple),
        st.lists(st.sampled_from(PORTS), max_size=2, unique=True),
    ),
    max_size=8,
)


def change(store: Store, changes: list) -> None:
    """Make changes in the transaction of the caller; what cannot be is left out."""
    for verb, service, on, ports in changes:
        if verb == "put":
            published = tuple(
                port if isinstance(port, PortMapping) else PortMapping("", port, 80, "tcp")
                for port in ports
            )
            put(store, service, on, ports=published, hostname=f"{service}-host")
        elif verb == "deactivate":
            store.set_inactive(service)
        else:
            store.forget(service)


def filled(store: Store, changes: list) -> None:
    with store.transaction():
        for one in NETWORKS:
            add_network(store, one)
        change(store, changes)
