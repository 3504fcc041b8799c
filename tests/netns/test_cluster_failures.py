"""Test rows of the failure table (docs/design/cluster.md) with real kernels: what etcd or a mirror has lost.

Other rows are in test_cluster_services.py.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from cluster_hosts import Cluster, cluster
from services import ask, echo, on

DATA = "/var/lib/niso-etcd/data"
KEYS = """\
from niso.cluster import config
own = config.require()
with own.engine() as engine:
    print(*engine.keys(own.keys.prefix), sep="\\n")
"""
CUT = """\
table inet cut {
    chain output {
        type filter hook output priority 0
        tcp dport 2379 reject with tcp reset
    }
}
"""
NAMESAKE = """\
from niso.cluster import config
from niso.cluster.key_values import HostEntry
from niso.cluster.membership import ClusterKeys
own = config.require()
with own.engine() as engine:
    ClusterKeys(engine, own.keys).join(HostEntry("b", "01234567", "198.51.100.9", 1500, False))
"""
COUNT = """\
table inet count {
    chain input {
        type filter hook prerouting priority -400
        ip saddr ADDRESS counter
    }
}
"""


@pytest.fixture
def made() -> Iterator[Cluster]:
    """Three hosts; only a runs etcd. db on b lets api in, which is on c, as is evil."""
    with cluster("a", "b", "c") as made:
        yield made


def keys(made: Cluster) -> set[str]:
    """Return the cluster's keys; fail while etcd does not answer. Agents write those left out in 30 s."""
    found = made.hosts["a"].lab.run(sys.executable, "-c", KEYS).stdout.split()
    return {key for key in found if not key.startswith(("/niso/v1/cert/", "/niso/v1/late/"))}


def kill_etcd(made: Cluster) -> None:
    lab = made.hosts["a"].lab
    made.signal_etcd("a", signal.SIGKILL)
    made.wait("a", lambda: not lab.run("pgrep", "etcd", check=False).stdout, "the end of etcd")


def etcd_anew(made: Cluster, then: str) -> None:
    """Kill etcd, change its data by a command, and start it."""
    lab = made.hosts["a"].lab
    kill_etcd(made)
    lab.run("sh", "-ec", then)
    made.start_etcd("a")
    made.wait("a", lambda: not lab.run(sys.executable, "-c", KEYS, check=False).returncode, "etcd")


def meets(made: Cluster, address: str, text: str) -> None:
    """Wait until api on c is answered so by db."""
    lab = made.hosts["c"].lab
    made.wait("c", lambda: ask(lab, address, 80, "niso-api") == text, f"{text} at {address}")


@pytest.mark.first
def test_etcd_loses_its_data_or_goes_back_to_a_backup(made: Cluster) -> None:
    db = made.activate("b", "db", policy={"allow_from": ["api:80"]})
    api, evil = made.activate("c", "api"), made.activate("c", "evil")
    meets(made, db, f"db {api}")
    # all data are gone: nothing changes, nothing new is held, and what runs goes on
    before = keys(made)
    etcd_anew(made, f"rm -rf {DATA}/member")
    for name in "abc":
        said = made.refused(name, "activate", made.package(name, "new"))
        assert "etcd has no cluster" in said and "nothing is changed" in said
    assert "niso cluster recover" in made.refused("b", "cluster", "status")
    assert "nothing is changed" in made.niso("c", "deactivate", "api").stderr
    assert "api starts by this host's own record" in made.niso("c", "activate", "api").stderr
    meets(made, db, f"db {api}")
    assert ask(made.hosts["c"].lab, db, 80, "niso-evil") == ""
    assert made.sees("c", db, "db") and made.sees("b", api, "api") and keys(made) == set()
    # a runs etcd again, and writes all that it knows of others
    kill_etcd(made)
    said = made.refused("a", "cluster", "recover")
    assert "this host has the data of one" in said and "niso cluster recover --help" in said
    made.hosts["a"].lab.run("rm", "-rf", f"{DATA}/member")
    assert "has never run a member" in made.refused("c", "cluster", "recover")
    said = made.niso("a", "cluster", "recover").stdout
    assert "written again, as a (198.51.100.1) knows it" in said
    made.wait("a", lambda: keys(made) == before, "all keys again")
    lab = made.hosts["a"].lab
    assert "/niso/v1/cert/a/" in lab.run(sys.executable, "-c", KEYS).stdout
    assert made.sees("c", db, "db") and made.sees("b", api, "api")
    assert "nothing to restore" in made.refused("b", "cluster", "recover")
    new = made.activate("a", "new")
    assert new not in (db, api, evil)
    made.wait("b", lambda: made.sees("b", new, "new"), "new's name on b")
    made.check("a", "b", "c")
    # etcd goes back to a backup, from before most of what there is now
    etcd_anew(made, f"rm -rf /tmp/kept; cp -a {DATA} /tmp/kept")
    made.niso("a", "remove", "new")
    assert made.activate("b", "late", ip=new) == new, "its address is another one's"
    made.niso("b", "net", "create", "later", "--span", "--subnet", "10.99.5.0/24")
    made.niso("b", "activate", echo(made.hosts["b"].lab, "more", network=on("later")))
    made.kill_agent("b", by="c")
    made.wait("c", lambda: made.rows("c")["db"][1] == "host gone", "b gone")
    assert made.activate("c", "db", "--from-lost-host") == db
    etcd_anew(made, f"rm -rf {DATA}; cp -a /tmp/kept {DATA}")
    made.start_agent("b")
    # the older db gives way; b's other services, its network, and the address of late are its again
    made.wait("b", lambda: made.status("b", "db") == "inactive", "db ended on b")
    ours = {"api": "c", "db": "c", "evil": "c", "late": "b", "more": "b"}
    made.wait(
        "a", lambda: {name: row[0] for name, row in made.rows("a").items()} == ours, str(ours)
    )
    meets(made, db, f"db {api}")
    made.wait("c", lambda: made.sees("c", new, "late"), "late's name on c")
    assert "/niso/v1/net/later/spec" in keys(made)
    # api has talked to new, whose address late has now: its neighbour cache forgets that after a while
    made.wait("c", lambda: made.niso("c", "net", "check", check=False).returncode == 0, "c")
    made.check("a", "b", "c")


