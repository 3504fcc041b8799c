"""Test niso as a wheel in a venv, without the clone, as pip and pipx install it."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import TESTS, Lab
from deb_world import Packages
from services import HOST, answer, echo, pid_of

from niso.change.boot import _FIREWALL_MARK

ROOT = TESTS.parent
BIN = ROOT / "bin"
VENV = "/tmp/installed"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def known(*paths: str) -> list[str]:
    """The files at and below these paths of the clone, but what Python and installations leave there."""
    found = (
        file
        for path in paths
        for file in ((ROOT / path).rglob("*") if (ROOT / path).is_dir() else [ROOT / path])
    )
    left = ("__pycache__", "niso.egg-info")
    return [
        str(f.relative_to(ROOT))
        for f in found
        if f.is_file() and not any(name in f.parts for name in left)
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Build a wheel from a copy of the clone, with the installed setuptools."""
    copy, made = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in known("src", "bin", "docs/man", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    argv = [
        *PIP,
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(made),
        str(copy),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = made.glob("niso-*.whl")
    return found


def test_the_wheel_has_every_file_of_the_source_and_every_man_page(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    pages = {f"share/man/man{name[-1]}/{pathlib.Path(name).name}" for name in known("docs/man")}
    wanted = {name.removeprefix("src/") for name in known("src/niso")}
    commands = {name for name in packed if ".data/scripts/" in name}
    assert {name.rpartition("/")[2] for name in commands} == {f.name for f in BIN.iterdir()}
    wanted |= pages
    assert {name.partition(".data/data/")[2] or name for name in packed - commands} == wanted


def test_the_wheel_has_the_licence(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = (
            name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")
        )
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert "\nLicense-Expression: Apache-2.0\n" in archive.read(metadata).decode()


@pytest.mark.first
def test_an_installed_niso_needs_no_clone(lab: Lab, wheel: pathlib.Path) -> None:
    lab.path(f"/tmp/{wheel.name}").write_bytes(wheel.read_bytes())
    lab.run("/usr/bin/python3", "-m", "venv", "--without-pip", VENV)
    lab.run(
        *PIP,
        "-q",
        "--python",
        f"{VENV}/bin/python",
        "install",
        "--no-deps",
        "--no-index",
        f"/tmp/{wheel.name}",
    )
    site = lab.run(
        f"{VENV}/bin/python", "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))"
    ).stdout.strip()
    niso = f"{VENV}/bin/niso"

    assert lab.run(
        f"{VENV}/bin/python", "-Ic", "import niso.runtime.on_exit as m; print(m.__file__)"
    ).stdout.startswith(site)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (
            archive.read(name).decode()
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA")
        )
    version = next(line.split()[1] for line in metadata.splitlines() if line.startswith("Version:"))
    assert lab.run(niso, "--version").stdout == f"niso {version}\n"
    assert lab.run(niso, "schema").stdout == lab.niso("schema").stdout != ""

    without = lab.run(niso, "web", check=False)  # the libraries of an extra
    assert without.returncode == 1 and "-m pip install starlette" in without.stderr

    folder = echo(
        lab,
        "api",
        service={"restart": "always", "restart_delay": "50ms"},
        network={"ports": ["8080:80"]},
    )
    lab.run(niso, "activate", folder)
    assert answer(lab, HOST, 8080, "client").startswith("api ")
    assert lab.run(niso, "exec", "api", "--", "echo", "inside").stdout == "inside\n"
    # what conmon calls at the end of a process is that niso too
    before = pid_of(lab, "api")
    lab.run("kill", "-KILL", str(before))
    lab.wait_for(
        lambda: json.loads(lab.run(niso, "inspect", "api").stdout)["pid"] not in (None, before),
        what="a restart",
    )
    assert answer(lab, HOST, 8080, "client").startswith("api ")
    assert lab.run(niso, "net", "check").stdout == "OK: the kernel matches the configuration\n"
    lab.run(niso, "remove", "api")

    lab.run(niso, "lab", "--", niso, "activate", folder, cwd=folder)  # which is kept, of /tmp
    assert lab.run(niso, "ps", "--json").stdout.strip() == "[]"


@pytest.mark.first
def test_packages_are_removed_once_nothing_uses_them(lab: Lab) -> None:
    packages = Packages(lab, "niso", "niso-podman")
    lab.run("ip", "netns", "add", "box")
    lab.niso("activate", echo(lab, "api"))
    lab.niso("enable", "api")
    # as niso firewall enable, which needs systemd, writes it
    [bridge] = json.loads(lab.run("ip", "-j", "link", "show", "niso-default").stdout)
    drop_in = lab.path("/etc/systemd/system/nftables.service.d/niso.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(_FIREWALL_MARK + bridge["ifalias"].partition(":")[2])
    lab.niso("net", "attach", "box", "--netns", "/run/netns/box")
    refused = packages.purge("niso-podman", "niso")
    assert refused.returncode and "niso: not removed, because it is in use: " in refused.stderr
    assert "service api, cli box" in refused.stderr and "niso/disconnect" in refused.stderr
    states = lab.run(
        "dpkg-query", "-Wf", "${db:Status-Status} ", "niso", "niso-podman", check=False
    )
    assert states.stdout == "installed "  # no container of Podman uses niso
    lab.niso("net", "check")
    assert packages.purge("niso", answer=False).returncode
    done = packages.purge("niso", answer=True)
    assert done.returncode == 0, done.stderr
    assert lab.niso("reset", "--yes").stdout == "nothing of niso is in the kernel\n"
    rows = json.loads(lab.niso("ps", "--json").stdout)
    assert [(row["service"], row["status"]) for row in rows] == [("api", "inactive")]
    assert not json.loads(lab.niso("inspect", "api", "--json").stdout)["enabled"]
    assert not drop_in.exists()
    assert lab.run("ip", "netns", "exec", "box", "ip", "-br", "link").stdout.split()[0] == "lo"
    # a store that cannot be read may have services that run
    packages = Packages(lab, "niso")
    lab.niso("activate", "api")
    lab.run("sh", "-c", "echo damaged > /var/lib/niso/state.db")
    refused = packages.purge("niso", answer=False)
    assert refused.returncode and "niso ps fails" in refused.stderr
    assert packages.purge("niso", answer=True).returncode == 0
    assert lab.niso("reset", "--yes").stdout == "nothing of niso is in the kernel\n"
