"""Test that a failed activation leaves nothing, and that a dry run shows the steps."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import snapshots
from conftest import Lab, assert_whole
from services import address, echo, environment_of, idle, listen, on, package, pid_of, ps, refused


def test_dry_run_prints_the_steps_that_then_run_and_changes_nothing(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "peer"))
    folder = echo(lab, "api", network={"ports": ["8080:80"]})
    before = snapshots.take(lab)
    planned = lab.niso("activate", "--dry-run", folder).stdout
    assert snapshots.differences(before, snapshots.take(lab)) == []
    taken = lab.niso("activate", "-v", folder).stderr
    assert planned == taken
    assert "ip netns add niso-api" in planned and "8080" in planned

    changed = echo(lab, "api", environment={"A": "b"}, network={"ports": ["8081:80"]})
    before = snapshots.take(lab)
    planned = lab.niso("activate", "--dry-run", changed).stdout
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert planned == lab.niso("activate", "-v", changed).stderr
    assert "stop api" in planned

    before = snapshots.take(lab)
    planned = lab.niso("deactivate", "--dry-run", "api", "peer").stdout
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert planned == lab.niso("deactivate", "-v", "api", "peer").stderr
    assert lab.niso("deactivate", "--dry-run", "api").stdout == "nothing to do\n"


def test_dry_run_on_a_fresh_host_makes_not_even_a_store(lab: Lab) -> None:
    folder = idle(lab, "api")
    before = snapshots.take(lab)
    assert "ip netns add niso-api" in lab.niso("activate", "--dry-run", folder).stdout
    lab.niso("net", "create", "--dry-run", "backend")
    after = snapshots.take(lab)
    assert snapshots.differences(before, after) == []


def test_several_services_are_activated_all_or_none(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "old", environment={"LEVEL": "info"}))
    pid = pid_of(lab, "old")
    before = snapshots.take(lab)
    changed = idle(lab, "old", environment={"LEVEL": "debug"}, network={"ports": ["9000:80"]})
    dies = package(lab, "bad", "sh", "-c", "echo no luck; exit 7")
    said = refused(lab, "activate", idle(lab, "one", network=on("backend")), changed, dies)
    assert "bad: its process ended at once (exit status 7)" in said and "no luck" in said
    assert "LEVEL=info" in environment_of(lab, pid_of(lab, "old"))
    after = snapshots.take(lab)
    for each in (before, after):
        each["processes"] = [re.sub(r"^\d+ |/proc/\d+", "", line) for line in each["processes"]]
        each["files"] = {
            path: v for path, v in each["files"].items() if "/run/niso/services/old" not in path
        }
    assert snapshots.differences(before, after) == []
    assert pid_of(lab, "old") != pid  # it was replaced, and put back

    good = [idle(lab, name) for name in ("one", "two", "three")]
    lab.niso("activate", *good)
    assert {ps(lab, name)["status"] for name in ("one", "two", "three")} == {"running"}


def _bad_entrypoint(lab: Lab) -> str:
    return package(lab, "api", "bin/missing", network={"ports": ["8080:80"]})


def _not_executable(lab: Lab) -> str:
    folder = package(lab, "api", "bin/run", files={"bin/run": "#!/bin/sh\n"})
    lab.path(f"{folder}/bin/run").chmod(0o644)
    return folder


def _bad_user(lab: Lab) -> str:
    return idle(lab, "api", service={"user": "nobodyhere"})


def _dies_at_once(lab: Lab) -> str:
    return package(
        lab, "api", "sh", "-c", "echo last words >&2; exit 3", network=on("new", ports=["8080:80"])
    )


def _bad_interpreter(lab: Lab) -> str:
    return package(
        lab, "api", "bin/run", files={"bin/run": "#!/no/such/interpreter\n"}, network=on("new")
    )


def _runtime_refuses(lab: Lab) -> str:
    folder = package(lab, "api", "bin/run", files={"bin/run": "not a program\n"}, network=on("new"))
    return folder


def _no_working_dir(lab: Lab) -> str:
    return idle(lab, "api", binary={"working_dir": "/nowhere"})


def _port_of_service(lab: Lab) -> str:
    return idle(lab, "api", network=on("new", ports=["7000:80"]))


def _static_taken(lab: Lab) -> str:
    return idle(lab, "api", network={"ip": "10.99.0.2"})


def _name_taken(lab: Lab) -> str:
    return idle(lab, "api", network={"networks": ["new", "niso-default"], "aliases": ["www"]})


def _foreign_bridge(lab: Lab) -> str:
    lab.run("ip", "link", "add", "niso-new", "type", "bridge")
    return idle(lab, "api", network=on("new"))


def _foreign_netns(lab: Lab) -> str:
    lab.run("ip", "netns", "add", "niso-api")
    return idle(lab, "api", network=on("new"))


def _no_address_left(lab: Lab) -> str:
    lab.niso("net", "create", "tiny", "--subnet", "10.50.0.0/30")
    lab.niso("activate", idle(lab, "full", network=on("tiny")))
    lab.niso("deactivate", "full")
    return idle(lab, "api", network={"networks": ["new", "tiny"]})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_bad_entrypoint, ["binary.entrypoint", "bin/missing"]),
        (_not_executable, ["binary.entrypoint", "bin/run"]),
        (_bad_user, ["service.user", "nobodyhere"]),
        (_dies_at_once, ["api: its process ended at once (exit status 3)", "last words"]),
        (_bad_interpreter, ["/no/such/interpreter"]),
        (_runtime_refuses, ["bin/run"]),
        (_no_working_dir, ["binary.working_dir", "/nowhere"]),
        (_port_of_service, ["network.ports[0]", "host port 7000/tcp is published by 'base'"]),
        (_static_taken, ["network.ip", "10.99.0.2 is leased to service 'base'"]),
        (_name_taken, ["network.aliases", "'www' is already used by service 'base'"]),
        (_foreign_bridge, ["link 'niso-new'", "does not belong to this niso"]),
        (_foreign_netns, ["network namespace 'niso-api'", "does not belong to this niso"]),
        (
            _no_address_left,
            ["network 'tiny' (10.50.0.0/30) has no free address", "until they are removed", "full"],
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_failed_activation_leaves_nothing_and_says_why(
    lab: Lab, make: Any, words: list[str]
) -> None:
    lab.niso("activate", idle(lab, "base", network={"ports": ["7000:80"], "aliases": ["www"]}))
    folder = make(lab)
    before = snapshots.take(lab)
    said = refused(lab, "activate", folder)
    assert all(word in said for word in words), said
    assert snapshots.differences(before, snapshots.take(lab)) == []
    error = json.loads(refused_json(lab, "activate", "--json", folder))["error"]
    assert (
        set(error) == {"message", "hint", "key"}
        and words[0] in f"{error['key']} {error['message']}"
    )
    assert snapshots.differences(before, snapshots.take(lab)) == []


def refused_json(lab: Lab, *argv: str) -> str:
    done = lab.niso(*argv, check=False)
    assert done.returncode == 1 and done.stdout == ""
    return str(done.stderr).splitlines()[0]


def test_port_of_a_process_of_the_host_is_refused_and_names_it(lab: Lab) -> None:
    listener = listen(lab, "tcp", "0.0.0.0", 8080)
    said = refused(lab, "activate", idle(lab, "api", network={"ports": ["8080:80"]}))
    assert f"host port 8080/tcp is used by python3 (pid {listener.pid})" in said.replace(
        "python3.13", "python3"
    )
    listener.kill()


def test_second_state_folder_in_one_network_namespace_is_refused(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api"))
    before = snapshots.take(lab)
    other: dict[str, str | None] = {
        "NISO_STATE_DIR": "/tmp/other",
        "NISO_RUN_DIR": "/tmp/other-run",
    }
    said = refused(lab, "activate", idle(lab, "second"), env=other)
    assert "/tmp/other/state.db is missing" in said and "of the niso state folder with id" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_all_errors_of_a_manifest_come_at_once_with_their_keys(lab: Lab) -> None:
    folder = idle(
        lab,
        "api",
        network={"ports": ["0:80", "x:1"], "mode": "nat", "colour": 1},
        healthcheck={"tcp": 0},
    )
    said = refused(lab, "activate", folder)
    for key in (
        "network.ports[0]",
        "network.ports[1]",
        "network.mode",
        "network.colour",
        "healthcheck",
    ):
        assert key in said, said
    assert all(
        f"{folder}/manifest.toml" in line for line in said.splitlines() if line.startswith("niso: ")
    )


def test_services_activated_at_the_same_time_get_different_addresses(lab: Lab) -> None:
    folders = [idle(lab, f"s{number}") for number in range(4)]
    commands = [lab.popen("niso", "activate", folder) for folder in folders]
    for command in commands:
        _, err = command.communicate()
        assert command.returncode == 0, err
    assert sorted(address(lab, f"s{number}") for number in range(4)) == [
        f"10.99.0.{n}" for n in (2, 3, 4, 5)
    ]
    assert_whole(lab)


def test_same_service_activated_at_the_same_time_is_started_once(lab: Lab) -> None:
    folder = package(lab, "api", "sh", "-c", "echo begin; sleep 1000")
    commands = [lab.popen("niso", "activate", folder) for _ in range(3)]
    said = []
    for command in commands:
        out, err = command.communicate()
        assert command.returncode == 0, err
        said.append("unchanged" in out)
    assert sorted(said) == [False, True, True]
    assert lab.niso("logs", "api").stdout == "begin\n"


def test_interrupted_activation_is_undone(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "base"))
    folder = package(lab, "api", "sh", "-c", "sleep 1000", network=on("new", ports=["8080:80"]))
    before = snapshots.take(lab)
    command = lab.popen("niso", "activate", folder)
    lab.wait_for(lambda: lab.path("/run/niso/services/api").exists())
    command.send_signal(2)
    _, err = command.communicate()
    assert command.returncode == 130 and "niso: interrupted" in err
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_open_files_beyond_the_limit_are_no_hindrance_and_nobody_inherits_them(lab: Lab) -> None:
    folder = idle(lab, "api")
    script = 'exec 7>/tmp/seven 200>/tmp/two-hundred; ulimit -S -n 150; niso activate "$0"; ls -l /proc/self/fd >&2'
    done = lab.run("bash", "-c", script, folder)
    assert done.stdout.startswith("api: active")
    assert "/tmp/seven" in done.stderr and "/tmp/two-hundred" in done.stderr, (
        "the caller has them still"
    )
    conmon = lab.run("sh", "-c", "cat /run/niso/services/api/run-*/conmon.pid").stdout.strip()
    for pid in (conmon, str(pid_of(lab, "api"))):
        assert "/tmp/" not in lab.run("ls", "-l", f"/proc/{pid}/fd").stdout
