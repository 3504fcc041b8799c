"""Several services in one command: planned once, applied once, all or none."""

from __future__ import annotations

import json
import re

import pytest
import snapshots
from conftest import Lab
from services import HOST, answer, echo, idle, namespace, on, package, pid_of, ps, refused

GENERATION = """\
import socket, struct
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.send(struct.pack("=IHHII", 20, 10 << 8 | 16, 1, 1, 0) + bytes(4))
print(struct.unpack("!I", sock.recv(4096)[24:28])[0])
"""
"""nftables' generation (NFT_MSG_GETGEN, linux/netfilter/nf_tables.h): each transaction that changes something counts it up."""

MANY = 8


def generation(lab: Lab) -> int:
    return int(lab.run("python3", "-ISc", GENERATION).stdout)


def many(lab: Lab, first_port: int = 9000) -> list[str]:
    policies = {1: {"network.policy": {"allow_from": ["s0"]}}}
    return [
        idle(
            lab,
            f"s{number}",
            network={"ports": [f"{first_port + number}:80"]},
            **policies.get(number, {}),
        )
        for number in range(MANY)
    ]


def test_one_transaction_of_the_rules_is_made_for_all(lab: Lab) -> None:
    folders = many(lab)
    lab.niso("activate", idle(lab, "base"))
    before = generation(lab)
    lab.niso("activate", *folders)
    assert generation(lab) == before + 1
    assert lab.niso("net", "check").returncode == 0

    # a change of all
    many(lab, 9100)
    before, pids = generation(lab), [pid_of(lab, f"s{number}") for number in range(MANY)]
    lab.niso("activate", *folders)
    assert generation(lab) == before + 1
    assert [pid_of(lab, f"s{number}") for number in range(MANY)] == pids

    # what guards the ports goes when the ports are gone
    before = generation(lab)
    lab.niso("deactivate", *(f"s{number}" for number in range(MANY)))
    assert before < generation(lab) <= before + 2
    assert lab.niso("net", "check").returncode == 0
    assert ps(lab, "base")["status"] == "running"


def test_all_are_undone_where_the_last_one_fails(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "old", network={"ports": ["9003:80"]}))
    pid, inode = pid_of(lab, "old"), namespace(lab, "old")
    taken = echo(lab, "old", network={"ports": ["9999:80"]})
    dies = package(lab, "zz", "sh", "-c", "exit 3", network=on("backend"))
    before = snapshots.take(lab)
    # the port that "old" gives up is another's for a while
    said = refused(lab, "activate", taken, *many(lab), dies)
    assert "zz: its process ended at once (exit status 3)" in said and said.count("niso: ") == 1
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert (pid_of(lab, "old"), namespace(lab, "old")) == (pid, inode)
    assert answer(lab, HOST, 9003, "client").startswith("old ")
    assert lab.niso("net", "check").returncode == 0


def test_what_one_gives_up_another_of_the_same_command_gets_and_may_have_to_give_back(
    lab: Lab,
) -> None:
    """In both orders of the names: undoing is no matter of who comes first."""
    lab.niso(
        "activate",
        echo(lab, "aa", network={"ports": ["9001:80"]}),
        echo(lab, "zz", network={"ports": ["9002:80"]}),
    )
    dies = package(lab, "mm", "sh", "-c", "exit 3")
    swapped = [
        echo(lab, "aa", network={"ports": ["9002:80"]}),
        echo(lab, "zz", network={"ports": ["9001:80"]}),
    ]
    refused(lab, "activate", *swapped, dies)
    assert [answer(lab, HOST, port, "client")[:2] for port in (9001, 9002)] == ["aa", "zz"]
    lab.niso("activate", *swapped)
    assert [answer(lab, HOST, port, "client")[:2] for port in (9001, 9002)] == ["zz", "aa"]
    assert lab.niso("net", "check").returncode == 0


