"""Find the entrypoint, the working directory and the user of a service inside its root.

The user is looked up in the passwd and group files that the service sees. Paths are resolved
component by component without changing the root, so that no symbolic link leads out of it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence

from niso.base.errors import InvalidInput
from niso.base.named_tuples import NamedTuple
from niso.plan.specs import ProcessUser
from niso.runtime.crun import APP

# --- entrypoint and working directory -------------------------------------------------------------


_HEAD_BYTES = 256
"""Number of bytes in which the kernel looks for the #! line (BINPRM_BUF_SIZE, linux/binfmts.h)."""
_MAX_INTERPRETERS = 4
_MAX_LINKS = 40
_ALWAYS_THERE = ("/", "/tmp", "/run", "/var/tmp", "/dev/shm")  # noqa: S108 - inside the service


class Problem(NamedTuple):
    """The reason why a file cannot be executed in a service."""

    text: str
    """The reason as a predicate, such as "is not executable"."""
    hint: str = ""
    """What the user can do, or "". ``{}`` stands for the path as the user wrote it."""
    missing: bool = False
    """Whether the file does not exist."""
    elsewhere: bool = False
    """Whether the reason concerns another file that this file needs, such as its interpreter."""


_MISSING = Problem("does not exist", missing=True)
_NOT_EXECUTABLE = Problem("is not executable", "chmod +x {} (beside manifest.toml)")


def mounts_of(package: str, rootfs: str | None) -> dict[str, str]:
    """Return {mount point in a service ("" for the root, /app for the package): host folder}."""
    return {"": rootfs or "/", APP: package}


def resolve_entrypoint(package: str, rootfs: str | None, entrypoint: str, path_env: str) -> str:
    """Return the path, inside the service, of the entrypoint that a manifest names.

    ``entrypoint`` is a file of the package, an absolute path, or a command to search for in the
    folders of ``path_env``. The file must be regular and executable, as must the interpreter of a
    script. Raises `InvalidInput` with the key binary.entrypoint.
    """
    mounts = mounts_of(package, rootfs)
    path = entrypoint
    if not entrypoint.startswith("/"):
        path = f"{APP}/{entrypoint}"
        if os.path.normpath(path).startswith(f"{APP}/"):
            problem = problem_with(mounts, path)
            if problem is None:
                return path
            if not problem.missing or "/" in entrypoint:
                raise _cannot_run(entrypoint, problem, "the package")
        elif "/" in entrypoint:
            raise _bad_entrypoint(entrypoint, "lies outside the package")
        on_path = search(mounts, entrypoint, path_env)
        if on_path is None:
            what = f"is neither a file of the package nor on the service's PATH ({path_env})"
            raise _bad_entrypoint(entrypoint, what)
        path = on_path
    problem = problem_with(mounts, path)
    if problem is None:
        return path
    root = "the rootfs" if rootfs else "the service's system (the host's /usr)"
    within = "the package" if path.startswith(f"{APP}/") else root
    if package and path.startswith(f"{package}/"):
        hint = f"the package is {APP} in the service: {path.removeprefix(f'{package}/')}"
        problem = problem._replace(hint=hint)
    raise _cannot_run(entrypoint, problem, within)


def search(mounts: dict[str, str], command: str, path_env: str) -> str | None:
    """Search the folders of a PATH variable for a command, as execvp(3) does.

    Returns the path of the first file that can be executed. If there is none, returns the first
    file with the command's name, or None.
    """
    present = None
    for folder in path_env.split(":"):
        if not folder.startswith("/"):
            continue
        candidate = f"{folder.rstrip('/')}/{command}"
        problem = problem_with(mounts, candidate)
        if problem is None:
            return candidate
        if not problem.missing and present is None:
            present = candidate
    return present


