"""Run tcpdump(8) with service names, in the network namespace of a service.

tcpdump has its own mount namespace, where /etc/hosts has the services and no lookup uses DNS.
Nothing is put into the service, and the mount namespace ends with tcpdump. A watcher process ends
tcpdump if the caller is killed: without packets tcpdump would not notice. The kernel's signal at a
parent's death (PR_SET_PDEATHSIG) is cleared when tcpdump changes its user, prctl(2).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
from collections.abc import Mapping, Sequence

from niso.base import paths
from niso.base.errors import Error, ProcessError
from niso.base.signals import heed_signals, keep_only, signals_held
from niso.kernel import netns

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_CHUNK = 1 << 16
_SAID = 4096  # bytes of tcpdump's error output to keep
_NSSWITCH = "hosts: files\nservices: files\nprotocols: files\n"


class Tcpdump:
    """A running tcpdump with the given arguments and filter.

    ``names`` maps addresses to names. ``namespace`` is the network namespace to capture in, "" for
    the caller's. ``stdin`` is a descriptor. Raises Error if tcpdump is not installed, KernelError
    and ProcessError.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        filter_: str,
        names: Mapping[str, str],
        namespace: str = "",
        stdin: int | None = None,
    ) -> None:
        program = shutil.which("tcpdump")
        if program is None:
            raise Error("the program tcpdump is not installed", "apt install tcpdump")
        argv = [program, *arguments, "--", *([filter_] if filter_ else [])]
        self._filters = bool(filter_)
        self._said = b""
        self._pid = self._watcher = 0
        self.out, out = os.pipe2(os.O_CLOEXEC)
        self.err, err = os.pipe2(os.O_CLOEXEC)
        try:
            with signals_held():
                with netns.at(namespace):
                    self._pid = os.fork()
                    if not self._pid:
                        heed_signals()
                        _become(argv, names, stdin, out, err)
                self._watcher = _watch(self._pid)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(out)
            os.close(err)

    def read(self) -> bytes:
        """Return tcpdump's output, b"" when it has exited. Raises ProcessError if it failed."""
        data = os.read(self.out, _CHUNK)
        if not data:
            self._end()
        return data

    def hear(self) -> bool:
        """Keep tcpdump's error output for an error message; return False at its end."""
        data = os.read(self.err, _CHUNK)
        self._said = (self._said + data)[-_SAID:]
        return bool(data)

    def stop(self) -> None:
        """Ask tcpdump to stop; `read` still returns what was captured."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)

    def close(self) -> None:
        """End tcpdump if it is still running, and close its descriptors."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._watcher:  # the watcher ends with tcpdump
            os.waitpid(self._watcher, 0)
            self._watcher = 0
        for fd in (self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = -1

    def _end(self) -> None:
        while self.hear():
            pass
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGINT, -signal.SIGTERM):
            lines = self._said.decode("utf-8", "replace").strip().splitlines() or ["it failed"]
            raise ProcessError(
                f"tcpdump: {lines[-1].removeprefix('tcpdump: ')}",
                "pcap-filter(7) describes expressions" if self._filters else None,
            )


def _watch(pid: int) -> int:
    """Fork a watcher that ends the child ``pid`` if this process dies; it exits with the child."""
    own, child = os.pidfd_open(os.getpid()), os.pidfd_open(pid)
    try:
        watcher = os.fork()
        if watcher:
            return watcher
        try:
            keep_only((own, child))
            poll = select.poll()
            poll.register(own, select.POLLIN)
            poll.register(child, select.POLLIN)
            if child not in dict(poll.poll()):
                signal.pidfd_send_signal(child, signal.SIGTERM)
        finally:
            os._exit(0)
    finally:
        os.close(own)
        os.close(child)


def _become(
    argv: list[str], names: Mapping[str, str], stdin: int | None, out: int, err: int
) -> None:
    """Execute tcpdump in this forked process; never returns."""
    try:
        os.dup2(err, 2)
        os.dup2(out, 1)
        os.dup2(os.open("/dev/null", os.O_RDONLY) if stdin is None else stdin, 0)
        _hide_hosts(names)
        os.execv(argv[0], argv)
    except BaseException as error:
        os.write(2, f"cannot start it: {error}\n".encode())
    finally:
        os._exit(127)


def _hide_hosts(names: Mapping[str, str]) -> None:
    """Give this process an /etc/hosts with the services, and no other source of names."""
    from niso.runtime import mount_calls

    os.unshare(os.CLONE_NEWNS)
    mount_calls.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    folder = paths.run_dir()
    mount_calls.mount("none", folder, "tmpfs", 0, "mode=0755")
    hosts = "".join(f"{address} {name}\n" for address, name in names.items())
    for path, text in (("/etc/hosts", hosts), ("/etc/nsswitch.conf", _NSSWITCH)):
        own = os.path.join(folder, os.path.basename(path))
        with open(own, "w", encoding="utf-8") as file:
            file.write(text)
        if os.path.exists(path):
            mount_calls.mount(own, path, None, _MS_BIND)
