"""Open an address in the browser of the user who called sudo(8)."""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
from contextlib import suppress

from niso.base import files
from niso.base.errors import UsageError

_KEPT = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "LANG", "PATH", "TERM")


class Opener:
    """Makes the user's browser open an address. Raises UsageError if there is no such user.

    The address has the token, and everyone can read the arguments of a process (proc(5)). So the
    browser gets a file that only the user can read, which redirects to the address.
    """

    def __init__(self, address: str) -> None:
        sudo = os.environ.get("SUDO_UID", "")
        uid = int(sudo) if sudo.isascii() and sudo.isdigit() else 0
        folder = f"/run/user/{uid}"
        try:
            user = pwd.getpwuid(uid)
        except (KeyError, OverflowError):
            user = None
        if uid == 0 or user is None or not os.path.isdir(folder):
            hint = "run it from a desktop session, or open the address yourself"
            raise UsageError("needs the session of a user who calls sudo", hint, "--open")
        self._path = f"{folder}/niso-web-{secrets.token_hex(8)}.html"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.fchown(fd, uid, user.pw_gid)
            refresh = f'<meta http-equiv="refresh" content="0; url={address}">\n'
            files.write(fd, f"<!DOCTYPE html><title>niso</title>{refresh}".encode())
        finally:
            os.close(fd)
        environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
        environment |= {
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "XDG_RUNTIME_DIR": folder,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus",
        }
        try:
            subprocess.Popen(
                ["xdg-open", self._path],
                user=uid,
                group=user.pw_gid,
                extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self.close()
            hint = "apt install xdg-utils, or open the address yourself"
            raise UsageError("needs xdg-open, which is not installed", hint, "--open") from None

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            os.unlink(self._path)
