"""Find defects in the process and the package copy of an active service."""

from __future__ import annotations

import os

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.findings import Finding
from niso.runtime import package, sources, status
from niso.runtime.skeleton import HOSTS
from niso.runtime.spec import APP, load
from niso.store.store import ServiceRow

if TYPE_CHECKING:
    from niso.plan.process_spec import ProcessSpec
    from niso.runtime.processes import Processes


def of_process(name: str) -> Finding | None:
    """Return the defect of an active service's process, None if it has none.

    A process that has ended is not a defect if its restart policy does not restart it.
    """
    what = f"process of service {name!r}"
    keeper = status.conmon(name)
    if status.outside_cgroup(name, keeper):
        return Finding(
            "different", f"cgroup of service {name!r}", "its process was moved out of it"
        )
    now = status.read(name, closely=True)
    if now.state in ("none", "failed"):
        return Finding("missing", what, now.error or "")
    if now.state == "exited" and status.is_stopping(name):
        return Finding("missing", what, INTERRUPTED)
    if now.state != "running":
        return None
    spec = load(name)
    if spec is None:
        return Finding(
            "missing",
            f"spec.json of service {name!r}",
            "the spec that identifies its process",
            UNKNOWN,
        )
    if _lost_sight(spec.package, now.pid):
        return Finding("different", what, "its package copy was deleted while running")
    if not status.is_in_own_netns(spec, now.pid):
        return Finding("different", what, "it runs in another network namespace")
    if not _sees_hosts(spec, now.pid):
        return Finding(
            "different", what, "it does not see its hosts file: the folder was removed", BLIND
        )
    if keeper is None:
        return Finding(
            "missing",
            f"conmon of service {name!r}",
            "no process collects its log or restarts it",
        )
    if now.pid is not None and not status.known_to_crun(name, now.pid):
        return Finding("missing", f"crun's state of service {name!r}", "niso exec cannot find it")
    return None


def of_service(processes: Processes, row: ServiceRow) -> Finding | None:
    """Like `of_process`, but a job that does not run is never defective, however it ended.

    Only an activation runs a job again.
    """
    finding = processes.defect(row.name)
    if finding is not None and row.is_job and finding.defect not in (UNKNOWN, BLIND):
        return None
    return finding


def of_package(row: ServiceRow) -> Finding | None:
    """Return a finding if the package copy of a service is missing, or has only empty files.

    Its content is not checked otherwise.
    """
    what = f"package copy {row.package} of service {row.name!r}"
    if not os.path.isdir(row.package):
        return Finding("missing", what, row.again)
    try:
        os.close(sources.open_copy(row.package))
    except Error as error:
        return Finding("different", what, f"{error.reason}; {row.again}")
    if package.is_emptied(row.package):
        return Finding("different", what, f"all of its files are empty: {row.again}")
    return None


def of_sources(row: ServiceRow) -> list[Finding]:
    """Return a finding for each path of a service that leads elsewhere than at its activation."""
    spec = row.process
    return [
        Finding(
            "different",
            f"{error.key} of service {row.name!r}",
            f"{error.reason}; {row.again}, if it may be used",
        )
        for error in (sources.problems(spec) if spec is not None else ())
    ]


INTERRUPTED = "a stop of it was interrupted"
UNKNOWN, BLIND = "spec gone", "hosts file unseen"
"""Defects that are repaired while the process keeps running."""


def _lost_sight(copy: str, pid: int | None) -> bool:
    """Return whether /app is a deleted package copy although the copy exists again."""
    try:
        return os.stat(f"/proc/{pid}/root{APP}").st_nlink == 0 and os.path.isdir(copy)
    except OSError:
        return False


def _sees_hosts(spec: ProcessSpec, pid: int | None) -> bool:
    """Return whether a service sees the hosts folder that niso writes; True if unknown."""
    try:
        return os.path.samestat(
            os.stat(f"/proc/{pid}/root/etc/{HOSTS}"), os.stat(spec.hosts_folder)
        )
    except OSError:
        return True
