"""Test limits in the OCI configuration, and which a machine can enforce: cgroup v1, v2, both."""

from __future__ import annotations

import os
import pathlib

import pytest
from oci_specs import PROFILE, SPEC

from niso.runtime import cgroups, oci

LIMITED = SPEC._replace(memory_max=512 << 20, cpu_max=150, pids_limit=64)


def resources(*controllers: str) -> dict[str, object]:
    config = oci.config(
        LIMITED, "/r", "/etc/niso-hosts", oci.OciHost("/i", {}, PROFILE, (), controllers), ()
    )
    found: dict[str, object] = config["linux"]["resources"]
    return {name: value for name, value in found.items() if name != "devices"}


def test_limits_are_in_the_configuration() -> None:
    assert resources("memory", "cpu", "pids") == {
        "memory": {"limit": 512 << 20, "swap": 512 << 20},
        "cpu": {"quota": 150_000, "period": 100_000},
        "pids": {"limit": 64},
    }


def test_limit_that_the_machine_cannot_hold_is_left_out() -> None:
    assert list(resources("pids")) == ["pids"]
    assert resources() == {}


def test_service_without_limits_has_none() -> None:
    assert cgroups.limits(SPEC) == {}
    assert list(cgroups.limits(SPEC._replace(pids_limit=2))) == ["pids"]


class Machine:
    """Folders that look like the hierarchies of a machine."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.table = folder / "cgroup", folder / "mountinfo"
        self.top.mkdir()
        self.table.write_text("1 0 0:1 / / rw - ext4 /dev/vda rw\n")
        monkeypatch.setattr(cgroups, "_TOP", str(self.top))
        monkeypatch.setattr(cgroups, "_MOUNTS", str(self.table))

    def mount(self, place: str, kind: str, options: str = "rw") -> None:
        (self.top / place).mkdir(exist_ok=True)
        if kind == "cgroup":
            (self.top / place / "cgroup.clone_children").write_text("0\n")
        with self.table.open("a") as file:
            file.write(
                f"2 1 0:2 / {self.top / place} rw,nosuid shared:3 - {kind} {kind} {options}\n"
            )

    def control(self, controllers: str, enabled: str) -> pathlib.Path:
        (self.top / "cgroup.controllers").write_text(controllers)
        path = self.top / "cgroup.subtree_control"
        path.write_text(enabled)
        return path


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def usable() -> list[str]:
    return cgroups.usable(["memory", "cpu", "pids"])


def test_machine_without_cgroups_holds_nothing(machine: Machine) -> None:
    assert usable() == []


def test_v1_holds_what_is_mounted(machine: Machine) -> None:
    machine.mount("memory", "cgroup", "rw,memory")
    assert usable() == ["memory"]
    machine.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    (machine.top / "cpu").symlink_to("cpu,cpuacct")
    assert usable() == ["memory", "cpu"]


def test_folder_that_is_no_hierarchy_holds_nothing(machine: Machine) -> None:
    (machine.top / "memory").mkdir()
    assert usable() == []


def test_v2_beside_v1_holds_nothing_more(machine: Machine) -> None:
    machine.mount("pids", "cgroup", "rw,pids")
    machine.mount("unified", "cgroup2")
    (machine.top / "unified/cgroup.subtree_control").write_text("memory cpu")
    assert usable() == ["pids"]


def test_v2_holds_what_is_enabled_and_nothing_is_written(machine: Machine) -> None:
    machine.mount(".", "cgroup2")
    path = machine.control("cpu memory pids", "cpu memory pids")
    before = path.stat().st_mtime_ns
    assert usable() == ["memory", "cpu", "pids"]
    assert (path.read_text(), path.stat().st_mtime_ns) == ("cpu memory pids", before)


def test_v2_enables_what_is_wanted_and_no_more(machine: Machine) -> None:
    machine.mount(".", "cgroup2")
    path = machine.control("cpu memory pids io", "cpu")
    assert cgroups.usable(["cpu", "memory"]) == ["cpu", "memory"]
    assert path.read_text() == "+memory"  # the kernel would make "cpu memory" of it


def test_v2_that_refuses_holds_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.mount(".", "cgroup2")
    machine.control("cpu", "")
    assert usable() == ["cpu"]  # the others are not there at all
    (machine.top / "cgroup.subtree_control").unlink()
    (
        machine.top / "cgroup.subtree_control"
    ).mkdir()  # opens for no writing, as where root is not allowed to
    assert usable() == []


# --- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "mounts", "written"),
    [
        ("9:name=systemd:/a/b\n0::/\n", [("systemd", "cgroup", "rw,name=systemd")], "systemd/a/b"),
        ("4:cpu,cpuacct:/a\n", [("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")], "cpu,cpuacct/a"),
        ("0::/user.slice/s\n", [("", "cgroup2", "rw,nsdelegate")], "user.slice/s"),
        (
            "3:pids:/x\n",
            [("memory", "cgroup", "rw,memory"), ("pids", "cgroup", "rw,pids")],
            "pids/x",
        ),
    ],
)
def test_process_moves_to_the_cgroup_that_it_is_in(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    mounts: list[tuple[str, str, str]],
    written: str,
) -> None:
    path = machine.top / written / "cgroup.procs"
    path.parent.mkdir(parents=True)
    path.touch()
    for mount in mounts:
        machine.mount(*mount)
    table = machine.top.parent / "own"
    table.write_text(own)
    monkeypatch.setattr(cgroups, "_OWN", str(table))
    cgroups.move_nowhere()
    assert path.read_text() == "0"


def test_machine_that_shows_no_cgroup_is_left_alone(machine: Machine) -> None:
    cgroups.move_nowhere()
    assert list(machine.top.iterdir()) == []


def test_process_stays_where_it_was() -> None:
    before, files = pathlib.Path("/proc/self/cgroup").read_text(), os.listdir("/proc/self/fd")
    cgroups.move_nowhere()
    assert pathlib.Path("/proc/self/cgroup").read_text() == before
    assert len(os.listdir("/proc/self/fd")) == len(files)
