"""Look up the entrypoint and the working directory of a manifest in the service's root."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence

from niso.base.errors import InvalidInput
from niso.runtime.service_paths import open_inside
from niso.runtime.spec import APP

MISSING = "does not exist"
_NOT_EXECUTABLE = "is not executable"
_HEAD_BYTES = 256
"""How much of a script the kernel reads (BINPRM_BUF_SIZE, linux/binfmts.h)."""
_MAX_INTERPRETERS = 4
_ALWAYS_THERE = ("/", "/tmp", "/run", "/var/tmp", "/dev/shm")  # noqa: S108 - inside the service


def mounts_of(package: str, rootfs: str | None) -> dict[str, str]:
    """Return the folders of the host that a service will see, by mount point, before it runs.

    An empty ``package`` hides nothing here; admission looks again, with the copy of the package.
    """
    return {"": rootfs or "/", APP: package}


def resolve_entrypoint(package: str, rootfs: str | None, entrypoint: str, path_env: str) -> str:
    """Return the path inside the service of the entrypoint of a manifest.

    ``entrypoint`` is a file of the package, else an absolute path, else looked up on ``path_env``.
    It must be a regular, executable file, and so must the interpreter of a script.
    Raises `InvalidInput` with the key binary.entrypoint.
    """
    mounts = mounts_of(package, rootfs)
    path = entrypoint
    if not entrypoint.startswith("/"):
        path = f"{APP}/{entrypoint}"
        if os.path.normpath(path).startswith(f"{APP}/"):
            problem = problem_with(mounts, path)
            if problem is None:
                return path
            if problem != MISSING or "/" in entrypoint:
                raise _bad_entrypoint(entrypoint, f"{problem} in the package", problem)
        elif "/" in entrypoint:
            raise _bad_entrypoint(entrypoint, "lies outside the package")
        on_path = search(mounts, entrypoint, path_env)
        if on_path is None:
            raise _bad_entrypoint(
                entrypoint,
                f"is neither a file of the package nor on the service's PATH ({path_env})",
            )
        path = on_path
    problem = problem_with(mounts, path)
    if problem is None:
        return path
    root = "the rootfs" if rootfs else "the service's system (the host's /usr)"
    raise _bad_entrypoint(entrypoint, f"{problem} in {root}", problem)


def search(mounts: dict[str, str], command: str, path_env: str) -> str | None:
    """Search ``path_env`` for ``command`` as execvp(3) does; None if there is no such file.

    Prefers the first file that can be executed over the first file.
    """
    present = None
    for folder in path_env.split(":"):
        if not folder.startswith("/"):
            continue
        candidate = f"{folder.rstrip('/')}/{command}"
        problem = problem_with(mounts, candidate)
        if problem is None:
            return candidate
        if problem != MISSING and present is None:
            present = candidate
    return present


def problem_with(mounts: dict[str, str], path: str, depth: int = 0) -> str | None:
    """Return why ``path`` cannot be executed in the service, as a predicate; None if it can.

    ``depth`` counts the interpreters that led to ``path``.
    """
    try:
        fd, real = open_inside(mounts, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return MISSING
        return f"cannot be opened ({os.strerror(error.errno or 0)})"
    try:
        info = os.fstat(fd)
        if mounts[""] == "/" and not real.startswith(("/usr/", f"{APP}/")):
            return MISSING
        if not stat.S_ISREG(info.st_mode):
            return "is not a file"
        if not info.st_mode & 0o111:
            return _NOT_EXECUTABLE
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            head = file.read(_HEAD_BYTES)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    # As the kernel (fs/binfmt_script.c): only space, tab, newline and NUL end the name.
    interpreter = os.fsdecode(re.split(rb"[ \t\n\0]", head[2:].lstrip(b" \t"), maxsplit=1)[0])
    if not interpreter:
        return "names no interpreter after #!"
    if depth >= _MAX_INTERPRETERS:
        return f"has more than {_MAX_INTERPRETERS} interpreters that are scripts themselves"
    if problem_with(mounts, interpreter, depth + 1):
        name = interpreter if interpreter.isprintable() else repr(interpreter)
        return f"needs the interpreter {name}, which does not exist or is not executable,"
    return None


def check_working_dir(
    package: str, rootfs: str | None, working_dir: str, volumes: Sequence[str] = ()
) -> None:
    """Raise `InvalidInput` (key binary.working_dir) if the service will not have that folder.

    Folders below one of the mount points ``volumes`` are accepted: they are known only at run time.
    """
    if any(working_dir == point or working_dir.startswith(f"{point}/") for point in volumes):
        return
    if working_dir in _ALWAYS_THERE or (not package and working_dir == APP):
        return
    try:
        fd, real = open_inside(mounts_of(package, rootfs), working_dir)
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
    except OSError:
        is_folder, real = False, ""
    if rootfs is None and not f"{real}/".startswith(("/usr/", f"{APP}/")):
        is_folder = False
    if not is_folder:
        raise InvalidInput(
            f"{working_dir!r} is not a folder in the service",
            f"use {APP} (the package) or a folder below it",
            "binary.working_dir",
        )


def _bad_entrypoint(entrypoint: str, what: str, problem: str = "") -> InvalidInput:
    hint = (
        f"chmod +x {entrypoint} (beside manifest.toml)"
        if problem == _NOT_EXECUTABLE
        else "name a file of the package, an absolute path, or a command on the service's PATH"
    )
    return InvalidInput(f"{entrypoint!r} {what}", hint, "binary.entrypoint")
