"""Run units of Podman's quadlet on networks of niso, in a machine with a booted systemd."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys
import textwrap
from typing import Any

import pytest
from conftest import Lab
from machine import Machine, needs_systemd
from pages import ROOT
from podman_world import IMAGE, PEERS, SECCOMP, needs_podman
from samples import LONG
from services import BUSYBOX, CLIENT, HOST, fetch

GENERATOR = PEERS / "podman/usr/lib/systemd/system-generators/podman-system-generator"
FILES = {
    "containers/policy.json": json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
    "containers/storage.conf": """\
        [storage]
        driver = "vfs"
        graphroot = "/var/lib/containers/vfs"
        runroot = "/run/containers/vfs"
        """,
    "containers/containers.conf": f"""\
        [containers]
        log_driver = "k8s-file"
        default_sysctls = []
        {f'seccomp_profile = "{SECCOMP}"' if SECCOMP.exists() else ""}
        [network]
        network_backend = "netavark"
        firewall_driver = "nftables"
        netavark_plugin_dirs = ["/etc/plugins"]
        [engine]
        runtime = "crun"
        cgroup_manager = "cgroupfs"
        events_logger = "file"
        helper_binaries_dir = ["{PEERS}/netavark/usr/lib/podman"]
        """,
    "containers/systemd/backend.network": """\
        [Network]
        NetworkName=backend
        Driver=niso
        Subnet=10.99.40.0/24
        DisableDNS=true
        """,
}
CONTAINER = """\
    [Container]
    Image=localhost/{image}
    ContainerName={name}
    Network=backend.network{options}
    {more}
    CgroupsMode=enabled
    StopTimeout=0
    Exec=/bin/busybox sh -c "echo {name} > /index.html; exec /bin/busybox httpd -f -p 80 -h /"
    [Service]
    Environment=PODMAN_IGNORE_CGROUPSV1_WARNING=1
    Restart=always
    RestartSec=0
    """


@pytest.fixture
def machine(lab: Lab) -> Machine:
    """A machine with podman, its image and units for two containers."""
    if lab.path("/sys/fs/cgroup/unified").is_dir():  # crun refuses hybrid cgroups
        lab.run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified")
    lower = f"lowerdir={PEERS}/podman/usr:/usr"
    lab.run("mount", "-t", "overlay", "overlay", "-o", lower, "/usr")
    made = Machine(lab)
    image = lab.path("/tmp/packages/image/bin")
    image.mkdir(parents=True)
    shutil.copy(BUSYBOX, image / "busybox")
    lab.run("tar", "-C", "/tmp/packages/image", "-cf", "/tmp/packages/image.tar", "bin")
    web = CONTAINER.format(
        image=IMAGE, name="web", options=f":allow_from=api {CLIENT}", more="PublishPort=8080:80"
    )
    bad = CONTAINER.format(image=IMAGE, name="bad", options="", more="AddCapability=NET_ADMIN")
    units = {"web": web, "bad": bad}
    texts = {f"containers/systemd/{name}.container": text for name, text in units.items()}
    for name, text in (FILES | texts).items():
        path = pathlib.Path(made.disk, "etc", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    plugin = pathlib.Path(made.disk, "etc/plugins/niso")
    plugin.parent.mkdir()
    plugin.symlink_to(f"{sys.prefix}/bin/niso-netavark")
    made.run("mkdir", "/var/lib/containers")
    made.run("mount", "-t", "tmpfs", "none", "/var/lib/containers")
    made.run("podman", "import", "/tmp/packages/image.tar", IMAGE)
    made.systemctl("daemon-reload")
    return made


@needs_systemd
@needs_podman
@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
@pytest.mark.skipif(not GENERATOR.exists(), reason="./dev test unpacks the generator")
def test_units_of_quadlet_are_on_networks_of_niso(lab: Lab, machine: Machine) -> None:
    machine.systemctl("start", "web", "bad")
    machine.niso("net", "attach", "api", "--new", "--network", "backend")

    def row(name: str) -> dict[str, Any]:
        rows = json.loads(machine.niso("ps", "--json").stdout)
        return next(row for row in rows if row["service"] == name)

    def get(address: str, *inside: str) -> str:
        return fetch(machine.run, address, *inside)

    def from_bad(*words: str) -> str:
        done = machine.run("podman", "exec", "bad", "/bin/busybox", *words, check=False)
        return str(done.stdout)

    def from_client() -> str:
        return fetch(lab.client, f"{HOST}:8080")

    web, bad = row("web")["address"][0], row("bad")["address"][0]
    assert {web, bad} <= {f"10.99.40.{n}" for n in range(2, 5)}
    assert from_client() == "web"
    assert get(web, "nsenter", "--net=/run/netns/niso-api") == "web"
    assert get(bad, "nsenter", "--net=/run/netns/niso-api") == "bad"
    # a neighbour that the policy leaves out, also with the address of one that it allows
    page = ("wget", "-q", "-T", "1", "-O", "-", f"http://{web}/index.html")
    assert from_bad(*page) == ""
    api = row("api")["address"][0]
    from_bad("ip", "address", "add", f"{api}/24", "dev", "eth0")
    from_bad("ip", "address", "del", f"{bad}/24", "dev", "eth0")
    assert from_bad(*page) == ""
    assert get(web, "nsenter", "--net=/run/netns/niso-api") == "web"
    machine.niso("net", "check", "web")

    # systemd starts a container again that was killed
    before = machine.systemctl("show", "-P", "MainPID", "web").stdout
    machine.run("podman", "kill", "web")
    lab.wait_for(
        lambda: (
            machine.systemctl("show", "-P", "MainPID", "web").stdout != before
            and machine.systemctl("is-active", "web", check=False).returncode == 0
        ),
        20,
        "the next container",
    )
    assert row("web")["address"][0] == web
    assert (from_client(), from_bad(*page)) == ("web", "")
    machine.systemctl("stop", "web", "bad")
    assert from_client() == ""
    assert [line["service"] for line in json.loads(machine.niso("ps", "--json").stdout)] == ["api"]
    machine.niso("net", "check")


UNIT = re.compile(r"```ini\n# (/etc/systemd/system/\S+)\n(.*?)```", re.DOTALL)


@needs_systemd
@needs_podman
def test_network_that_podman_removes_goes_at_once_with_the_units_of_the_guide(
    lab: Lab, machine: Machine
) -> None:
    for path, text in UNIT.findall((ROOT / "docs/guide/podman.md").read_text()):
        packaged = ROOT / "debian" / path.rpartition("/")[2]
        assert packaged.read_text() == text.replace("/usr/local/bin", "/usr/bin")
        own = text.replace("/usr/local/bin", f"{sys.prefix}/bin")
        pathlib.Path(f"{machine.disk}{path}").write_text(own)
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", "niso-podman.path")

    def known() -> list[str]:
        return [row["name"] for row in json.loads(machine.niso("net", "list", "--json").stdout)]

    names = [f"n{number}" for number in range(8)]  # more than systemd starts in a row by default
    for name in ("back", *names):
        machine.run("podman", "network", "create", "-d", "niso", name)
    assert known() == ["back", *names]
    notes = ("sh", "-c", "grep -l seen /var/lib/niso/podman/*")
    lab.wait_for(
        lambda: len(machine.run(*notes, check=False).stdout.split()) == 9, 20, "their files"
    )
    for name in names:
        machine.run("podman", "network", "rm", name)
    lab.wait_for(lambda: known() == ["back"], 20, "the end of the networks")
    machine.run("podman", "network", "rm", "back")
    lab.wait_for(lambda: known() == [], 20, "the end of the network")
