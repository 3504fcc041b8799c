"""Virtual machines for tests: start one, run commands in it, save it, cut its power.

A machine has Debian's kernel, systemd as PID 1, and no network but QEMU's, from which no packet
leaves the host. Commands go to an agent in the machine by a virtio port, so they do not depend on
the machine's network.
"""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vm"
# Time limits are multiplied by this factor: an emulated processor is 20 to 50 times slower.
SLOW = float(os.environ.get("NISO_SLOW", "1"))

# What a name adds to its release: the kernel's command line.
SUITES = {
    "uml": ("trixie", ""),  # see user_mode.py
    "uml-forky": ("forky", ""),
    "trixie": ("trixie", ""),
    "trixie-no-ipv6": ("trixie", "ipv6.disable=1"),
    "forky": ("forky", ""),
    "sid": ("sid", ""),
}
# AppArmor's profiles alone take 3.5 minutes to load in an emulated machine.
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 mitigations=off nowatchdog"
EMULATED = (*("-accel", "tcg,thread=multi,tb-size=512"), *("-cpu", "Nehalem"))
KVM = (*("-accel", "kvm"), *("-cpu", "host"))


class Failed(AssertionError):
    """A command in the machine failed."""


def make_image(suite: str) -> None:
    """Make the disk of a release, unless it is in .cache/vm already."""
    if not (CACHE / f"{suite}.img").exists():
        subprocess.run([ROOT / "tests/vm/image", suite], check=True)


def accelerator(suite: str) -> tuple[str, ...]:
    """Return QEMU's options for /dev/kvm if Debian's kernel boots with it, else for emulation.

    Some build machines have a /dev/kvm that runs only kernels made for it. Others then hang in the
    decompressor, so the kernel has 20 s to write its first line.
    """
    if not os.access("/dev/kvm", os.W_OK):
        return EMULATED
    log = CACHE / "kvm.log"
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *KVM]
    command += ["-m", "512", "-kernel", str(CACHE / f"{suite}.kernel"), "-no-reboot"]
    command += ["-append", "console=ttyS0 panic=-1", "-serial", f"file:{log}"]
    log.write_text("")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as qemu:
        for _ in range(200):
            time.sleep(0.1)
            booted = "Linux version" in log.read_text(errors="replace")
            if booted or qemu.poll() is not None:
                break
        qemu.kill()
    return KVM if booted else EMULATED


def overlay(base: Path, disk: Path) -> None:
    """Create an empty disk whose unwritten blocks are those of `base`."""
    kind = "raw" if base.suffix == ".img" else "qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", str(base), str(disk)]
    subprocess.run(command, check=True)


