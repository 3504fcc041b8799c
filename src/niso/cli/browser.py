"""Run `niso web`.

This process reads services and traffic as root. A forked process without privileges serves the
page. With --open, the page is opened in the browser of the user who called sudo(8).
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import secrets
import select
import signal
import socket
import stat
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec

from niso.api.host import connect, plain
from niso.base import files
from niso.base.errors import Error, UsageError, missing_library
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.signals import keep_only, signals_blocked
from niso.cli import output
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from niso.look.map import Map


# --- niso web -------------------------------------------------------------------------------------


EVERY_S = 2.0
_SHARE = 4
"""The pause after a measurement is at least this many times as long as the measurement took."""
_TOKEN_BYTES = 24
_END_S = 5.0
"""Seconds that the server has to exit by itself before it is killed."""
LOCAL = "127.0.0.1"
_READY = b"serving\n"
_WATCHED, _UNWATCHED = b"+", b"-"
"""What the server writes when the first page is opened, and after the last page was closed."""
_GLANCE_S = 60.0
"""Seconds between records of the traffic while no page is open."""
_GRACE_S = 5.0
"""Seconds for which niso measures after the last page was closed, which may be reloaded."""


def run(_: str, args: Args) -> int:
    seconds = None if args.seconds is None else duration(args.seconds, "--for")
    end = None if seconds is None else time.monotonic() + seconds
    port = int(args.port)
    if not 0 <= port <= 65535:
        raise UsageError("must be 0 to 65535", "niso web --port 9500", "--port", value=str(port))
    if args.socket is not None and port == 0:
        hint = "--port 9500: the local port of the tunnel to the socket"
        raise UsageError("cannot be chosen with --socket", hint, "--port", value="0")
    path = None if args.socket is None else os.path.abspath(args.socket)
    if find_spec("starlette") is None or find_spec("uvicorn") is None:  # the server imports them
        raise missing_library("starlette and uvicorn", "serve the page", "starlette", "uvicorn")
    try:
        with ExitStack() as stack:
            listener = stack.enter_context(_listening(path, port))
            server = stack.enter_context(_PageServer(listener))
            if path is None:
                port = listener.getsockname()[1]
            address = f"http://{LOCAL}:{port}/#token={server.token}"
            listener.close()  # from here on only the server uses it
            measured = stack.enter_context(stack.enter_context(connect()).map())
            # reports mistakes before the address is printed
            server.write(_line({"state": plain(measured.read())}))
            print(address, flush=True)
            output.note("niso: a read-only map of this host; Ctrl-C ends it")
            there, user = (f"{LOCAL}:{port}", "") if path is None else (path, "root@")
            name = os.uname().nodename
            output.note(f"  from another machine: ssh -L {port}:{there} {user}{name}")
            if args.open:
                stack.enter_context(_in_browser(address))
            _serve(measured, server, end)
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(measured: Map, server: _PageServer, end: float | None) -> None:
    """Measure traffic until the time ``end`` (monotonic clock), and send states to the server.
    While no page is open, niso only records the traffic of each minute. If ``end`` is None, this
    function never returns: only an exception ends it.
    """
    took = 0.0
    watched_at = time.monotonic()
    while True:
        rests = time.monotonic() - watched_at > _GRACE_S
        wait = _GLANCE_S if rests else max(EVERY_S, _SHARE * took)
        if end is not None and (wait := min(wait, end - time.monotonic())) <= 0:
            return
        if rests:
            measured.rest()
        asked = server.wait(wait, until_asked=rests)
        began = time.monotonic()
        if asked:
            watched_at = began
        if asked or not rests:
            server.write(_look(measured))
        else:
            with suppress(Error):  # an error is shown when a page is opened
                measured.glance()
        took = time.monotonic() - began


def _look(measured: Map) -> bytes:
    """Measure once. Return a line of JSON, {"state": ...} or {"error": ..., "hint": ...}."""
    try:
        return _line({"state": plain(measured.read())})
    except Error as error:
        return _line({"error": error.message, "hint": error.hint})


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class _PageServer:
    """The forked process that serves the page, and its pipes. Create it before this process opens
    the database: the memory of the forked process then contains nothing from the database. The end
    of the ``with`` block stops the process.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        theirs, self._pipe = os.pipe()
        self._status, status = os.pipe()
        with signals_blocked():
            self._pid = os.fork()
            if self._pid == 0:
                _in_child(listener, theirs, status, self.token)
            self._handle = os.pidfd_open(self._pid)
            os.close(theirs)
            os.close(status)
        self._over = False
        self._watched = False

    def __enter__(self) -> _PageServer:
        """Wait until the server is ready. Raises Error with the server's message if it fails."""
        try:
            said = os.read(self._status, len(_READY))
            if said != _READY:
                raise self._failure(said)
        except BaseException:
            self.__exit__()
            raise
        return self

    def write(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._pipe, view) :]
        except BrokenPipeError:
            raise self._failure(b"") from None

    def wait(self, seconds: float, until_asked: bool) -> bool:
        """Wait for ``seconds``. Return whether a page was open at any time during the wait. With
        ``until_asked``, the wait ends when a page is opened. Raises Error if the server exits.
        """
        asked = self._watched
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready = select.select([self._handle, self._status], [], [], left)[0]
            if self._handle in ready:
                raise self._failure(b"")
            if ready:
                # do not trust the server: interpret only the last byte, as one of two states
                said = os.read(self._status, 4096)
                if not said:
                    select.select([self._handle], [], [], _END_S)
                    raise self._failure(b"")
                self._watched = said.endswith(_WATCHED)
                asked = asked or _WATCHED in said
            if until_asked and asked:
                break
        return asked

    def _failure(self, said: bytes) -> Error:
        while block := os.read(self._status, 4096):
            said += block
        if said:
            words = said.removeprefix(_READY).lstrip(_WATCHED + _UNWATCHED)
            message, _, hint = words.decode("utf-8", "replace").partition("\n")
            if message:
                return Error(message, hint or None)
        _, status = os.waitpid(self._pid, 0)
        self._over = True
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Error(f"the process that serves the page has ended: {how}", "niso web")

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        os.close(self._status)
        if not self._over:
            if not select.select([self._handle], [], [], _END_S)[0]:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._handle)


