"""Run crun, and locate the programs that start services."""

from __future__ import annotations

import os

from niso.base import failpoint, paths
from niso.base.errors import ProcessError

_TOOL_FOLDERS = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/libexec/podman",
    "/usr/libexec/catatonit",
)


def tool(name: str) -> str:
    """Return the absolute path of crun, conmon, catatonit or nsenter. Raises `ProcessError`."""
    if failpoint.broken(name):
        return "/usr/bin/false"
    for folder in _TOOL_FOLDERS:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    package = "util-linux" if name == "nsenter" else name
    raise ProcessError(f"{name} is not installed", f"apt install {package}")


def state_dir() -> str:
    """Return the folder of crun's own state (``crun --root``)."""
    return os.path.join(paths.run_dir(), "crun")


def container_id(service: str) -> str:
    """Return the container id of a service for crun and conmon.

    conmon's journald driver needs more than 12 characters (conmon, src/ctr_logging.c).
    """
    return f"niso-service-{service}"


def environment() -> dict[str, str]:
    """Return the environment of conmon, crun and the exit command: only niso's folders.

    With LANG, conmon and nsenter would each read the twelve files of a locale.
    """
    folders = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("NISO_") and "FAILPOINT" not in name
    }
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_CTYPE": "C.UTF-8", **folders}


def run(*args: str) -> tuple[int, str]:
    """Run crun; return its exit status and its error message (stderr, on one line).

    Waits for crun to end even if a signal interrupts: an undo must not run concurrently.
    """
    from niso.base.signals import signals_delivered, signals_held

    program = tool("crun")
    with signals_held():
        read, write = os.pipe()
        try:
            pid = os.posix_spawn(
                program,
                ["crun", f"--root={state_dir()}", *args],
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write, 2),
                ],
                setsigmask=(),
            )
        finally:
            os.close(write)
        try:
            with signals_delivered():
                output = read_all(read)
        finally:
            _, wait_status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(wait_status), plain_message(output)


def start(service: str) -> None:
    """Start the process of a created container. Raises `ProcessError`, OSError.

    The container waits for a byte on a FIFO, which ``crun start`` would write
    (libcrun_status_write_exec_fifo, src/libcrun/status.c). Running crun for that takes a tenth of
    the processor time of a start. A newer crun must be able to start containers that an older one
    has created, so this protocol is unlikely to change. If the FIFO or its reader is missing, crun
    is run: it starts the container or reports the problem.
    """
    fifo = os.path.join(state_dir(), container_id(service), "exec.fifo")
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        exit_status, message = run("start", container_id(service))
        if exit_status != 0:
            raise ProcessError(f"crun start: {message}", service=service) from None
        return
    try:
        os.unlink(fifo)  # crun calls the container running from then on
        os.write(fd, b"\0")
    finally:
        os.close(fd)


def plain_message(output: bytes) -> str:
    """Strip the time stamps from a message of crun or conmon and join its lines with "; "."""
    lines = []
    for line in output.decode("utf-8", "replace").splitlines():
        stamp, _, message = line.partition(": ")
        lines.append(message if stamp[:2] == "20" and "T" in stamp and message else line)
    return "; ".join(line.strip() for line in lines if line.strip())


def read_all(fd: int, most: int = 1 << 16) -> bytes:
    """Read ``fd`` to its end and close it; return the first ``most`` bytes."""
    kept = b""
    try:
        while chunk := os.read(fd, 4096):
            kept += chunk[: most - len(kept)]
    finally:
        os.close(fd)
    return kept