@dataclass
class Machine:
    """A virtual machine with the disk `disk` (qcow2), of a name of SUITES."""

    name: str
    disk: Path
    options: tuple[str, ...]  # of `accelerator`
    append: str = "apparmor=0"
    link: tuple[str, ...] = ()  # QEMU's options for a second network card
    memory: str = "1G"
    qemu: subprocess.Popen[bytes] | None = None
    _agent: socket.socket | None = None
    _buffered: bytes = b""
    _next: int = 0
    _unread: int = 0  # bytes that the agent has not confirmed
    _answers: dict[int, dict[str, object]] = field(default_factory=dict)

    @property
    def console(self) -> Path:
        """The file with the output of the console, of all boots."""
        return self.disk.with_suffix(".console")

    def start(self, snapshot: str = "", *, shell: bool = False) -> None:
        """Power on. With a `snapshot` of `save`, continue there instead of booting.

        With `shell`, the console is the caller's terminal instead of a file.
        """
        suite, more = SUITES[self.name]
        command = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += [*self.options, "-smp", "2", "-m", self.memory, "-machine", "pc"]
        command += ["-kernel", str(CACHE / f"{suite}.kernel")]
        command += ["-initrd", str(CACHE / f"{suite}.initrd")]
        command += ["-append", f"{COMMAND_LINE} {self.append} {more}"]
        command += ["-drive", f"file={self.disk},if=virtio,format=qcow2,cache=unsafe"]
        command += ["-netdev", "user,id=uplink,restrict=on"]
        command += ["-device", "virtio-net-pci,netdev=uplink", *self.link]
        command += ["-device", "virtio-serial"]
        for path in (self._socket("agent"), self._socket("monitor")):
            path.unlink(missing_ok=True)
        command += ["-chardev", f"socket,id=agent,path={self._socket('agent')},server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=agent,name=niso.agent"]
        command += ["-qmp", f"unix:{self._socket('monitor')},server=on,wait=off"]
        if shell:
            command += ["-serial", "mon:stdio"]
        else:
            command += ["-chardev", f"file,id=console,path={self.console},append=on"]
            command += ["-serial", "chardev:console"]
        if snapshot:
            command += ["-loadvm", snapshot]
        self.qemu = subprocess.Popen(command, stdin=None if shell else subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        self._agent, self._buffered = socket.socket(socket.AF_UNIX), b""
        while True:
            assert self.qemu.poll() is None, f"QEMU ended: see {self.console}"
            try:
                self._agent.connect(str(self._socket("agent")))
                return
            except OSError:
                assert time.monotonic() < deadline, "QEMU does not listen"
                time.sleep(0.1)

    def interact(self, snapshot: str) -> None:
        """Continue at a snapshot with the caller's terminal as console, until QEMU ends."""
        self.start(snapshot, shell=True)
        assert self.qemu is not None
        self.qemu.wait()
        self._close()
        self.disk.unlink()

    def boot(self, limit: float = 60) -> str:
        """Power on, wait until systemd has started all units, and return its state."""
        self.start()
        return self.run("systemctl", "is-system-running", "--wait", limit=limit, check=False)

    def send(self, *argv: str, text: str = "", limit: float = 10) -> int:
        """Start a command in the machine; return its number for `answer`."""
        assert self._agent is not None
        self._next += 1
        request = {"id": self._next, "argv": argv, "input": text, "limit": limit * SLOW}
        self._transmit(json.dumps(request).encode() + b"\n")
        return self._next

    def answer(self, number: int, limit: float = 10) -> tuple[int, str, str]:
        """Wait for the end of a command; return its status, output and errors."""
        deadline = time.monotonic() + limit * SLOW + 10
        while number not in self._answers:
            self._receive(deadline)
        found = self._answers.pop(number)
        return int(str(found["status"])), str(found["out"]), str(found["err"])

    def has_answered(self, number: int) -> bool:
        """Say whether a command has ended, without waiting for its end."""
        assert self._agent is not None
        with contextlib.suppress(TimeoutError):
            while number not in self._answers:
                self._receive(time.monotonic())
        return number in self._answers

    def _transmit(self, data: bytes) -> None:
        assert self._agent is not None
        self._agent.sendall(data)

    def _receive(self, deadline: float) -> None:
        """Read what the agent sends: answers, and the numbers of bytes that it has read."""
        assert self._agent is not None
        self._agent.settimeout(max(0.01, deadline - time.monotonic()))
        read = self._agent.recv(1 << 16)
        assert read, f"the machine ended: see {self.console}"
        *lines, self._buffered = (self._buffered + read).split(b"\n")
        for line in lines:
            found = json.loads(line)
            if isinstance(found, int):
                self._unread -= found
            else:
                self._answers[found["id"]] = found

    def run(self, *argv: str, text: str = "", limit: float = 10, check: bool = True) -> str:
        """Run a command in the machine, for at most `limit` times SLOW seconds; return its output.

        Raise Failed with its output if its status is not 0 and `check` is set.
        """
        status, out, err = self.answer(self.send(*argv, text=text, limit=limit), limit)
        if check and status:
            raise Failed(f"{argv}: status {status}\n{out}\n{err}")
        return out + err if not check else out

    def sh(self, script: str, limit: float = 10, check: bool = True) -> str:
        """Run a script of bash in the machine, as `run` does."""
        return self.run("bash", "-euc", script, limit=limit, check=check)

    def put(self, source: Path, target: str) -> None:
        """Copy a file of the host into the machine."""
        coded = base64.b64encode(source.read_bytes()).decode()
        self.run("sh", "-c", f"base64 -d > '{target}'", text=coded, limit=20)

    def wait(self, script: str, limit: float = 10, every: float = 1) -> str:
        """Run a script until it succeeds, for at most `limit` times SLOW seconds."""
        deadline = time.monotonic() + limit * SLOW
        while True:
            try:
                return self.sh(script, limit=limit)
            except Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(every)

    def save(self, snapshot: str) -> None:
        """Save the running machine, with its memory, into its disk."""
        answer = self._monitor(f"savevm {snapshot}")
        assert not answer, answer

    def cut_power(self) -> None:
        """End the machine as a power failure does: what its disk has not received is lost."""
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
        self._close()

    def shut_down(self, limit: float = 20) -> None:
        """Let systemd stop all units, and power off."""
        assert self.qemu is not None
        self.send("systemctl", "poweroff")
        try:
            self.qemu.wait(limit * SLOW)
        finally:
            self.cut_power()

    def _close(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent, self.qemu = None, None
        self._answers.clear()

    def _socket(self, kind: str) -> Path:
        # the path of a Unix socket has at most 107 bytes
        return Path(f"/run/niso-vm-{os.getpid()}-{self.disk.stem[-40:]}.{kind}")

    def _monitor(self, command: str) -> str:
        """Run a command of QEMU's monitor; return what it prints."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(600)
            monitor.connect(str(self._socket("monitor")))
            stream = monitor.makefile("rwb")
            stream.readline()
            for request in (
                {"execute": "qmp_capabilities"},
                {"execute": "human-monitor-command", "arguments": {"command-line": command}},
            ):
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                answer = {}
                while "return" not in answer and "error" not in answer:
                    answer = json.loads(stream.readline())
        return re.sub(r"\s+", " ", str(answer.get("return", answer))).strip()
