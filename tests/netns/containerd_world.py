"""containerd from Debian's packages in a lab, unpacked and not installed, with niso-cni as its plugin."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from typing import Any

import pytest
from conftest import TESTS, Lab
from services import BUSYBOX

PEERS = TESTS.parent / ".cache/bench"
IMAGE = "localhost/bb:1"
needs_containerd = pytest.mark.skipif(
    not (PEERS / "containerd/usr/bin/ctr").exists(), reason="./dev test unpacks containerd"
)
PATH = f"{PEERS}/containerd/usr/bin:{PEERS}/runc/usr/sbin:{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG = """\
version = 2
root = "/tmp/containerd/root"
state = "/run/containerd"
[grpc]
address = "/run/containerd/sock"
"""
CRI = """\
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/bb:1"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
"""
"""Of the service that the kubelet calls."""
WITHOUT_CRI = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
SOCKET = "/run/containerd/sock"
LOOPBACK = PEERS / "containernetworking-plugins/usr/lib/cni/loopback"


def image() -> bytes:
    """An image of busybox alone, as ``docker save`` writes it."""
    layer, whole = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    files = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/busybox", "sleep", "10000"]},
                "rootfs": rootfs,
            }
        ).encode(),
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return whole.getvalue()


class Containerd:
    """A daemon in the lab, which ends with it, and ``ctr``."""

    def __init__(self, lab: Lab, conflist: dict[str, Any], cri: bool = False) -> None:
        self.lab = lab
        lab.write("/tmp/containerd/config.toml", CONFIG + CRI if cri else WITHOUT_CRI + CONFIG)
        lab.path("/tmp/image.tar").write_bytes(image())
        lab.run("mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d")
        lab.run("ln", "-s", f"{sys.prefix}/bin/niso-cni", "/opt/cni/bin/niso-cni")
        if cri:
            lab.run("ln", "-s", str(LOOPBACK), "/opt/cni/bin/loopback")
        text = json.dumps(conflist)
        lab.run("sh", "-c", "cat > /etc/cni/net.d/10-niso.conflist", input=text)
        words = ("env", f"PATH={PATH}", "containerd", "--config", "/tmp/containerd/config.toml")
        lab.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lab.wait_for(lambda: self.ctr("version", check=False).returncode == 0, 20, "containerd")
        space = ("-n", "k8s.io") if cri else ()
        self.ctr(*space, "image", "import", "/tmp/image.tar")

    def ctr(self, *words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        env = (f"PATH={PATH}", "CONTAINERD_ADDRESS=/run/containerd/sock")
        return self.lab.run("env", *env, "ctr", *words, **options)

    def run(self, name: str, *command: str) -> None:
        """Start a container on the network of the conflist."""
        self.ctr("run", "--cni", "-d", "--snapshotter", "native", IMAGE, name, BIN, *command)

    def remove(self, name: str) -> None:
        self.ctr("task", "kill", "-s", "9", name)
        self.lab.wait_for(lambda: "STOPPED" in self.ctr("task", "ls").stdout, 5, "its end")
        self.ctr("task", "rm", name, check=False)  # it passes on that 9 ended it
        self.ctr("container", "rm", name)


BIN = "/bin/busybox"
