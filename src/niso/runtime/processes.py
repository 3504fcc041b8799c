"""Declare the interfaces to the processes of services, and to systemd's units of services.

`niso.runtime.real_processes` and `niso.runtime.units` implement them; `fakes.processes` of the
tests needs no root.
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
    """A start in progress; the caller must call `finish` or `close`."""

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when `is_created` becomes true."""

    @property
    def is_created(self) -> bool:
        """Return whether `finish` would not block."""

    def finish(self) -> int:
        """Start the process; return the pid of its PID 1 on the host. Raises ProcessError."""

    def close(self) -> None:
        """Release a start that will not be finished; `Processes.stop` ends its processes."""


class Processes(Protocol):
    """Protocol of the access to services' processes.

    A caller that changes anything has the service's lock (`niso.base.locks`).
    """

    @property
    def units(self) -> Units:
        """Return the access to the services' units in the init system."""

    # --- status ---

    def services(self) -> list[str]:
        """List every service that has a process, or runtime files of one."""

    def status(self, service: str) -> Status:
        """Return the status of a service's process."""

    def runs(self, service: str) -> bool:
        """Return whether the process runs or will be restarted, and no stop has begun."""

    def is_stopping(self, service: str) -> bool:
        """Return whether a stop of the process has begun and not completed."""

    def in_own_netns(self, service: str) -> bool:
        """Return whether the process is in the namespace that now has the service's name."""

    def spec(self, service: str) -> ProcessSpec | None:
        """Return the spec from which the process was started; None if there is none."""

    def save(self, spec: ProcessSpec) -> None:
        """Record the spec from which the process was started. Raises OSError."""

    def defect(self, service: str) -> Finding | None:
        """Return the defect of the process of an active service, or None."""

    # --- start and stop ---

    def renew(self) -> None:
        """Make running services use this installation of niso when their processes exit."""

    def require_room(self) -> None:
        """Raise ProcessError if descriptors, space or files that a start needs are lacking."""

    def begin(self, spec: ProcessSpec) -> Start:
        """Begin to start a process; a failed start leaves nothing behind. Raises ProcessError."""

    def start(self, spec: ProcessSpec) -> int:
        """Start a process and wait for it; return the pid of its PID 1. Raises ProcessError."""

    def terminate(self, service: str) -> int:
        """Send SIGTERM and disable the restart policy; call `stop` to complete the stop.

        Returns a pidfd, which the caller closes; -1 if no process handles SIGTERM.
        """

    def stop(self, service: str, timeout_s: float | None = None) -> None:
        """Stop a process and remove its runtime state; no-op if there is none.

        ``timeout_s`` is the time between SIGTERM and SIGKILL; default: the spec's. Raises
        ProcessError.
        """

    def stop_all(self, services: Iterable[str]) -> dict[str, Error]:
        """Stop services with a timeout of 0 s each, at less cost than `stop`; return the errors."""

    def end_unrecorded(self, services: Collection[str]) -> None:
        """Kill the leftovers of interrupted starts that were not recorded."""

    def lost(self, state_ids: Iterable[str]) -> list[Lost]:
        """Return services of these state folders with a cgroup but no runtime files, sorted."""

    def end_lost(self, lost: Lost) -> None:
        """Kill the processes of a service without runtime files, and remove its cgroup.

        Raises ProcessError.
        """

    def swap_hosts(self, spec: ProcessSpec) -> None:
        """Mount ``spec.hosts_folder`` in a running process's root; idempotent.

        Raises ProcessError.
        """

    # --- waiting ---

    def open_init(self, service: str) -> int:
        """Open a pidfd of PID 1, which the caller closes; -1 if none runs."""

    def mark(self, pid: int) -> Mark | None:
        """Return a value that changes when PID 1 or a child runs; None unless all are sleeping."""

    def is_starved(self, pid: int) -> bool:
        """Return whether PID 1 or its child is runnable but has had almost no CPU time."""

    def probe(self, check: Healthcheck, service: str, service_netns: str | None) -> Probe:
        """Begin a probe of a service's healthcheck, in a network namespace or on the host."""

    # --- the end of a process ---

    def exit_code(self, service: str) -> int | None:
        """Return the exit status of the last run; waits up to 1 s until it is recorded."""

    def out_of_memory(self, service: str) -> bool:
        """Return whether the memory limit killed a process of the present run."""

    def last_lines(self, service: str, count: int) -> list[str]:
        """Return at most the last ``count`` lines that the present run wrote to the log."""


# --- Units ----------------------------------------------------------------------------------------


class Units(Protocol):
    """The systemd units of services. Methods other than `booted` require systemd as the init.

    All raise Error if systemd refuses.
    """

    def booted(self) -> bool:
        """Return whether systemd is the init."""

    # --- unit files ---

    def read(self, path: str) -> str | None:
        """Return the text of a unit file or drop-in; None if there is none."""

    def write(self, path: str, text: str) -> None:
        """Replace a unit file or drop-in; call `enable` or `reload` to make systemd read it.

        Raises OSError.
        """

    def delete(self, path: str) -> None:
        """Delete a unit file or drop-in, and its folder if empty; no-op if it is missing."""

    def reload(self) -> None:
        """Reload systemd's unit files (daemon-reload)."""

    def is_enabled(self, service: str) -> bool:
        """Return whether systemd starts the unit at boot."""

    def enable(self, services: Iterable[str]) -> None:
        """Reload the units of services, and enable them to start at boot."""

    def remove(self, services: Iterable[str]) -> None:
        """Disable units and remove their files, once none is active; no-op without services."""

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
        """Stop the units of services and wait; the services' processes are already stopped."""

    def is_ours(self, service: str) -> bool:
        """Return whether this command runs inside the service's unit."""

    def is_supervised(self, service: str) -> bool:
        """Return whether the service's process has a living conmon."""

    def is_outside(self, service: str) -> bool:
        """Return whether the service has a conmon that is not in its unit."""

    def ready(self, service: str) -> None:
        """Make the service's conmon the main process of its unit, in which this command runs.

        The caller holds the service's lock. Raises ProcessError if the process has ended.
        """

    def give_back(self, service: str) -> None:
        """Stop a service's unit, but not its processes. The caller holds the service's lock."""
