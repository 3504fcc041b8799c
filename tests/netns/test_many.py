"""Several services in one command: planned once, applied once, all or none."""

from __future__ import annotations

import snapshots
from conftest import Lab
from services import idle, on, package, pid_of, ps

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
    clean, before = snapshots.take(lab), generation(lab)
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
    names, before = [f"s{number}" for number in range(MANY)], generation(lab)
    lab.niso("deactivate", *names)
    assert before < generation(lab) <= before + 2
    assert lab.niso("net", "check").returncode == 0
    lab.niso("activate", *names, idle(lab, "other", network=on("backend")))
    before = generation(lab)
    lab.niso("remove", "other", *names)
    assert generation(lab) <= before + 3  # the services', and the network of one of them
    assert snapshots.differences(clean, snapshots.take(lab)) == []
    assert ps(lab, "base")["status"] == "running"


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
    ended = {*names, *(f"{name}-ended" for name in names)}
    for command in (("restart", *names), ("deactivate", *names)):
        lab.niso(*command)
        assert {path.name for path in flags.iterdir()} == ended, command
        for path in flags.iterdir():
            path.unlink()
