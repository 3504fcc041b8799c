"""Replace the hosts file of a running service whose networks change, instead of restarting it."""

from __future__ import annotations

from niso.base.errors import Error, ProcessError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.report import Report

if TYPE_CHECKING:
    from niso.plan.process_spec import ProcessSpec
    from niso.runtime.processes import Processes


class RestartingInstead(NamedTuple):
    """Reported when a service is restarted because ``error`` prevented a change while it runs."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.error.message}; restarting {self.service}"


def can_swap(processes: Processes, old: ProcessSpec | None, new: ProcessSpec) -> bool:
    """Return whether ``old`` is running and differs from ``new`` only in its hosts folder."""
    if (
        old is None
        or not (old.hosts_folder and new.hosts_folder)
        or old.hosts_folder == new.hosts_folder
    ):
        return False
    return (
        old._replace(hosts_folder=new.hosts_folder) == new
        and processes.status(old.service).state == "running"
    )


def swap_or_restart(processes: Processes, spec: ProcessSpec, report: Report) -> None:
    """Give a running service the hosts file of ``spec.hosts_folder``; if that fails, restart it.

    Raises ProcessError.
    """
    try:
        processes.swap_hosts(spec)
    except ProcessError as error:
        report(RestartingInstead(spec.service, error))
        processes.stop(spec.service, spec.stop_timeout_s)
        processes.start(spec)