def problem_with(mounts: dict[str, str], path: str, depth: int = 0) -> Problem | None:
    """Return why a file cannot be executed in the service, or None if it can be. ``depth`` counts
    the script interpreters that led to this file.
    """
    try:
        fd, real = open_inside(mounts, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return _broken(mounts, path)
        return Problem(f"cannot be opened ({os.strerror(error.errno or 0)})")
    try:
        info = os.fstat(fd)
        if mounts[""] == "/" and not real.startswith(("/usr/", f"{APP}/")):
            return _broken(mounts, path)
        if not stat.S_ISREG(info.st_mode):
            return Problem("is not a file")
        if not info.st_mode & 0o111:
            return _NOT_EXECUTABLE
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            head = file.read(_HEAD_BYTES)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    # As in the kernel (fs/binfmt_script.c): only space, tab, newline and NUL end the name.
    interpreter = os.fsdecode(re.split(rb"[ \t\n\0]", head[2:].lstrip(b" \t"), maxsplit=1)[0])
    if not interpreter:
        return Problem("names no interpreter after #!")
    if depth >= _MAX_INTERPRETERS:
        most = f"has more than {_MAX_INTERPRETERS} interpreters"
        return Problem(f"{most} that are scripts themselves")
    problem = problem_with(mounts, interpreter, depth + 1)
    if problem is None:
        return None
    name = interpreter if interpreter.isprintable() else repr(interpreter)
    inside = " inside the service" if problem.missing else ""
    if interpreter.endswith("\r"):
        hint = "its lines end with CR LF: sed -i 's/\\r$//' {}"
    elif exists(mounts, os.path.join(os.path.dirname(path), "../pyvenv.cfg")):
        hint = 'start the venv by its bin/python, as entrypoint, with args = ["-m", "MODULE"]'
    else:
        hint = "name a program that the service has in the first line of {}"
    text = f"needs the interpreter {name}, which {problem.text}{inside}"
    return Problem(text, hint, elsewhere=True)


def _broken(mounts: dict[str, str], path: str) -> Problem:
    end = _end_of_links(mounts, path)
    if end == path:
        return _MISSING
    hint = (
        "link to a file of the package or of the service's /usr, or copy the file into the package"
    )
    hint += "; for a venv: /usr/bin/python3 -m venv"
    text = f"leads to {end}, which does not exist inside the service"
    return Problem(text, hint, elsewhere=True)


def _end_of_links(mounts: dict[str, str], path: str, links: int = 0) -> str:
    folder, name = os.path.split(path)
    try:
        fd, real = open_inside(mounts, folder)
    except OSError:
        if folder in ("", "/"):
            return path
        end = _end_of_links(mounts, folder, links)
        return path if end == folder else os.path.join(end, name)
    try:
        target = os.readlink(name, dir_fd=fd)
    except OSError:  # it is not a symbolic link
        return path
    finally:
        os.close(fd)
    if links == _MAX_LINKS:
        return path
    return _end_of_links(mounts, os.path.normpath(os.path.join(real, target)), links + 1)


def exists(mounts: dict[str, str], path: str) -> bool:
    try:
        fd, _ = open_inside(mounts, path)
    except OSError:
        return False
    os.close(fd)
    return True


def check_working_dir(
    package: str, rootfs: str | None, working_dir: str, volumes: Sequence[str]
) -> None:
    """Raise `InvalidInput` (key binary.working_dir) if the folder is missing in the service.

    Folders in or below the mount points of volumes are accepted, because the content of volumes is
    known only at run time.
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
        hint = f"use {APP} (the package) or a folder below it"
        reason = f"{working_dir!r} is not a folder in the service"
        raise InvalidInput(reason, hint, "binary.working_dir")


def _cannot_run(entrypoint: str, problem: Problem, root: str) -> InvalidInput:
    where = "" if problem.elsewhere else f" in {root}"
    hint = problem.hint.replace("{}", entrypoint)
    return _bad_entrypoint(entrypoint, f"{problem.text}{where}", hint)


def _bad_entrypoint(entrypoint: str, what: str, hint: str = "") -> InvalidInput:
    usual = "name a file of the package, an absolute path, or a command on the service's PATH"
    return InvalidInput(f"{entrypoint!r} {what}", hint or usual, "binary.entrypoint")


# --- users and groups -----------------------------------------------------------------------------


MAX_ID = 4_294_967_294
"""The largest uid or gid. The next number, (uid_t) -1, means "unchanged" (setresuid(2))."""
_HOME = "/tmp"  # noqa: S108 - a tmpfs of the service's own


def resolve_user(
    rootfs: str | None, user: ProcessUser | None, own_uid: int, service: str
) -> tuple[int, int, tuple[int, ...], str, str]:
    """Return the user of a service: uid, gid, supplementary gids, user name and home directory.

    If ``user`` is None, the uid is ``own_uid`` and the name is that of the service. User and group
    names are looked up in /etc/passwd and /etc/group of the rootfs, or of the host. Raises
    `InvalidInput` with the key service.user.
    """
    if user is None:
        return own_uid, own_uid, (), service, _HOME
    column, wanted = (0, user.name) if user.name is not None else (2, str(user.uid))
    accounts = read_database(rootfs, "passwd")
    account = next((line for line in accounts if line[column] == wanted), None)
    if account is None:
        if user.uid is None:
            where = "the rootfs" if rootfs else "the host"
            hint = "use a name from that file, or a number (uid or uid:gid)"
            reason = f"{user.text!r} is not in /etc/passwd of {where}"
            raise InvalidInput(reason, hint, "service.user")
        return user.uid, user.uid if user.gid is None else user.gid, (), service, _HOME
    name, _, uid, gid, _, home, _ = account
    if user.gid is not None:
        return int(uid), user.gid, (), name, home or _HOME
    groups = read_database(rootfs, "group")
    supplementary = {int(line[2]) for line in groups if name in line[3].split(",")} - {int(gid)}
    return int(uid), int(gid), tuple(sorted(supplementary)), name, home or _HOME


def read_database(rootfs: str | None, name: str) -> list[list[str]]:
    """Return the valid lines of ``/etc/passwd`` or ``/etc/group``, each as a list of its fields.

    ``name`` is passwd or group (passwd(5), group(5)). A file that is not regular or is larger than
    4 MiB counts as empty. Lines with an invalid id (`_is_id`) are skipped, as the C library does.
    """
    fields = 7 if name == "passwd" else 4
    ids = (2, 3) if name == "passwd" else (2,)
    try:
        text = read_inside({"": rootfs or "/"}, f"/etc/{name}")
    except OSError:
        return []
    lines = [line.split(":") for line in text.decode("utf-8", "replace").splitlines()]
    valid = (line for line in lines if len(line) == fields and line[0])
    return [line for line in valid if all(_is_id(line[i]) for i in ids)]


def _is_id(text: str) -> bool:
    """Return whether a field is a valid uid or gid, at most 2**32 - 2."""
    # int() raises for more than 4,300 digits
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


# --- files as the service sees them ---------------------------------------------------------------


MAX_FILE_BYTES = 4 << 20
"""Size in bytes of the largest file that `read_inside` reads."""
TOP_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OF_THE_HOST = frozenset(("usr", "etc", *TOP_LINKS))
"""The folders of the host's root that a service without a rootfs has (`niso.runtime.root`)."""
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(mounts: dict[str, str], path: str) -> tuple[int, str]:
    """Open a path as a service sees it, without side effects (O_PATH).

    ``mounts`` maps mount points to folders of the host: ``{"": rootfs, "/app": package}``, where ""
    is the root. If the root is the host's own, only the parts of the host are visible that a
    service without a rootfs sees. /home and /opt are not visible, even if a path through them leads
    back into /usr. Returns the descriptor, which the caller must close, and the path inside the
    service with all symbolic links resolved. Raises OSError (ENOENT, ENOTDIR, ELOOP and others).
    """
    todo = _parts(path)
    done: list[str] = []
    links = 0
    fd = _open_real(mounts, done)
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                # '..' of a mounted folder lies on the host: walk down again from the root.
                done = done[:-1]
                following = _open_real(mounts, done)
            else:
                seen = done or part in _OF_THE_HOST or mounts.get(f"/{part}")
                if mounts[""] == "/" and not seen:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                following = _open_part(mounts, [*done, part], fd)
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
            os.close(above)  # after the swap: an interrupt here must not close fd twice
        if path.endswith("/") and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except BaseException:
        os.close(fd)
        raise
    return fd, "/" + "/".join(done)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_real(mounts: dict[str, str], parts: list[str]) -> int:
    fd = os.open(mounts[""], _FOLDER)
    for i in range(len(parts)):
        try:
            following = _open_part(mounts, parts[: i + 1], fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def _open_part(mounts: dict[str, str], parts: list[str], fd: int) -> int:
    target = mounts.get("/" + "/".join(parts))
    return os.open(target, _FOLDER) if target else os.open(parts[-1], _NOFOLLOW, dir_fd=fd)


def read_inside(mounts: dict[str, str], path: str) -> bytes:
    """Return the content of a small regular file as the service sees it. Raises OSError: EFBIG if
    the file is larger than 4 MiB, EINVAL if it is not regular.
    """
    fd, _ = open_inside(mounts, path)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if info.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(fd)