def test_what_cannot_be_of_any_is_found_before_any_has_begun(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    bad = package(lab, "bad", "bin/missing")
    worse = idle(lab, "worse", network={"ports": ["0:1"]})
    said = refused(lab, "activate", *many(lab), bad, worse)
    assert "bin/missing" in said and "network.ports[0]" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_processes_are_asked_to_end_at_once(lab: Lab) -> None:
    """Each ends by itself only when the others have been asked too."""
    flags = lab.path("/tmp/flags")
    flags.mkdir()
    flags.chmod(0o777)
    names = ("a", "b", "c")
    wait = " && ".join(f"[ -e /flags/{name} ]" for name in names)
    script = f'end() {{ touch /flags/$1; until {wait}; do sleep 0.01; done; touch /flags/$1-ended; exit 0; }}; trap "end $1" TERM; while :; do sleep 0.01; done'
    volumes = {"flags": {"mount": "/flags", "host": "/tmp/flags"}}
    lab.niso(
        "activate",
        *(
            package(
                lab,
                name,
                "sh",
                "-c",
                script,
                "sh",
                name,
                volumes=volumes,
                service={"stop_timeout": "20s"},
            )
            for name in names
        ),
    )
    lab.niso("deactivate", *names)
    assert {path.name for path in flags.iterdir()} == {*names, *(f"{name}-ended" for name in names)}


def test_many_are_removed_with_all_that_was_theirs(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    lab.niso("activate", *many(lab), idle(lab, "other", network=on("backend")))
    generations = generation(lab)
    lab.niso("remove", "other", *(f"s{number}" for number in range(MANY)))
    assert generation(lab) <= generations + 3  # the services', and the network of one of them
    after = snapshots.take(lab)
    assert snapshots.differences(before, after) == []


def test_deactivation_goes_on_past_one_that_does_not_end_and_says_which(lab: Lab) -> None:
    folders = many(lab)[:3]
    lab.niso("activate", *folders)
    # the runtime's folder cannot be removed while something is in it that is no folder of a run
    blocked = lab.path("/run/niso/services/s1/run-0")
    lab.run("mount", "--bind", "/tmp", "/run/niso/services/s1/run-0/persist")
    said = refused(lab, "deactivate", "s0", "s1", "s2")
    assert "s1" in said and blocked.exists()
    assert {name: ps(lab, name)["status"] for name in ("s0", "s2")} == {
        "s0": "inactive",
        "s2": "inactive",
    }
    lab.run("umount", "/run/niso/services/s1/run-0/persist")
    lab.niso("deactivate", "s1")
    assert ps(lab, "s1")["status"] == "inactive" and lab.niso("net", "check").returncode == 0


@pytest.mark.parametrize("verb", ["activate", "deactivate", "remove"])
def test_one_command_of_many_killed_after_its_record_converges(lab: Lab, verb: str) -> None:
    folders, names = many(lab), [f"s{number}" for number in range(MANY)]
    lab.niso("activate", idle(lab, "base"))
    if verb != "activate":
        lab.niso("activate", *folders)
    what = folders if verb == "activate" else names
    log = "/tmp/points"
    env: dict[str, str | None] = {"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": log}
    lab.niso(verb, *what, env=env)
    points = re.findall(r"(?m)^(\d+) ", lab.path(log).read_text())
    lab.niso(
        "remove",
        *(
            row["service"]
            for row in json.loads(lab.niso("ps", "--json").stdout)
            if row["service"] != "base"
        ),
        check=False,
    )
    if verb != "activate":
        lab.niso("activate", *folders)
    done = lab.niso(
        verb, *what, env={"NISO_FAILPOINT": f"{len(points) * 2 // 3}:kill"}, check=False
    )
    assert done.returncode == -9
    lab.niso("net", "repair")
    assert lab.niso("net", "check").returncode == 0
    known = {row["service"]: row["status"] for row in json.loads(lab.niso("ps", "--json").stdout)}
    wanted = {"base": "running"} | (
        {name: "inactive" for name in names} if verb == "deactivate" else {}
    )
    assert known == wanted
