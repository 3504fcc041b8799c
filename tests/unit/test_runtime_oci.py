"""Test the OCI configuration as a pure function of the spec."""

from __future__ import annotations

import json
from typing import Any

import pytest
from oci_specs import PROFILE, SPEC

from niso.manifest import process_keys
from niso.plan.specs import UNLIMITED, ProcessSpec
from niso.runtime import oci, on_exit, status

HOST = oci.OciHost("/usr/bin/catatonit", {}, PROFILE, ["/usr"])


def config(spec: ProcessSpec = SPEC, machine: oci.OciHost = HOST) -> dict[str, Any]:
    return oci.config(spec, "/bundle/root", "/etc/niso-hosts", machine, ())


def test_configuration_is_plain_json_and_says_the_same_each_time() -> None:
    assert json.dumps(config()) == json.dumps(config())


def test_program_runs_below_catatonit_with_the_specs_user_and_environment() -> None:
    found = config()["process"]
    assert found["args"] == ["/dev/niso-init", "--", "/app/api", "--port", "80"]
    assert found["user"] == {"uid": 5, "gid": 6, "umask": 0o022, "additionalGids": [7]}
    assert "A=1" in found["env"]
    assert found["noNewPrivileges"] is True


def test_environment_of_the_manifest_wins() -> None:
    found = oci.process(SPEC._replace(environment={"PATH": "/x", "HOME": "/y"}), ["a"], HOST)
    assert [entry for entry in found["env"] if entry.startswith(("PATH=", "HOME="))] == [
        "PATH=/x",
        "HOME=/y",
    ]


def test_resource_limits_are_the_defaults_the_manifests_and_never_above_those_of_the_caller() -> (
    None
):
    spec = SPEC._replace(rlimits={"core": (5, UNLIMITED), "memlock": (1 << 20, 1 << 30)})
    for machine, nofile, memlock in (
        (HOST, (1024, 1_048_576), (1 << 20, 1 << 30)),
        (HOST._replace(limits_max={"nofile": 500, "memlock": 7}), (500, 500), (7, 7)),
    ):
        limits = oci.process(spec, ["a"], machine)["rlimits"]
        assert {entry["type"][7:].lower() for entry in limits} == set(process_keys.RLIMITS)
        found = {entry["type"]: (entry["soft"], entry["hard"]) for entry in limits}
        assert found["RLIMIT_NOFILE"] == nofile and found["RLIMIT_MEMLOCK"] == memlock
        assert found["RLIMIT_CORE"] == (5, UNLIMITED)
    assert config()["process"]["oomScoreAdj"] == 0
    assert "oomScoreAdj" not in config(machine=HOST._replace(resets=()))["process"]


def test_devices_are_made_and_allowed_without_the_right_to_make_others() -> None:
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    found = config(machine=HOST._replace(devices=[{**fuse, "access": "r"}]))["linux"]
    assert found["devices"] == [fuse]
    rule = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}
    assert found["resources"]["devices"][-1] == rule


def test_namespaces_are_new_but_for_the_network_which_is_joined_by_path() -> None:
    found = {entry["type"]: entry.get("path") for entry in config()["linux"]["namespaces"]}
    assert found == {
        "pid": None,
        "mount": None,
        "ipc": None,
        "uts": None,
        "network": "/run/netns/niso-api",
    }


def test_capabilities_are_the_same_in_all_five_sets() -> None:
    found = config(SPEC._replace(capabilities=["NET_RAW"]))["process"]["capabilities"]
    assert found == {
        name: ["CAP_NET_RAW"]
        for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
    }


def test_package_hosts_and_host_folders_are_mounted_read_only() -> None:
    mounts = {entry["destination"]: set(entry["options"]) for entry in config()["mounts"]}
    for place in ("/app", "/etc/niso-hosts", "/usr", "/sys", "/dev/niso-init"):
        assert mounts[place] & {"ro", "rro"}, place


def actions(capabilities: list[str], name: str) -> set[tuple[str, bool]]:
    """(action, whether it depends on arguments) of each rule for a system call."""
    rules = oci.select_seccomp(PROFILE, capabilities)["syscalls"]
    return {(rule["action"], bool(rule.get("args"))) for rule in rules if name in rule["names"]}


@pytest.mark.parametrize(
    "name",
    ["mount", "bpf", "setns", "keyctl", "perf_event_open", "ptrace", "open_by_handle_at", "clone3"],
)
def test_filter_denies_what_reaches_beyond_the_service(name: str) -> None:
    assert actions([], name) == {("SCMP_ACT_ERRNO", False)}


@pytest.mark.parametrize("name", ["io_uring_setup", "modify_ldt", "create_module", "socketcall"])
def test_filter_does_not_know_what_it_does_not_need(name: str) -> None:
    assert actions([], name) == set()


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "unshare"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_PTRACE", "ptrace"),
        ("SYS_TIME", "clock_settime"),
    ],
)
def test_filter_opens_with_the_capability(capability: str, name: str) -> None:
    assert actions([capability], name) == {("SCMP_ACT_ALLOW", False)}


def test_filter_lets_no_packet_socket_choose_where_a_checksum_is_written() -> None:
    """All other options of levels that Linux has stay allowed, whatever the upper bits of a word."""
    assert actions([], "setsockopt") == {("SCMP_ACT_ALLOW", False)}
    rules = [
        [(arg["index"], arg["value"], arg["valueTwo"]) for arg in rule["args"]]
        for rule in oci.select_seccomp(PROFILE, ["NET_RAW"])["syscalls"]
        if "setsockopt" in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"
    ]

    def is_allowed(*words: int) -> bool:
        return any(all(words[at] & mask == value for at, mask, value in rule) for rule in rules)

    high = 1 << 32
    options = (*range(264), high + 8, high + 15, high + 24)
    denied = {
        (level, option)
        for level in (*range(320), high + 1, high + 263)
        for option in options
        if not is_allowed(0, level, option) and (level % high != 263 or option % high < 32)
    }
    packet, no = (263, high + 263), (15, 24, high + 15, high + 24)
    assert denied == {(level, option) for level in packet for option in no}


def test_filter_passed_to_the_runtime_has_only_keys_of_the_specification() -> None:
    for rule in oci.select_seccomp(PROFILE, [])["syscalls"]:
        assert set(rule) <= {"names", "action", "args", "errnoRet"}


def test_restart_delay_doubles_up_to_a_minute() -> None:
    assert [on_exit.delay_s(1.0, n) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert on_exit.delay_s(0.5, 10_000) == 60
    assert [on_exit.delay_s(120.0, n) for n in range(3)] == [120, 120, 120]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit status 0"),
        (137, "killed by SIGKILL"),
        (255, "exit status 255"),
        (None, "no exit status"),
    ],
)
def test_exit_is_described(code: int | None, words: str) -> None:
    assert status.describe_exit(code) == words
