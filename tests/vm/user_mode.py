"""Machines with the kernel of `./dev test-uml`: systemd as PID 1, at nearly native speed without KVM.

The kernel is a process in namespaces of its own, which have no network. Its disk is a file with
the blocks that were written, over a shared image. Commands go to the agent by a serial line.
"""

import os
import select
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from machines.uml import ENTER, PREPARE
from qemu import CACHE, ROOT, SLOW, Machine

# A machine at nearly native speed has systemd's own time limits.
FILES = {
    "/usr/local/sbin/vm-agent": (ROOT / "tests/vm/agent").read_text(),
    "/etc/systemd/system/getty@tty1.service": (
        "[Service]\nExecStart=-/sbin/agetty --autologin root --noreset - linux\n"
        "StandardInput=tty\nStandardOutput=tty\nTTYPath=/dev/tty1\nRestart=always\n"
    ),
    "/etc/systemd/network/uplink.network": "[Match]\nName=none\n",
}
SLOW_LIMITS = (
    "/etc/systemd/system/niso-.service.d/slow.conf",
    "/etc/systemd/system.conf.d/slow.conf",
)


def kernel() -> str:
    """Return the path of the kernel, which is built if it is not in .cache/uml."""
    found = os.environ.get("UML_KERNEL")
    build = (str(ROOT / "tools/machines/uml-build"), str(ROOT / ".cache/uml"))
    return found or subprocess.run(build, stdout=-1, text=True, check=True).stdout.strip()


def make_disk(image: Path, disk: Path) -> None:
    """Copy the image of a release, with the files of this kind of machine."""
    subprocess.run(("cp", "--sparse=always", str(image), str(disk)), check=True)
    commands = [f"rm {path}" for path in (*SLOW_LIMITS, *FILES)]
    for number, (path, text) in enumerate(FILES.items()):
        source = disk.with_suffix(f".{number}")
        source.write_text(text)
        mode = "0100755" if text.startswith("#!") else "0100644"
        commands += [f"write {source} {path}", f"set_inode_field {path} mode {mode}"]
    script = "\n".join(commands)
    subprocess.run(
        ("debugfs", "-w", str(disk)), input=script, text=True, capture_output=True, check=False
    )
    for number in range(len(FILES)):
        disk.with_suffix(f".{number}").unlink()


@dataclass
class UserModeMachine(Machine):
    """A machine whose disk is `base` with the changes in `disk`; without `base`, `disk` alone.

    `wire` is this machine's end of a network (`connect`), its interface is `vec0`.
    """

    base: Path | None = None
    wire: socket.socket | None = None
    number: int = 1  # the last byte of the MAC of `vec0`

    def start(self, snapshot: str = "", *, shell: bool = False) -> None:
        """Power on; the machine boots. With `shell`, the caller's terminal is its tty1."""
        assert not snapshot
        program = kernel()
        self._agent, guest = socket.socketpair()
        self._buffered, self._unread = b"", 0
        passed = [guest.fileno()]
        command = [*ENTER, "sh", "-c", PREPARE, "sh", str(CACHE), program]
        command += [f"mem={self.memory}", "root=/dev/ubda", "rw", "loglevel=4", "panic=-1"]
        command += [f"ubd0={self.disk}{f',{self.base}' if self.base else ''}"]
        command += ["con=null", "ssl=null", f"ssl0=fd:{guest.fileno()}", "agent=/dev/ttyS0"]
        if self.wire is not None:
            passed.append(self.wire.fileno())
            mac = f"52:54:00:00:00:{self.number:02x}"
            command += [f"vec0:transport=fd,fd={self.wire.fileno()},mac={mac}"]
        if shell:
            command += ["con0=null", "con1=fd:0,fd:1"]
            self.qemu = subprocess.Popen(command, pass_fds=passed)
        else:
            command += ["con0=null,fd:1", "systemd.mask=getty@tty1.service"]
            with self.console.open("ab") as log:  # the kernel needs a console that epoll accepts
                copy = subprocess.Popen("cat", stdin=subprocess.PIPE, stdout=log)
            self.qemu = subprocess.Popen(
                command, stdin=-3, stdout=copy.stdin, stderr=-2, pass_fds=passed
            )
            assert copy.stdin
            copy.stdin.close()
        guest.close()

    def boot(self, limit: float = 60) -> str:
        """Power on, wait until systemd has started all units, and return its state."""
        self.start()
        self.answer(0, limit)  # the agent's greeting: the serial line no longer echoes
        return self.run("systemctl", "is-system-running", "--wait", limit=limit, check=False)

    def _transmit(self, data: bytes) -> None:
        """Send no more than the line's buffer of 4 KiB holds, or Linux 6.12 stops reading it."""
        assert self._agent is not None
        for start in range(0, len(data), 1024):
            while self._unread > 2048:
                self._receive(time.monotonic() + 10 * SLOW)
            piece = data[start : start + 1024]
            self._unread += len(piece)
            self._agent.sendall(piece)

    def interact(self, snapshot: str) -> None:
        """Boot with the caller's terminal as console, until the machine ends."""
        super().interact("")

    def cut_power(self) -> None:
        """End the machine as a power failure does, and wait until its processes have ended."""
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
        if self._agent is not None:  # each process of the kernel has the other end
            self._agent.settimeout(60)
            try:
                while self._agent.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
        self._close()


def connect(count: int) -> list[socket.socket]:
    """Return the ends of a network: what one end sends, all the others receive."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
    hub = [near for near, _ in pairs]

    def forward() -> None:
        while True:
            for source in select.select(hub, [], [])[0]:
                frame = source.recv(1 << 16)
                for target in hub:
                    if target is not source:
                        try:
                            target.send(frame, socket.MSG_DONTWAIT)
                        except BlockingIOError:
                            pass  # a machine that is off, or slow, loses frames

    threading.Thread(target=forward, daemon=True).start()
    return [far for _, far in pairs]