@pytest.mark.first
def test_mirror_that_stands_still_and_host_that_is_cut_off_from_etcd(made: Cluster) -> None:
    """An address that is used again is not heard where it counts as the old service's."""
    db = made.activate("b", "db", policy={"allow_from": ["api:80"]})
    api = made.activate("c", "api")
    meets(made, db, f"db {api}")
    b, c = made.hosts["b"].lab, made.hosts["c"].lab
    made.pause_agent("b")
    made.niso("c", "remove", "api")
    assert made.activate("c", "evil", ip=api) == api
    b.run("nft", "-f", "-", input=COUNT.replace("ADDRESS", api), netns="niso-db")

    def heard() -> int:
        assert ask(c, db, 80, "niso-evil") == ""
        shown = b.run("nft", "list", "table", "inet", "count", netns="niso-db").stdout
        return int(shown.split("packets ")[1].split()[0])

    assert heard() == 0
    # without the checks of who speaks, db's policy lets evil in, which has api's address
    b.run("nft", "destroy", "table", "bridge", "niso")
    b.run("nft", "insert", "rule", "inet", "niso", "from_bridge", "accept")
    b.run("nft", "insert", "rule", "inet", "niso", "wire", "notrack", "accept")
    assert heard() > 0
    b.run("nft", "destroy", "table", "inet", "count", netns="niso-db")
    made.niso("b", "net", "repair")
    made.agents["b"].send_signal(signal.SIGCONT)
    made.wait("b", lambda: made.sees("b", api, "evil"), "evil's name on b")
    assert ask(c, db, 80, "niso-evil") == ""
    # b is cut off from etcd alone: others drop its names, and it keeps all; packets pass both ways
    web = made.activate("b", "web")
    made.wait("c", lambda: made.sees("c", web, "web"), "web's name on c")
    b.run("nft", "-f", "-", input=CUT)
    made.end_lease("b", by="c")
    made.wait("c", lambda: not made.sees("c", web, "web"), "web's name gone on c")
    assert "does not answer" in made.refused("b", "activate", made.package("b", "new"))
    assert made.sees("b", api, "evil") and made.status("b", "new") == ""
    assert ask(c, web, 80, "niso-evil") == f"web {api}"
    assert ask(b, api, 80, "niso-web") == f"evil {web}"
    assert "other hosts do not know it yet" in made.niso("b", "deactivate", "db").stderr
    assert "db starts by this host's own record" in made.niso("b", "activate", "db").stderr
    b.run("nft", "destroy", "table", "inet", "cut")
    made.wait("c", lambda: made.sees("c", web, "web"), "web's name on c again")
    made.check("b", "c")
    # a second host of one name is none, and changes nothing
    refusal = made.hosts["c"].lab.run(sys.executable, "-c", NAMESAKE, check=False).stderr
    assert "the cluster has another host b, with the address" in refusal
