"""Find out who runs this process, for `niso history`; identify other processes."""

from __future__ import annotations

import os
import pwd
import sys

from niso.base import paths
from niso.base.named_tuples import NamedTuple

BY = "NISO_BY"
"""The environment variable by which niso itself, such as `niso health`, names itself as caller."""
_UNSET = (1 << 32) - 1
_MOST = 300


class Caller(NamedTuple):
    """Who runs this process, and with which command."""

    login_uid: int | None  # uid of the login, which su(1) and sudo(8) do not change; None if unset
    sudo_user: str  # the user who ran sudo; "" without sudo
    command: str  # the command line, at most 300 characters


def caller() -> Caller:
    """Return who runs this process (proc_pid_loginuid(5), sudo(8))."""
    own = (
        ["niso", *paths.command_line]
        if paths.command_line
        else [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    )
    command = " ".join(own)
    by = os.environ.get(BY, "")
    if by:
        return Caller(None, "", _shown(f"{by}: {command}"))
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            uid: int | None = int(file.read())
    except (OSError, ValueError):  # a kernel without auditing
        uid = None
    sudo_user = os.environ.get("SUDO_USER", "")
    return Caller(None if uid == _UNSET else uid, _shown(sudo_user), _shown(command))


def process_key(pid: int) -> str:
    """Return a text that only this process has until the next boot; "" if it has ended.

    It is the process's id and start time, because ids are reused (proc_pid_stat(5)).
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else f"{pid} {fields[19]}"


def name_of(login_uid: int | None, sudo_user: str) -> str:
    """Return a user as text: of the login, and of sudo if that is another; "" if unknown."""
    login = ""
    if login_uid is not None:
        try:
            login = pwd.getpwuid(login_uid).pw_name
        except KeyError:
            login = str(login_uid)
    if not login or login == sudo_user:
        return sudo_user
    return f"{login} (sudo: {sudo_user})" if sudo_user else login


def _shown(text: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= _MOST else f"{clean[: _MOST - 3]}..."
