"""What a manifest names inside a service (user, entrypoint, folder), looked up before anything starts.

Links are followed inside the service's own root, never the host's: `open_inside` walks component by component.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from niso.base.errors import InvalidInput
from niso.plan.service_spec import User
from niso.runtime.spec import APP

MAX_DATABASE_BYTES = 4 << 20
_MAX_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(mounts: dict[str, str], path: str) -> tuple[int, str]:
    """Open ``path`` as a service sees it, without side effects (O_PATH).

    ``mounts`` says which folder of the host shows where (``{"": rootfs, "/app": package}``); "" is the root.
    Out: the descriptor, which the caller closes, and the path inside the service with all links followed.
    Raises OSError (ENOENT, ENOTDIR, ELOOP ...).
    """
    todo = _parts(path)
    done: list[str] = []
    links = 0
    fd = _open_real(mounts, done)
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                # '..' of a mounted folder lies on the host, so go down again from the top.
                done = done[:-1]
                following = _open_real(mounts, done)
            else:
                target = mounts.get("/" + "/".join([*done, part]))
                following = (
                    os.open(target, _FOLDER) if target else os.open(part, _NOFOLLOW, dir_fd=fd)
                )
                if not stat.S_ISLNK(os.fstat(following).st_mode):
                    done.append(part)
                else:
                    links += 1
                    link = os.readlink("", dir_fd=following)
                    os.close(following)
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    todo.extend(_parts(link))
                    if not link.startswith("/"):
                        continue
                    done = []
                    following = _open_real(mounts, done)
            fd, above = following, fd
            os.close(above)  # which nobody closes once more where an interrupt comes now
        if path.endswith("/") and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except BaseException:
        os.close(fd)
        raise
    return fd, "/" + "/".join(done)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_real(mounts: dict[str, str], parts: list[str]) -> int:
    """Open a folder whose path inside the service has no links left in it."""
    fd = os.open(mounts[""], _FOLDER)
    for i, part in enumerate(parts):
        target = mounts.get("/" + "/".join(parts[: i + 1]))
        try:
            following = os.open(target, _FOLDER) if target else os.open(part, _NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def mounts_of(package: str, rootfs: str | None) -> dict[str, str]:
    """Which folders of the host a service will see where, before it runs."""
    return {"": rootfs or "/", APP: package}


def resolve_user(
    rootfs: str | None, user: User | None, own_uid: int, service: str
) -> tuple[int, int, tuple[int, ...], str, str]:
    """Who a service runs as: (uid, gid, supplementary groups, name, home).

    ``user`` is looked up in the service's own /etc/passwd and /etc/group (the host's where the root is assembled); None is
    ``own_uid``, named like the service. Raises `InvalidInput` where it has no user of that name.
    """
    if user is None:
        return own_uid, own_uid, (), service, "/tmp"  # noqa: S108 - inside the service, its own tmpfs
    where = "the rootfs" if rootfs else "the host"
    column, wanted = (0, user.name) if user.name is not None else (2, str(user.uid))
    entry = next((line for line in read_database(rootfs, "passwd") if line[column] == wanted), None)
    if entry is None:
        if user.uid is None:
            raise InvalidInput(
                f"{user.text!r} is not in /etc/passwd of {where}",
                "use a name of it, or a number (uid or uid:gid)",
                "service.user",
            )
        return user.uid, user.uid if user.gid is None else user.gid, (), service, "/tmp"  # noqa: S108
    name, _, uid, gid, _, home, _ = entry
    more: set[int] = set()
    if user.gid is None:
        groups = read_database(rootfs, "group")
        more = {int(line[2]) for line in groups if name in line[3].split(",")}
        more.discard(int(gid))
    own_gid = int(gid) if user.gid is None else user.gid
    return int(uid), own_gid, tuple(sorted(more)), name, home or "/tmp"  # noqa: S108  # a home, no file


def read_database(rootfs: str | None, name: str) -> list[list[str]]:
    """The well-formed lines of ``/etc/passwd`` or ``/etc/group`` (passwd(5), group(5)), split at the colons.

    Nothing but a regular file of at most 4 MiB is read; anything else counts as empty, as for the C library.
    """
    fields = 7 if name == "passwd" else 4
    numbers = (2, 3) if name == "passwd" else (2,)
    try:
        text = read_inside({"": rootfs or "/"}, f"/etc/{name}")
    except OSError:
        return []
    lines = [line.split(":") for line in text.decode("utf-8", "replace").splitlines()]
    return [
        line
        for line in lines
        if len(line) == fields
        and line[0]
        and all(line[i].isascii() and line[i].isdigit() for i in numbers)
    ]


def read_inside(mounts: dict[str, str], path: str) -> bytes:
    """The content of a small regular file as the service sees it. Raises OSError (EFBIG over 4 MiB, EINVAL if no file)."""
    fd, _ = open_inside(mounts, path)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if found.st_size > MAX_DATABASE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(MAX_DATABASE_BYTES)
    finally:
        os.close(fd)


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
            f"{working_dir!r} is not a folder in the service",
            f"use {APP} (the package) or a folder of it",
            "binary.working_dir",
        )


def _bad_entrypoint(entrypoint: str, what: str, problem: str) -> InvalidInput:
    hint = (
        f"chmod +x {entrypoint} (beside manifest.toml)"
        if problem == "is not executable"
        else "name a file of the package, an absolute path of its system, or a command on its PATH"
    )
    return InvalidInput(f"{entrypoint!r} {what}", hint, "binary.entrypoint")
