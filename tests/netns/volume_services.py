"""Run shells in services with volumes."""

from __future__ import annotations

from typing import Any

from conftest import Lab
from services import BUSYBOX, busybox_rootfs, idle, package

KEPT = "/var/lib/niso/volumes"


def sh(lab: Lab, name: str, script: str, **options: Any) -> str:
    """Return what a script prints in a service."""
    return str(lab.niso("exec", name, "--", BUSYBOX, "sh", "-c", script, **options).stdout)


def with_volumes(lab: Lab, name: str, rootfs: bool = False, **volumes: dict[str, Any]) -> str:
    """Write an idle service with volumes, on the host's /usr or a root file system of its own."""
    if not rootfs:
        return idle(lab, name, volumes=volumes)
    folder = package(
        lab, name, "/bin/busybox", "sleep", "100000", package={"rootfs": "rootfs"}, volumes=volumes
    )
    if not lab.path(f"{folder}/rootfs/bin/busybox").exists():
        busybox_rootfs(lab, f"{folder}/rootfs")
        lab.path(f"{folder}/rootfs{BUSYBOX}").parent.mkdir(parents=True, exist_ok=True)
        lab.path(f"{folder}/rootfs{BUSYBOX}").hardlink_to(lab.path(f"{folder}/rootfs/bin/busybox"))
    return folder
