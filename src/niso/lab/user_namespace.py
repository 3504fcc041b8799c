"""Become root of a new user namespace, so that ``niso lab`` needs no root of the machine.

In a user namespace (user_namespaces(7)), an ordinary user has root's capabilities, but only for the
lab's mounts, networks and processes. Each service has a uid of its own, so the namespace gets the
user's subordinate ids (subuid(5)), which newuidmap(1) maps. In a container without the capabilities
for a lab, root maps ids of the container without newuidmap.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable

from niso.base.errors import Error
from niso.plan.specs import SERVICE_UIDS

_SETGID, _SETUID, _NET_ADMIN, _SYS_ADMIN = 6, 7, 12, 21
"""Numbers of capabilities in linux/capability.h."""
_SYSTEM, _NOBODY = (1, 59_999), 65_534
"""The ids of the system's users: first, number. Those of nobody and nogroup."""
_LEAST = 65_535
"""How many ids a lab needs in addition to root's: 5,535 are left for services."""
_ALL = 4_294_967_294
"""All ids but the last: other code takes a map with the last one for the machine's own."""
_AS_ROOT = "or run niso lab as root"

Map = list[tuple[int, int, int]]
"""Lines of uid_map: first id in the namespace, first id outside, number of ids."""


def is_needed() -> bool:
    """Return whether this process lacks a capability or the ids to create a lab."""
    first = SERVICE_UIDS.start
    known = _own_ids("uid")
    return not _has(_SYS_ADMIN, _NET_ADMIN) or all(first - at not in range(n) for at, n in known)


def _own_ids(kind: str) -> list[tuple[int, int]]:
    lines = [line.split() for line in _read(f"/proc/self/{kind}_map").splitlines()]
    return [(int(first), int(count)) for first, _, count in lines]


def _has(*capabilities: int) -> bool:
    lines = _read("/proc/self/status").splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return all(effective >> number & 1 for number in capabilities)


def enter() -> None:
    """Move this process into a new user namespace, as its root. The process must have a single
    thread. Raises Error, which names the setting or the package that is missing.
    """
    is_root = os.geteuid() == 0 and _has(_SETUID, _SETGID)
    maps = {kind: _map_of(kind, is_root) for kind in ("uid", "gid")}
    target = os.getpid()
    (go, unshared), (answer, result) = os.pipe(), os.pipe()
    child = os.fork()  # ids are mapped from outside
    if child == 0:
        try:
            os.close(unshared)
            if os.read(go, 1):
                write = _write_maps if is_root else _run_newuidmap
                os.write(result, write(target, maps).encode())
        finally:
            os._exit(0)
    os.close(go)
    os.close(result)
    try:
        os.unshare(os.CLONE_NEWUSER)
        os.write(unshared, b"\0")
    except OSError as error:
        raise _forbidden(error.errno or 0) from error
    finally:
        os.close(unshared)
        with open(answer, encoding="utf-8", errors="replace") as file:
            problem = file.read()
        os.waitpid(child, 0)
    if problem:
        hint = "newuidmap must be setuid root, without no_new_privs and not on a nosuid mount"
        reason = f"a lab without root cannot map its ids: {problem}"
        raise Error(reason, _AS_ROOT.removeprefix("or ") if is_root else f"{hint}; {_AS_ROOT}")
    try:
        os.unshare(os.CLONE_NEWUTS)  # AppArmor allows the namespace, but not its capabilities
    except OSError as error:
        raise _forbidden(error.errno or 0) from error


# --- ids ------------------------------------------------------------------------------------------


def _write_maps(pid: int, maps: dict[str, Map]) -> str:
    """Write the id maps of ``pid`` (/proc/PID/uid_map and gid_map), which needs CAP_SETUID and
    CAP_SETGID. Return "", or the reason why this failed.
    """
    for kind, lines in maps.items():
        try:
            with open(f"/proc/{pid}/{kind}_map", "w", encoding="ascii") as file:
                file.write("".join(f"{a} {b} {c}\n" for a, b, c in lines))
        except OSError as error:
            return f"{kind}_map: {(error.strerror or '').lower()}"
    return ""


