"""Write the script with which conmon starts niso when a service ends: ``<run>/on-exit``.

A conmon keeps its command line as long as its service runs, while niso may be reinstalled in
another folder or for another Python. Therefore the command line names this script, and the script
names the niso that last wrote it. If that niso no longer exists, the script looks for the command
``niso``.
"""

from __future__ import annotations

import fcntl
import os
import sys

from niso.base import files, paths
from niso.base.locks import open_lock
from niso.runtime import status

SHELL = "/bin/sh"
"""Runs the script: /run is often mounted noexec."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root/.local/bin"
MODULE = "niso.runtime.on_exit"


def path() -> str:
    """Return the path of the script."""
    return os.path.join(paths.run_dir(), "on-exit")


def text() -> str:
    """Return the script that starts this niso.

    After an upgrade of Python, the interpreter of a virtual environment still exists, but does not
    find the modules of the old version. The script therefore also checks that the target of the
    interpreter's link still exists.
    """
    own = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_exit.py")
    python = _quoted(sys.executable)
    needs = (sys.executable, os.path.realpath(sys.executable), own)
    return (
        "# conmon runs this when a service of niso ends\n"
        # so that stopping a thousand services at once does not start Python a thousand times for
        # nothing
        f'test -e "$2/{status.STOPPING}" && exit\n'
        f"if {' && '.join(f'test -e {_quoted(name)}' for name in needs)}; then\n"
        f'    exec {python} -I -m {MODULE} "$@"\n'
        "fi\n"
        f'PATH={_PATH} exec niso on-exit "$@"\n'
    )


def write() -> None:
    """Write the script unless it is up to date. Raises OSError.

    The caller holds the lock ``.cgroup`` shared, so that a concurrent `remove_unused` waits until
    its service is started.
    """
    wanted = os.fsencode(text())
    if files.read(path()) == wanted:
        return
    draft = f"{path()}.{os.getpid()}.new"
    fd = files.make(draft, 0o600)
    try:
        files.write(fd, wanted)
    finally:
        os.close(fd)
    files.rename(draft, path())


def renew() -> None:
    """Rewrite the script if another niso wrote it; no-op if it is missing, or on an error."""
    try:
        if files.read(path()) is not None:
            write()
    except OSError:
        return


def remove_unused() -> None:
    """Remove the script if no service has runtime files, and remove unused skeletons.

    Raises OSError.
    """
    from niso.runtime import skeleton

    guard = open_lock(".cgroup")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        skeleton.remove_unused()
        if not status.services():
            os.unlink(path())
    except (BlockingIOError, FileNotFoundError):  # a service is starting; no script
        return
    finally:
        os.close(guard)


def _quoted(word: str) -> str:
    """Quote a word for a shell."""
    return "'" + word.replace("'", "'\\''") + "'"
