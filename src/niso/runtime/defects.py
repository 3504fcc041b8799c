"""What can be wrong with the process and the package copy of an active service."""

from __future__ import annotations

import os

from niso.plan.findings import Finding
from niso.runtime import process
from niso.runtime.root import HOSTS
from niso.runtime.spec import APP, load
from niso.store.store import ServiceRow


def of_process(name: str) -> Finding | None:
    """What is wrong with an active service's process; an end that its conmon has seen is not."""
    what = f"process of service {name!r}"
    if process.strayed(name):
        return Finding(
            "different", f"cgroup of service {name!r}", "its process was moved out of it"
        )
    status = process.status(name, closely=True)
    if status.state in ("none", "failed"):
        return Finding("missing", what, status.error or "")
    if status.state != "running":
        return None
    spec = load(name)
    if spec is None:
        return Finding(
            "missing",
            f"spec.json of service {name!r}",
            "what it was started from, by which its process is known",
            UNKNOWN,
        )
    if _lost_sight(spec.package, status.pid):
        return Finding("different", what, "its package copy was removed under it")
    if not process.at_home(name):
        return Finding("different", what, "it runs in another network namespace")
    if not _sees_hosts(name, status.pid):
        return Finding(
            "different", what, "it does not see its hosts file: the folder was removed", BLIND
        )
    if not process.conmon_alive(name):
        return Finding(
            "missing", f"conmon of service {name!r}", "nobody keeps its log or restarts it"
        )
    if status.pid is not None and not process.known_to_crun(name, status.pid):
        return Finding("missing", f"crun's state of service {name!r}", "exec does not find it")
    return None


def of_package(row: ServiceRow) -> Finding | None:
    """Whether the copy that a service shows at /app is there; what is in it is not looked at."""
    if os.path.isdir(row.package):
        return None
    return Finding(
        "missing",
        f"package copy {row.package} of service {row.name!r}",
        f"niso activate {row.manifest_path}",
    )


UNKNOWN, BLIND = "spec gone", "hosts file unseen"
"""Defects that repair mends while the process runs on."""


def _lost_sight(copy: str, pid: int | None) -> bool:
    """Whether a service shows a package copy that has been removed, while there is one to show."""
    try:
        return os.stat(f"/proc/{pid}/root{APP}").st_nlink == 0 and os.path.isdir(copy)
    except OSError:
        return False


def _sees_hosts(name: str, pid: int | None) -> bool:
    """Whether the folder that a service reads its names from is the one that niso writes; True where that cannot be told."""
    spec = load(name)
    try:
        return spec is None or os.path.samestat(
            os.stat(f"/proc/{pid}/root/etc/{HOSTS}"), os.stat(spec.hosts_folder)
        )
    except OSError:
        return True
