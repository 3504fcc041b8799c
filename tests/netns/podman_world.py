"""Podman from Debian's packages in a lab, unpacked and not installed, with niso as a plugin of its networks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from conftest import TESTS, Lab
from services import BUSYBOX, fetch

PEERS = TESTS.parent / ".cache/bench"
IMAGE = "bench:1"
needs_podman = pytest.mark.skipif(
    not (PEERS / "podman").exists(), reason="./dev test unpacks podman"
)
FILES = {
    "home/.config/containers/policy.json": json.dumps(
        {"default": [{"type": "insecureAcceptAnything"}]}
    ),
    "storage.conf": '[storage]\ndriver = "vfs"\ngraphroot = "/tmp/podman/vfs"\nrunroot = "/run/podman/vfs"\n',
    "containers.conf": f"""\
[containers]
log_driver = "k8s-file"
default_sysctls = []
[network]
network_backend = "netavark"
firewall_driver = "nftables"
network_config_dir = "/tmp/podman/networks"
netavark_plugin_dirs = ["/tmp/podman/plugins"]
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "/run/podman/libpod"
helper_binaries_dir = ["{PEERS}/netavark/usr/lib/podman"]
""",
}
AARDVARK = PEERS / "aardvark-dns/usr/lib/podman/aardvark-dns"
SECCOMP = PEERS / "golang-github-containers-common/usr/share/containers/seccomp.json"
_PATH = f"{PEERS}/podman/usr/bin:{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WITH_PODMAN = (
    "env",
    "HOME=/tmp/podman/home",
    "CONTAINERS_CONF=/tmp/podman/containers.conf",
    "CONTAINERS_STORAGE_CONF=/tmp/podman/storage.conf",
    "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
    f"PATH={_PATH}",
)
"""The start of a command that runs podman."""


class Podman:
    """``podman`` in a lab.

    With ``before``, ``lab`` is the machine of that lab after a reboot: only its disk is left.
    """

    def __init__(self, lab: Lab, before: Lab | None = None) -> None:
        self.lab = lab
        for folder in ("/tmp/podman", "/var/lib/niso") if before is not None else ():
            assert before is not None
            lab.run("mkdir", "-p", folder)
            subprocess.run(("cp", "-aT", before.path(folder), lab.path(folder)), check=True)
        for name, text in FILES.items():
            extra = f'seccomp_profile = "{SECCOMP}"\n' if SECCOMP.exists() else ""
            lab.write(f"/tmp/podman/{name}", text.replace("log_driver =", f"{extra}log_driver ="))
        plugin = lab.path("/tmp/podman/plugins/niso")
        if not plugin.exists():
            lab.program("/tmp/podman/plugins/niso", "niso-netavark")
        if AARDVARK.exists():
            lab.run("cp", "-r", "/usr/libexec/podman", "/tmp/programs")
            lab.run("cp", str(AARDVARK), "/tmp/programs/")
            lab.run("mount", "--bind", "/tmp/programs", "/usr/libexec/podman")
        if lab.path("/sys/fs/cgroup/unified").is_dir():  # crun refuses hybrid cgroups
            lab.run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified")
        if before is not None:
            return
        image = lab.path("/tmp/image/bin")
        image.mkdir(parents=True, exist_ok=True)
        shutil.copy(BUSYBOX, image / "busybox")
        lab.run("tar", "-C", "/tmp/image", "-cf", "/tmp/image.tar", "bin")
        self("import", "/tmp/image.tar", IMAGE)

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run podman."""
        return self.lab.run(*WITH_PODMAN, "podman", *words, **options)

    def run(self, name: str, *options: str) -> None:
        """Start a container that serves its own name at port 80."""
        serve = f"echo {name} > /index.html; exec /bin/busybox httpd -f -p 80 -h /"
        shell = ("/bin/busybox", "sh", "-c", serve)
        self("run", "-d", "--name", name, *options, IMAGE, *shell)

    def get(self, name: str, url: str) -> str:
        """What a container reads at a URL; empty where nobody answers."""
        return fetch(self, url, "exec", name)
