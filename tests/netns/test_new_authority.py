"""Test the guide's procedure for a new authority: what a former member's key has signed is then refused."""

from __future__ import annotations

import os
import sys

import pytest
from cluster_hosts import Cluster, cluster

FOLDER = "/var/lib/niso/cluster"
TRUST = """\
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
  -subj "/O=niso/CN=cluster, second" -addext keyUsage=critical,keyCertSign,cRLSign \
  -keyout new.key -out new.pem
cp authority.pem old.pem
cat old.pem new.pem > authority.pem
"""
SIGN = "cat new.pem old.pem > authority.pem; mv new.key authority.key"
FORGET = "mv new.pem authority.pem; rm old.pem"
STOP = "from niso.cluster import own_etcd; own_etcd.stop()"

pytestmark = pytest.mark.skipif(
    "NISO_TEST_LONG" not in os.environ, reason="a procedure of three rounds: ./dev test-long"
)


def turn(made: Cluster, change: str) -> None:
    """Change the authority on a, and bring that to all hosts, one after another."""
    made.hosts["a"].lab.run("sh", "-ec", f"cd {FOLDER}\n{change}")
    for name in made.hosts:
        lab = made.hosts[name].lab
        invitation = made.niso("a", "cluster", "invite", name, "--renew", "--member").stdout
        lab.niso("cluster", "join", "-", input=invitation)
        lab.run(sys.executable, "-c", STOP)
        made.start_etcd(name)
        made.kill_agent(name)
        made.start_agent(name)
        made.wait(name, lambda name=name: "3 of 3" in status(made, name), f"three after {name}")


def status(made: Cluster, name: str) -> str:
    return str(made.niso(name, "cluster", "status", check=False).stdout)


def test_former_authority_signs_nothing_that_is_taken() -> None:
    with cluster("a", "b", "c", members=3) as made:
        db = made.activate("b", "db")
        c = made.hosts["c"].lab
        c.run("cp", "-r", FOLDER, "/root/stolen")
        for change in (TRUST, SIGN, FORGET):
            turn(made, change)
        assert db in made.niso("c", "ps", "--all-hosts").stdout
        assert made.activate("c", "api") == "10.99.1.3"
        # what c had before, and what it signs with that
        c.run("sh", "-ec", f"mv {FOLDER} /root/own; cp -r /root/stolen {FOLDER}")
        assert made.niso("c", "cluster", "status", check=False).returncode == 1
        c.run(sys.executable, "-c", SIGNS, FOLDER)
        assert made.niso("c", "cluster", "status", check=False).returncode == 1
        c.run("sh", "-ec", f"rm -r {FOLDER}; mv /root/own {FOLDER}")
        assert made.niso("c", "cluster", "status").returncode == 0


SIGNS = """\
import sys
from niso.cluster import invitation as certificates
certificates.issue(sys.argv[1], sys.argv[1], ["198.51.100.3"])
"""
