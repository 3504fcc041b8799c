"""Declare the interfaces to the processes of services and to the systemd units of services.

`niso.runtime.real_processes` and `niso.runtime.units` implement them. `fakes.processes` of the
tests implements them without root.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.named_tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.base.errors import Error
    from niso.plan.desired import Finding
    from niso.plan.records import Healthcheck
    from niso.plan.specs import ProcessSpec
    from niso.runtime.health import Probe
    from niso.runtime.lifecycle import Lost, Mark
    from niso.runtime.status import Status


# --- Processes ------------------------------------------------------------------------------------


if TYPE_CHECKING:
    from typing import Protocol

else:
    Protocol = object


class Start(Protocol):
    """A start in progress. The caller must call `finish` or `close`."""

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when `is_created` becomes true."""

    @property
    def is_created(self) -> bool:
        """Whether `finish` would not block."""

    def finish(self) -> int:
        """Start the process, and return the pid of its PID 1 on the host. Raises ProcessError."""

    def close(self) -> None:
        """Release the resources of a start that will not be finished.

        `Processes.stop` kills its processes.
        """


class Processes(Protocol):
    """Interface to the processes of services.

    A caller that changes anything must have the service's lock (`niso.base.locks`).
    """

    @property
    def units(self) -> Units:
        """The interface to the services' units in the init system."""

    # --- status ---

    def services(self) -> list[str]:
        """Return all services that have a process or runtime files of one."""

    def status(self, service: str) -> Status:
        """Return the status of a service's process."""

    def runs(self, service: str) -> bool:
        """Return whether the process runs or will be restarted, and no stop of it has begun."""

    def is_stopping(self, service: str) -> bool:
        """Return whether a stop of the process has begun and is not complete."""

    def in_own_netns(self, service: str) -> bool:
        """Return whether the process is in the namespace that has the service's name now."""

    def spec(self, service: str) -> ProcessSpec | None:
        """Return the spec from which the process was started; None without one."""

    def save(self, spec: ProcessSpec) -> None:
        """Record the spec from which the process was started. Raises OSError."""

    def defect(self, service: str) -> Finding | None:
        """Return the problem that `niso net check` reports for an active service's process.

        Returns None if it has none.
        """

    # --- start and stop ---

    def renew(self) -> None:
        """Let this installation of niso handle the exit of running services' processes."""

    def require_room(self) -> None:
        """Raise ProcessError if descriptors, disk space or inodes are lacking for a start."""

    def begin(self, spec: ProcessSpec) -> Start:
        """Begin to start a process. Raises ProcessError.

        A start that fails leaves no process, mount or cgroup.
        """

    def start(self, spec: ProcessSpec) -> int:
        """Start a process, and return the pid of its PID 1 on the host. Raises ProcessError."""

    def terminate(self, service: str) -> int:
        """Send SIGTERM to a process and disable its restart policy. Call `stop` afterwards.

        Returns a pidfd, which the caller must close, or -1 if no process handles SIGTERM.
        """

    def stop(self, service: str, timeout_s: float | None = None) -> None:
        """Stop a process and remove its runtime files; no-op if there are none.

        ``timeout_s`` is the time in seconds between SIGTERM and SIGKILL; None stands for that of
        the spec. Raises ProcessError.
        """

    def stop_all(self, services: Iterable[str]) -> dict[str, Error]:
        """Stop services with a timeout of 0 s each, at less cost than by `stop`.

        Returns the errors by service.
        """

    def end_unrecorded(self, services: Collection[str]) -> None:
        """Kill the processes of these services that an interrupted start has not recorded."""

    def lost(self, state_ids: Iterable[str]) -> list[Lost]:
        """Return the services that have a cgroup but no runtime files, sorted.

        ``state_ids`` are the ids of their state folders.
        """

    def end_lost(self, lost: Lost) -> None:
        """Kill the processes of a service that has no runtime files, and remove its cgroup.

        Raises ProcessError.
        """

    def swap_hosts(self, spec: ProcessSpec) -> None:
        """Mount ``spec.hosts_folder`` in the root of a running process.

        A second call changes nothing more. Raises ProcessError.
        """

    # --- waiting ---

    def open_init(self, service: str) -> int:
        """Return a pidfd of the service's PID 1, which the caller must close; -1 if none runs."""

    def mark(self, pid: int) -> Mark | None:
        """Return a value that differs if a thread of the service has run since the last call.

        ``pid`` is the service's PID 1. Returns None unless all threads sleep.
        """

    def is_starved(self, pid: int) -> bool:
        """Return whether PID 1 or a child of it is runnable but has had almost no CPU time."""

    def probe(self, check: Healthcheck, service: str, service_netns: str | None) -> Probe:
        """Start a probe of a service's healthcheck.

        ``service_netns`` is the name of its network namespace, None for the host's.
        """

    # --- the end of a process ---

    def exit_code(self, service: str) -> int | None:
        """Return the exit status of the last run, waiting up to 1 s until it is recorded.

        Returns None if it is not recorded by then.
        """

    def out_of_memory(self, service: str) -> bool:
        """Return whether the memory limit killed a process of the present run."""

    def last_lines(self, service: str, count: int) -> list[str]:
        """Return the last lines, at most ``count``, that the present run has written to the log."""


# --- Units ----------------------------------------------------------------------------------------


class Units(Protocol):
    """Interface to the systemd units of services.

    Methods other than `booted` require systemd as the init. All methods raise Error if systemd
    refuses.
    """

    def booted(self) -> bool:
        """Return whether systemd is the init."""

    # --- unit files ---

    def read(self, path: str) -> str | None:
        """Return the text of a unit file or drop-in; None if it does not exist."""

    def write(self, path: str, text: str) -> None:
        """Write a unit file or drop-in. Call `enable` or `reload` to make systemd read it.

        Raises OSError.
        """

    def delete(self, path: str) -> None:
        """Delete a unit file or drop-in; no-op if it is missing.

        Its folder is deleted too if it is empty.
        """

    def reload(self) -> None:
        """Make systemd read its unit files again (daemon-reload)."""

    def is_enabled(self, service: str) -> bool:
        """Return whether systemd starts the unit at boot."""

    def enable(self, services: Iterable[str]) -> None:
        """Make systemd read the units of services, and enable them to start at boot."""

    def remove(self, services: Iterable[str]) -> None:
        """Wait until the units of services are inactive, disable them, and delete their files."""

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        """Return whether systemd has a file for a unit."""

    def is_active(self, unit: str) -> bool:
        """Return whether a unit is active."""

    def start_unit(self, unit: str) -> None:
        """Start a unit and wait for it; no-op if it is active."""

    def stop_unit(self, unit: str) -> None:
        """Stop a unit and wait for it; no-op if it is inactive."""

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        """Start the units of services and wait for them."""

    def stop(self, services: Iterable[str]) -> None:
        """Stop the units of services and wait for them.

        The processes of the services must have been stopped before.
        """

    def is_ours(self, service: str) -> bool:
        """Return whether this command runs inside the service's unit."""

    def is_supervised(self, service: str) -> bool:
        """Return whether the service's process has a running conmon."""

    def is_outside(self, service: str) -> bool:
        """Return whether the service has a conmon that does not run in the service's unit."""

    def ready(self, service: str) -> None:
        """Make the service's conmon the main process of its unit.

        This command must run in that unit. The caller must have the service's lock. Raises
        ProcessError if the process has exited.
        """

    def give_back(self, service: str) -> None:
        """Stop a service's unit, but not its processes. The caller must have the service's lock."""
