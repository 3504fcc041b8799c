"""Manage the units of services through systemctl and systemd's unit files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

from niso.base import files
from niso.base.errors import Error, ProcessError
from niso.runtime import status, unit
from niso.runtime.spec import cgroup_of, load
from niso.runtime.units import UNITS, WANTED_BY, unit_file

_SYSTEMCTL_S = 300.0


class Systemd:
    """The units of services of this machine's systemd."""

    def booted(self) -> bool:
        return unit.booted()

    # --- unit files ---

    def read(self, path: str) -> str | None:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        folder, draft = os.path.dirname(path), f"{path}.new"
        os.makedirs(folder, 0o755, exist_ok=True)
        with open(draft, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        files.sync(draft)
        os.rename(draft, path)
        files.sync(folder)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # other programs have files in the folder
            os.rmdir(os.path.dirname(path))

    def reload(self) -> None:
        _systemctl("daemon-reload")

    def is_enabled(self, service: str) -> bool:
        return os.path.islink(os.path.join(UNITS, f"{WANTED_BY}.wants", unit.name(service)))

    def enable(self, services: Iterable[str]) -> None:
        _systemctl("daemon-reload")
        _systemctl("enable", *map(unit.name, services))

    def remove(self, services: Iterable[str]) -> None:
        names = list(services)
        if not names:
            return
        units = [unit.name(name) for name in names]
        _wait_ended(units)
        _systemctl("disable", *units)
        for name in names:
            os.unlink(unit_file(name))
        _systemctl("daemon-reload")
        _systemctl("reset-failed", *units, may_fail=True)

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        shown = _systemctl("show", "--property=LoadState", "--value", "--", unit)
        return shown.strip() == "loaded"

    def is_active(self, unit: str) -> bool:
        return _systemctl("is-active", "--", unit, may_fail=True).strip() == "active"

    def start_unit(self, unit: str) -> None:
        _systemctl("start", "--", unit)

    def stop_unit(self, unit: str) -> None:
        _systemctl("stop", "--", unit)

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        _systemctl("start", *map(unit.name, services))

    def stop(self, services: Iterable[str]) -> None:
        _systemctl("stop", *map(unit.name, services))

    def is_ours(self, service: str) -> bool:
        return unit.path(service) is not None

    def is_supervised(self, service: str) -> bool:
        return bool(status.supervisors(service))

    def is_outside(self, service: str) -> bool:
        conmon = status.conmon(service)
        return conmon is not None and unit.path(service, conmon) is None

    def ready(self, service: str) -> None:
        own = unit.path(service)
        assert own is not None
        pids = status.supervisors(service)
        if not pids:
            raise ProcessError("its process has ended", f"niso logs {service}", service=service)
        unit.adopt([pid for pid in pids if unit.path(service, pid) != own], own)
        unit.tell(f"MAINPID={pids[0]}", "READY=1")

    def give_back(self, service: str) -> None:
        spec = load(service)
        unit.give_back(
            service, status.conmon(service), cgroup_of(spec) if spec is not None else None
        )


def _wait_ended(units: list[str]) -> None:
    """Wait at most 10 s until none of these units is active.

    Deleting the file of an active unit would discard its ExecStop.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = _systemctl("is-active", *units, may_fail=True).split()
        if not set(states) & {"active", "deactivating", "activating", "reloading"}:
            return
        time.sleep(0.02)


def _systemctl(*arguments: str, may_fail: bool = False) -> str:
    """Run systemctl and return its output. Raises Error with its error message."""
    import subprocess

    command = f"systemctl {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [
                "systemctl",
                *(() if arguments[0] == "is-active" else ("--quiet",)),
                "--no-ask-password",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise Error("systemctl is not installed", "apt install systemd") from error
    except subprocess.TimeoutExpired as error:
        raise Error(
            f"{command}: no answer within {_SYSTEMCTL_S:g}s", "systemctl list-jobs"
        ) from error
    if done.returncode != 0 and not may_fail:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise Error(
            f"{command}: {reason}", f"systemctl status {arguments[-1]}" if arguments[1:] else None
        )
    return done.stdout
