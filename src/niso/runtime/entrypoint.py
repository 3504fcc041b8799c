"""Look up the entrypoint and the working folder of a manifest in the service's root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from niso.base.errors import InvalidInput
from niso.runtime.service_paths import open_inside
from niso.runtime.spec import APP


def mounts_of(package: str, rootfs: str | None) -> dict[str, str]:
    """Which folders of the host a service will see where, before it runs."""
    return {"": rootfs or "/", APP: package}


def resolve_entrypoint(package: str, rootfs: str | None, entrypoint: str, path_env: str) -> str:
    """The path inside the service of what a manifest calls its entrypoint.

    ``entrypoint`` is a file of the package, else an absolute path of the root, else looked up on ``path_env``. It must be a regular,
    executable file, and so must the interpreter of a script. Raises `InvalidInput` with the key binary.entrypoint.
    """
    mounts = mounts_of(package, rootfs)
    root = "the rootfs" if rootfs else "the service's system (the host's /usr)"
    if not entrypoint.startswith("/"):
        inside = f"{APP}/{entrypoint}"
        if os.path.normpath(inside).startswith(f"{APP}/"):
            problem = problem_with(mounts, inside)
            if problem is None:
                return inside
            if problem != "does not exist" or "/" in entrypoint:
                raise _bad_entrypoint(entrypoint, f"{problem} in the package", problem)
        elif "/" in entrypoint:
            raise _bad_entrypoint(entrypoint, "lies outside the package", "")
        found = search(mounts, entrypoint, path_env)
        if found is None:
            raise _bad_entrypoint(
                entrypoint,
                f"is neither a file of the package nor on the service's PATH ({path_env})",
                "",
            )
        inside = found
    else:
        inside = entrypoint
    problem = problem_with(mounts, inside)
    if problem is None:
        return inside
    raise _bad_entrypoint(entrypoint, f"{problem} in {root}", problem)


def search(mounts: dict[str, str], command: str, path_env: str) -> str | None:
    """The first file named ``command`` on ``path_env``, runnable ones first; None where there is none (execvp(3))."""
    present = None
    for folder in path_env.split(":"):
        if not folder.startswith("/"):
            continue
        candidate = f"{folder.rstrip('/')}/{command}"
        problem = problem_with(mounts, candidate)
        if problem is None:
            return candidate
        if problem != "does not exist" and present is None:
            present = candidate
    return present


def problem_with(mounts: dict[str, str], path: str, depth: int = 0) -> str | None:
    """Why ``path`` cannot be run in the service, or None: ``does not exist``, ``is not executable`` and the like."""
    try:
        fd, real = open_inside(mounts, path)
    except OSError as error:
        return (
            "does not exist"
            if error.errno in (errno.ENOENT, errno.ENOTDIR)
            else f"cannot be opened ({os.strerror(error.errno or 0)})"
        )
    try:
        found = os.fstat(fd)
        if mounts[""] == "/" and not real.startswith(("/usr/", f"{APP}/")):
            return "does not exist"
        if not stat.S_ISREG(found.st_mode):
            return "is not a file"
        if not found.st_mode & 0o111:
            return "is not executable"
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            head = file.read(256)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    words = head[2:].split(b"\n", 1)[0].split()
    if not words:
        return "names no interpreter after #!"
    interpreter = os.fsdecode(words[0])
    if depth >= 4:
        return "has an interpreter that is a script, and so on without end"
    if problem_with(mounts, interpreter, depth + 1):
        return f"needs the interpreter {interpreter}, which is not there or not executable,"
    return None


def check_working_dir(
    package: str, rootfs: str | None, working_dir: str, volumes: Sequence[str] = ()
) -> None:
    """Raise `InvalidInput` (key binary.working_dir) where the service will not have that folder.

    What lies below one of the mount points ``volumes`` is only known when it runs.
    """
    if any(working_dir == each or working_dir.startswith(f"{each}/") for each in volumes):
        return
    if working_dir in ("/", "/tmp", "/run", "/var/tmp", "/dev/shm"):  # noqa: S108 - always there, inside the service
        return
    mounts = mounts_of(package, rootfs)
    try:
        fd, real = open_inside(mounts, working_dir)
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
    except OSError:
        folder, real = False, ""
    if rootfs is None and not (real + "/").startswith(("/usr/", f"{APP}/")):
        folder = False
    if not folder:
        raise InvalidInput(
            f"binary.working_dir: {working_dir!r} is not a folder in the service",
            f"use {APP} (the package) or a folder of it",
            "binary.working_dir",
        )


def _bad_entrypoint(entrypoint: str, what: str, problem: str) -> InvalidInput:
    hint = (
        f"chmod +x {entrypoint} (beside manifest.toml)"
        if problem == "is not executable"
        else "name a file of the package, an absolute path of its system, or a command on its PATH"
    )
    return InvalidInput(f"binary.entrypoint: {entrypoint!r} {what}", hint, "binary.entrypoint")