def _in_child(listener: socket.socket, pipe: int, status: int, token: str) -> None:
    """Serve the page in the forked process until ``pipe`` is closed, then exit. Signals stay
    blocked. Errors are written to ``status``.
    """
    from niso.web import page_server

    code = 1
    try:
        keep_only((listener.fileno(), pipe, status))
        for _ in range(3):  # descriptors 0, 1 and 2
            os.open(os.devnull, os.O_RDWR)

        page_server.serve(listener, pipe, status, token)
        code = 0
    except Error as error:
        os.write(status, f"{error.message}\n{error.hint or ''}".encode())
    # whatever the error is, this process must not continue the parent's code
    except BaseException as error:
        os.write(status, f"cannot serve the page: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


# --- sockets --------------------------------------------------------------------------------------


@contextmanager
def _listening(path: str | None, port: int) -> Iterator[socket.socket]:
    """Listen on a port of 127.0.0.1, or on a Unix socket that only root can use. Raises Error."""
    with socket.socket(socket.AF_INET if path is None else socket.AF_UNIX) as listener:
        try:
            if path is None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((LOCAL, port))
            else:
                _remove_dead(path)
                before = os.umask(0o177)
                try:
                    listener.bind(path)
                finally:
                    os.umask(before)
            listener.listen(16)
        except OSError as error:
            where = f"{LOCAL}:{port}" if path is None else path
            reason = (error.strerror or str(error)).lower()
            hint = "niso web --port 0 takes a free port" if path is None else "choose another path"
            raise Error(f"cannot listen on {where}: {reason}", hint) from None
        try:
            yield listener
        finally:
            if path is not None:
                with suppress(OSError):
                    os.unlink(path)


def _remove_dead(path: str) -> None:
    """Remove a Unix socket without a listener. Raises OSError if the file is no socket."""
    with suppress(FileNotFoundError):
        info = os.lstat(path)
        if not stat.S_ISSOCK(info.st_mode):
            raise FileExistsError(errno.EEXIST, "it exists and is not a socket")
        if info.st_uid != os.geteuid():
            return
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


# --- opening a browser ----------------------------------------------------------------------------


_KEPT = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "LANG", "PATH", "TERM")


@contextmanager
def _in_browser(address: str) -> Iterator[None]:
    """Open a URL in the browser of the user who called sudo(8). The URL contains the token, and all
    users can read the arguments of a process (proc(5)). The browser therefore gets the path of a
    file that only the user can read, and that redirects to the URL. The end of the ``with`` block
    removes the file. Raises UsageError if the user has no desktop session.
    """
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
    path = f"{folder}/niso-web-{secrets.token_hex(8)}.html"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.fchown(fd, uid, user.pw_gid)
        refresh = f'<meta http-equiv="refresh" content="0; url={address}">\n'
        files.write(fd, f"<!DOCTYPE html><title>niso</title>{refresh}".encode())
    finally:
        os.close(fd)
    environment = {key: os.environ[key] for key in _KEPT if key in os.environ} | {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "XDG_RUNTIME_DIR": folder,
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus",
    }
    try:
        try:
            subprocess.Popen(
                ["xdg-open", path],
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
            hint = "apt install xdg-utils, or open the address yourself"
            raise UsageError("needs xdg-open, which is not installed", hint, "--open") from None
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
