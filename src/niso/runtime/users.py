"""Look up the user that a service runs as in the passwd and group files that it sees."""

from __future__ import annotations

from niso.base.errors import InvalidInput
from niso.runtime.service_paths import read_inside

MAX_ID = 4_294_967_294


def resolve_user(
    rootfs: str | None, user: str | None, own_uid: int, service: str
) -> tuple[int, int, list[int], str, str]:
    """Who a service runs as: (uid, gid, supplementary groups, name, home).

    ``user`` is ``name``, ``name:group``, ``uid`` or ``uid:gid``, looked up in the service's own /etc/passwd and /etc/group (the host's
    where the root is assembled); None is ``own_uid``, named like the service. Raises `InvalidInput`.
    """
    if user is None:
        return own_uid, own_uid, [], service, "/tmp"  # noqa: S108 - inside the service, its own tmpfs
    where = "the rootfs" if rootfs else "the host"
    users = read_database(rootfs, "passwd")
    groups = read_database(rootfs, "group")
    name, colon, group = user.partition(":")
    if colon and not group:
        raise _bad_user(user, "is not a user", "write name, uid, or uid:gid")
    entry: list[str] | None
    if name.isascii() and name.isdigit():
        uid = _number(name, user)
        entry = next((line for line in users if line[2] == str(uid)), None)
        gid = int(entry[3]) if entry else uid
    else:
        entry = next((line for line in users if line[0] == name), None)
        if entry is None:
            raise _bad_user(
                user,
                f"is not in /etc/passwd of {where}",
                "use a name of it, or a number (uid or uid:gid)",
            )
        uid, gid = int(entry[2]), int(entry[3])
    if group.isascii() and group.isdigit():
        gid = _number(group, user)
    elif group:
        found = next((line for line in groups if line[0] == group), None)
        if found is None:
            raise _bad_user(
                user,
                f"names a group that is not in /etc/group of {where}",
                "use a name of it, or a number",
            )
        gid = int(found[2])
    account = entry[0] if entry else service
    more = (
        []
        if group or not entry
        else [int(line[2]) for line in groups if account in line[3].split(",")]
    )
    return (
        uid,
        gid,
        sorted(set(more) - {gid}),
        account,
        (entry[5] if entry and entry[5] else "/tmp"),  # noqa: S108  # a home, no file
    )


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


def _number(text: str, user: str) -> int:
    if len(text) > 10 or int(text) > MAX_ID:
        raise _bad_user(user, "has an id that is out of range", f"ids go from 0 to {MAX_ID}")
    return int(text)


def _bad_user(user: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput(f"service.user: {user!r} {what}", hint, "service.user")
