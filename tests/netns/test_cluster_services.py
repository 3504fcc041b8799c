"""Test services of several hosts with real kernels and a real etcd: that they meet, move, and survive what can fail.

The rows are those of the table in docs/guide/cluster.md.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from cluster_hosts import Cluster, cluster
from services import ask


@pytest.fixture
def one() -> Iterator[Cluster]:
    """Three hosts; only a runs etcd."""
    with cluster("a", "b", "c") as made:
        yield made


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Three hosts, which all run etcd."""
    with cluster("a", "b", "c", members=3) as made:
        yield made


def answers(made: Cluster, name: str, by: str, address: str, text: str) -> None:
    """Wait until a service of a host is answered so by what has an address."""
    lab = made.hosts[name].lab
    made.wait(
        name, lambda: ask(lab, address, 80, f"niso-{by}") == text, f"{by} to {address}: {text!r}"
    )


def test_services_meet_by_name_policies_hold_and_a_lost_host_is_replaced(one: Cluster) -> None:
    c = one.hosts["c"].lab
    db = one.activate("b", "db", policy={"allow_from": ["api:80"]})
    api = one.activate("c", "api", ports=["8080:80"])
    evil = one.activate("c", "evil")
    assert [db, api, evil] == ["10.99.1.2", "10.99.1.3", "10.99.1.4"]
    assert one.sees("c", db, "db"), "the network is new on c, and has what others have there"
    one.wait("b", lambda: one.sees("b", evil, "evil"), "evil's name on b")
    answers(one, "c", "api", db, f"db {api}")
    assert ask(c, db, 80, "niso-evil") == ""
    assert one.rows("b") == {"api": ("c", "up"), "db": ("b", "running"), "evil": ("c", "up")}
    assert (
        "api      c     up       10.99.1.3, fd00:99:1::3  8080:80"
        in one.niso("b", "ps", "--all-hosts").stdout
    )
    assert "api is on c, which is alive" in one.refused("b", "activate", one.package("b", "api"))
    one.check("b", "c")
    # neither the cluster nor an agent answers: what runs goes on, and what is held starts and stops
    one.signal_etcd("a", signal.SIGKILL)
    one.kill_agent("c")
    said = one.refused("b", "activate", one.package("b", "web"))
    assert "the cluster does not answer (198.51.100.1:2379)" in said and "what runs goes on" in said
    assert one.status("b", "web") == ""
    one.niso("b", "restart", "db")
    assert "other hosts do not know it yet" in one.niso("c", "deactivate", "evil").stderr
    assert "evil starts by this host's own record" in one.niso("c", "activate", "evil").stderr
    one.niso("c", "remove", "evil")
    answers(one, "c", "api", db, f"db {api}")
    # they come back: the agent says what could not be said
    one.start_etcd("a")
    one.start_agent("c")
    one.wait("b", lambda: one.rows("b").keys() == {"api", "db"}, "evil given up")
    assert one.activate("b", "web") == evil, "its address is free"
    # b is lost with its agent: its names go, and c takes its service, with the address
    one.kill_agent("b", by="c")
    one.wait("c", lambda: not one.sees("c", db, "db"), "db's name gone on c")
    assert one.rows("c")["db"] == ("b", "host gone")
    said = one.refused("c", "activate", one.package("c", "db"))
    assert "db is on b, which does not answer" in said and f"--take moves it here with {db}" in said
    assert one.activate("c", "db", "--take") == db
    answers(one, "c", "api", db, f"db {api}")
    # b is back: nobody hears its db, and its agent ends it
    assert one.status("b", "db") == "running"
    one.start_agent("b")
    one.wait("b", lambda: one.status("b", "db") == "inactive", "db ended on b")
    answers(one, "b", "web", db, f"db {evil}")
    one.check("b", "c")
    # the cluster keeps the network for as long as anybody is on it
    assert "is used by api on c, db on c, web on b" in one.refused("a", "net", "remove", "backend")
    # b leaves once it has no service there, and the network goes from it
    assert "on networks of the cluster: db, web" in one.refused("b", "cluster", "leave")
    one.niso("b", "remove", "db", "web")
    one.niso("b", "cluster", "leave")
    assert one.agents["b"].wait(20) == 0
    assert "backend" not in one.niso("b", "net", "list").stdout
    # c is lost for good: a gives up what it had, and the network goes from all
    one.kill_agent("c", by="a")
    assert one.niso("a", "cluster", "forget", "c").stdout == "c: forgotten, with api, db\n"
    one.niso("a", "net", "remove", "backend")
    one.check("a", "b")
