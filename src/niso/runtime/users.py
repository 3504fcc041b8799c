"""Look up the user that a service runs as in the passwd and group files that it sees."""

from __future__ import annotations

from niso.base.errors import InvalidInput
from niso.plan.service_spec import User
from niso.runtime.service_paths import read_inside

MAX_ID = 4_294_967_294
"""The largest uid or gid; (uid_t) -1 means "unchanged" (setresuid(2))."""
_HOME = "/tmp"  # noqa: S108 - a tmpfs of the service's own


def resolve_user(
    rootfs: str | None, user: User | None, own_uid: int, service: str
) -> tuple[int, int, tuple[int, ...], str, str]:
    """Look up the user of a service: (uid, gid, supplementary gids, name, home).

    If ``user`` is None, the uid is ``own_uid``, and the name that of the service. Names are looked
    up in /etc/passwd and /etc/group of the rootfs, or of the host without one. Raises
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
            raise InvalidInput(
                f"{user.text!r} is not in /etc/passwd of {where}",
                "use a name from that file, or a number (uid or uid:gid)",
                "service.user",
            )
        return user.uid, user.uid if user.gid is None else user.gid, (), service, _HOME
    name, _, uid, gid, _, home, _ = account
    if user.gid is not None:
        return int(uid), user.gid, (), name, home or _HOME
    groups = read_database(rootfs, "group")
    supplementary = {int(line[2]) for line in groups if name in line[3].split(",")} - {int(gid)}
    return int(uid), int(gid), tuple(sorted(supplementary)), name, home or _HOME


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
