"""Look up the user that a service runs as in the passwd and group files that it sees."""

from __future__ import annotations

from niso.base.errors import InvalidInput
from niso.runtime.service_paths import read_inside

MAX_ID = 4_294_967_294
"""The largest uid or gid; (uid_t) -1 means "unchanged" (setresuid(2))."""
_HOME = "/tmp"  # noqa: S108 - a tmpfs of the service's own


def resolve_user(
    rootfs: str | None, user: str | None, own_uid: int, service: str
) -> tuple[int, int, list[int], str, str]:
    """Look up who a service runs as: (uid, gid, supplementary gids, name, home).

    ``user`` is ``name``, ``name:group``, ``uid`` or ``uid:gid``; None means ``own_uid``, named
    like the service.
    Names are looked up in /etc/passwd and /etc/group of the rootfs, or of the host without one.
    Raises `InvalidInput` with the key service.user.
    """
    if user is None:
        return own_uid, own_uid, [], service, _HOME
    where = "the rootfs" if rootfs else "the host"
    groups = read_database(rootfs, "group")
    name, colon, group = user.partition(":")
    if colon and not group:
        raise _bad_user(user, "is not a user", "write name, uid, or uid:gid")
    uid, gid, account = _account(read_database(rootfs, "passwd"), name, user, where)
    if group:
        gid = _gid(groups, group, user, where)
    name = account[0] if account else service
    supplementary = set()
    if account and not group:
        supplementary = {int(line[2]) for line in groups if name in line[3].split(",")} - {gid}
    home = account[5] if account and account[5] else _HOME
    return uid, gid, sorted(supplementary), name, home


def _account(
    accounts: list[list[str]], name: str, user: str, where: str
) -> tuple[int, int, list[str] | None]:
    """Look up a name or uid: (uid, primary gid, its line of passwd; None for an unknown uid)."""
    if _is_number(name):
        uid = _parse_id(name, user)
        account = next((line for line in accounts if line[2] == str(uid)), None)
        return uid, int(account[3]) if account else uid, account
    account = next((line for line in accounts if line[0] == name), None)
    if account is None:
        hint = "use a name from that file, or a number (uid or uid:gid)"
        raise _bad_user(user, f"is not in /etc/passwd of {where}", hint)
    return int(account[2]), int(account[3]), account


def _gid(groups: list[list[str]], group: str, user: str, where: str) -> int:
    if _is_number(group):
        return _parse_id(group, user)
    entry = next((line for line in groups if line[0] == group), None)
    if entry is None:
        hint = "use a name from that file, or a number"
        raise _bad_user(user, f"names a group that is not in /etc/group of {where}", hint)
    return int(entry[2])


def read_database(rootfs: str | None, name: str) -> list[list[str]]:
    """Read the valid lines of ``/etc/passwd`` or ``/etc/group`` (passwd(5), group(5)) as fields.

    Anything but a regular file of at most 4 MiB counts as empty.
    Lines with an id above `MAX_ID` are skipped, as the C library skips them.
    """
    fields = 7 if name == "passwd" else 4
    ids = (2, 3) if name == "passwd" else (2,)
    try:
        text = read_inside({"": rootfs or "/"}, f"/etc/{name}")
    except OSError:
        return []
    lines = [line.split(":") for line in text.decode("utf-8", "replace").splitlines()]
    return [
        line
        for line in lines
        if len(line) == fields and line[0] and all(_is_id(line[i]) for i in ids)
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_id(text: str) -> bool:
    """Return whether a field is a valid uid or gid. int() refuses more than 4300 digits."""
    return _is_number(text) and len(text) <= 10 and int(text) <= MAX_ID


def _parse_id(text: str, user: str) -> int:
    if not _is_id(text):
        raise _bad_user(user, "has an id that is out of range", f"ids go from 0 to {MAX_ID}")
    return int(text)


def _bad_user(user: str, problem: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{user!r} {problem}", hint, "service.user")
