"""Docker from Debian's packages in a lab, unpacked and not installed, with niso as a driver of its networks."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest
from conftest import TESTS, Lab, Process
from services import BUSYBOX, fetch

PEERS = TESTS.parent / ".cache/bench"
IMAGE = "bench:1"
SOCKET = "/run/docker/plugins/niso.sock"
PROGRAMS = ("docker.io/usr/sbin", "docker-cli/usr/bin", "containerd/usr/bin", "runc/usr/sbin")
needs_docker = pytest.mark.skipif(
    not all((PEERS / folder).exists() for folder in PROGRAMS), reason="./dev test unpacks docker"
)
PATH = ":".join(
    [*(f"{PEERS}/{folder}" for folder in PROGRAMS), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
)
WITH_DOCKER = ("env", "HOME=/tmp", "DOCKER_HOST=unix:///run/docker.sock", f"PATH={PATH}")
DAEMON = (
    "--data-root",
    "/tmp/docker/data",
    "--exec-root",
    "/run/docker",
    "--storage-driver",
    "vfs",
)


class Docker:
    """A daemon in the lab, which ends with it, and ``docker``.

    With ``before``, ``lab`` is the machine of that lab after a power loss: only its disk is left.
    """

    def __init__(self, lab: Lab, before: Lab | None = None) -> None:
        self.lab = lab
        for folder in ("/run/docker/plugins", "/tmp/docker", "/tmp/image/bin"):
            lab.path(folder).mkdir(parents=True, exist_ok=True)
        for folder in ("/tmp/docker/data", "/var/lib/niso") if before is not None else ():
            if (lab.path(folder) / "state.db").exists():  # niso was first
                continue
            lab.path(folder).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(("cp", "-aT", before.path(folder), lab.path(folder)), check=True)
        self.driver = self.serve()
        if lab.path("/sys/fs/cgroup/unified").is_dir():  # runc refuses hybrid cgroups
            lab.run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified")
        self.daemon = self.start()
        for way in ("-i", "-o"):  # docs/guide/firewalls.md
            lab.run("iptables", "-I", "DOCKER-USER", way, "niso-+", "-j", "ACCEPT")
        if before is not None:
            return
        shutil.copy(BUSYBOX, lab.path("/tmp/image/bin/busybox"))
        lab.run("tar", "-C", "/tmp/image", "-cf", "/tmp/image.tar", "bin")
        self("import", "/tmp/image.tar", IMAGE)

    def start(self, *options: str) -> Process:
        """Start the daemon, and wait until it answers."""
        lab = self.lab
        words = ("dockerd", *DAEMON, "--pidfile", "/run/docker.pid", *options)
        to_log = ("sh", "-c", 'exec "$@" >> /tmp/docker/log 2>&1', "sh")
        daemon: Process = lab.popen(*WITH_DOCKER, *to_log, *words, "-H", "unix:///run/docker.sock")
        lab.wait_for(lambda: self.read("/_ping"), 60, "dockerd")
        return daemon

    def serve(self) -> subprocess.Popen[Any]:
        """Start the driver as a socket unit does: with the first call."""
        lab = self.lab
        lab.path(SOCKET).unlink(missing_ok=True)
        words = ("systemd-socket-activate", "-l", SOCKET, f"{sys.prefix}/bin/niso-docker")
        to_log = ("sh", "-c", 'exec "$@" >> /tmp/docker/driver.log 2>&1', "sh")
        process = lab.popen(*to_log, *words)
        lab.wait_for(lambda: lab.path(SOCKET).exists(), 10, "the driver's socket")
        return process

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run docker."""
        return self.lab.run(*WITH_DOCKER, "docker", *words, **options)

    def run(self, name: str, *options: str) -> None:
        """Start a container that serves its own name at port 80."""
        serve = f"echo {name} > /index.html; exec /bin/busybox httpd -f -p 80 -h /"
        shell = ("/bin/busybox", "sh", "-c", serve)
        self("run", "-d", "--name", name, *options, IMAGE, *shell)
        self.wait_until_served(name)

    def wait_until_served(self, name: str) -> None:
        """Wait for the server in a container that was started."""
        self.lab.wait_for(lambda: self.get(name, "127.0.0.1") == name, 10, f"the server of {name}")

    def read(self, path: str) -> bytes:
        """Return the answer of dockerd's API; empty if dockerd does not answer."""
        connection = http.client.HTTPConnection("docker", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.lab.path("/run/docker.sock")))
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""
        finally:
            connection.close()

    def get(self, name: str, url: str) -> str:
        """What a container reads at a URL; empty where nobody answers.

        nsenter needs a third of the processor time of ``docker exec``.
        """
        pid = json.loads(self.read(f"/containers/{name}/json") or "{}").get("State", {}).get("Pid")
        return fetch(self.lab.run, url, "nsenter", f"-t{pid}", "-m", "-n") if pid else ""