def _run_newuidmap(pid: int, maps: dict[str, Map]) -> str:
    """Write the id maps of ``pid`` by newuidmap(1), without capabilities. Return "" or an error."""
    for kind, lines in maps.items():
        numbers = [str(number) for line in lines for number in line]
        command = [f"new{kind}map", str(pid), *numbers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip() or f"{command[0]} failed"
    return ""


def _map_of(kind: str, is_root: bool) -> Map:
    own = os.geteuid() if kind == "uid" else os.getegid()
    if not is_root:
        return [(0, own, 1), *_spread(_subordinate(kind))]
    known = _own_ids(kind)
    if known == [(0, _ALL + 1)]:
        return [(0, 0, _ALL)]
    return [(0, own, 1), *_spread((max(first, 1), count - (first == 0)) for first, count in known)]


def _spread(ranges: Iterable[tuple[int, int]]) -> Map:
    """Return the lines of an id map for the system's users, nobody and the services of a lab.

    ``ranges`` are the ids outside the user namespace that the map may use, as (first id, number).
    Raises Error if there are too few ids.
    """
    left = [(first, count) for first, count in ranges if count]
    have = sum(count for _, count in left)
    if have < _LEAST:
        reason = f"a lab without root needs 65,536 subordinate uids and gids, and you have {have:,}"
        hint = "give this container more ids, or run niso lab outside"
        if os.geteuid():
            ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
            hint = f"as root: usermod {ids} {_name()}  # or other free ids"
        raise Error(reason, hint)
    wanted = [_SYSTEM, (_NOBODY, 1), (SERVICE_UIDS.start, len(SERVICE_UIDS))]
    lines = []
    while left and wanted:
        (first, count), (inside, most) = left.pop(0), wanted.pop(0)
        some = min(count, most)
        lines.append((inside, first, some))
        if count > some:
            left.insert(0, (first + some, count - some))
        if most > some:
            wanted.insert(0, (inside + some, most - some))
    return lines


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        reason = f"a lab without root needs a user with a name, and uid {os.geteuid()} has none"
        raise Error(reason, f"add this uid to /etc/passwd, {_AS_ROOT}") from None


def _subordinate(kind: str) -> list[tuple[int, int]]:
    """Return this user's subordinate ids of a kind, "uid" or "gid", as ranges (first id, number).
    Raises Error if newuidmap, newgidmap or getsubids is missing.
    """
    for tool in ("newuidmap", "newgidmap", "getsubids"):
        if not shutil.which(tool):
            reason = f"a lab without root needs {tool}, which is not installed"
            raise Error(reason, f"as root: apt install uidmap, {_AS_ROOT}")
    command = ["getsubids", *(["-g"] if kind == "gid" else []), _name()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.split()[-2:] for line in done.stdout.splitlines()]
    return [(int(first), int(count)) for first, count in found]


# --- reasons for a refusal ------------------------------------------------------------------------


_SETTINGS = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "10000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""Sysctls that forbid user namespaces: name, value that forbids them, value that allows them."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _forbidden(number: int) -> Error:
    """Return an error with the setting that forbids user namespaces, from unshare(2)'s errno."""
    for name, bad, good in _SETTINGS:
        if _read(f"/proc/sys/{name.replace('.', '/')}") == bad:
            reason, hint = f"{name} = {bad} forbids", f"as root: sysctl {name}={good}, {_AS_ROOT}"
            break
    else:
        reason, hint = f"the kernel refuses ({os.strerror(number)})", "run niso lab as root"
        if number == errno.ENOSPC:
            reason = "user.max_user_namespaces allows no more of"
        elif number == errno.EPERM and "\nSeccomp:\t2" in _read("/proc/self/status"):
            reason = "the seccomp profile of this container forbids"
            hint = "start it with --security-opt seccomp=unconfined or --privileged"
        elif number == errno.EPERM:
            reason = "a chroot or a security module forbids"
    return Error(f"a lab without root needs user namespaces, which {reason}", hint)


def why_no_mount(kind: str, number: int) -> str | None:
    """Return the hint for a mount that the kernel refuses inside a user namespace, or None.
    ``kind`` is the type of the file system, and ``number`` is the errno of mount(2).
    """
    if number == errno.EACCES:
        return f"an AppArmor profile forbids it (--security-opt apparmor=unconfined), {_AS_ROOT}"
    if number == errno.EPERM and kind in ("proc", "sysfs"):
        # mount_too_revealing, fs/namespace.c
        folder = "/proc" if kind == "proc" else "/sys"
        hidden = f"this container hides a part of {folder}, or has it read-only"
        return f"{hidden}: start it with --privileged, or run niso lab outside"
    return None
