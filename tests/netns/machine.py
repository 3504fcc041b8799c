"""Provide a machine whose init is a real systemd, in its own namespaces inside a lab.

Its / is an overlay of the lab's, so what is written to it (units, the state folder) is in one folder, `Machine.disk`, which
another machine can be made of: that is a reboot. It ends with the lab, cgroups included.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import TESTS, Lab, forks

SYSTEMD = "/usr/lib/systemd/systemd"
TARGET = "niso-test.target"
UNITS = "etc/systemd/system"

needs_systemd = pytest.mark.skipif(
    not os.path.exists(SYSTEMD), reason=f"{SYSTEMD} is not installed: ./dev setup"
)

# what would change the machine's own kernel, or takes time and is for nothing here
MASKED = (
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-remount-fs.service",
    "systemd-random-seed.service",
    "systemd-tmpfiles-setup.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp.service",
    "systemd-update-done.service",
    "systemd-machine-id-commit.service",
    "systemd-hwdb-update.service",
    "systemd-sysusers.service",
    "systemd-journal-flush.service",
    "systemd-journal-catalog-update.service",
    "systemd-firstboot.service",
    "systemd-sysext.socket",
    "systemd-creds.socket",
    "systemd-hostnamed.socket",
    "systemd-initctl.socket",
    "ldconfig.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "run-lock.mount",
    "tmp.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
)

BOOT = f"""\
set -e
root=$1; shift
mount --make-rprivate /
mkdir -p $root/upper $root/work $root/root
mount -t overlay overlay -o lowerdir=/,upperdir=$root/upper,workdir=$root/work $root/root
layers=$root; root=$root/root
# Services see /usr, /etc and the state folder through overlays of their own, and the kernel stacks two.
mount --rbind /usr $root/usr
for each in etc var/lib/niso; do mount --bind $layers/upper/$each $root/$each; done
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
if test "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs; then
    mount -t cgroup2 none $root/sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
    for each in /sys/fs/cgroup/*; do
        if test -L $each; then cp -P $each $root/sys/fs/cgroup/; continue; fi
        test "$(stat -f -c %T $each)" = cgroupfs || continue
        mkdir $root$each
        mount --bind $each $root$each
    done
    export SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
    export SYSTEMD_PROC_CMDLINE="systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
fi
mount -t tmpfs -o mode=755 tmpfs $root/dev
for each in null zero full random urandom tty; do : > $root/dev/$each; mount --bind /dev/$each $root/dev/$each; done
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
for each in "$@"; do mkdir -p $root$each; mount --rbind $each $root$each; done
mkdir -p $root/mnt
cd $root
pivot_root . mnt
umount -l /mnt
exec {SYSTEMD} --system --unit={TARGET} </dev/null
"""
RUNNING, DEAD, FAILED = "active/running", "inactive/dead", "failed/failed"


class Machine:
    """A booted machine. ``disk`` is where it keeps what it writes, in the lab; with ``like`` it has what that one had."""

    def __init__(
        self, lab: Lab, folder: str = "/tmp/machine", like: pathlib.Path | None = None
    ) -> None:
        self.lab = lab
        self.folder = folder
        self.disk = lab.path(f"{folder}/upper")
        if like is None:
            self._prepare()
        else:
            shutil.copytree(like, self.disk, symlinks=True)
        kept = [str(TESTS.parent), sys.prefix, sys.base_prefix, "/tmp/packages"]
        lab.path("/tmp/packages").mkdir(exist_ok=True)
        reachable = [path for path in dict.fromkeys(kept) if path not in ("/usr", "/")]
        self._process = lab.popen(
            *self._in_own_cgroup(),
            *("unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork"),
            *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=x"),
            *("sh", "-c", BOOT, "boot", folder, *reachable),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = int(lab.wait_for(self._child, 10, "a child of unshare").split()[0])
        lab.wait_for(
            lambda: self.systemctl("is-active", TARGET, check=False).returncode == 0, 30, "boot"
        )

    def _in_own_cgroup(self) -> tuple[str, ...]:
        """Return the command that runs another in a new cgroup. With v2, systemd must be alone in one."""
        if not self.lab.path("/sys/fs/cgroup/cgroup.controllers").exists():
            return ()
        cgroup = f"/sys/fs/cgroup/machine-{time.monotonic_ns()}"
        self.lab.path(cgroup).mkdir()
        return ("sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', cgroup)

    def _child(self) -> str:
        path = self.lab.path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return path.read_text().strip() if path.exists() else ""

    def _prepare(self) -> None:
        units = self.disk / UNITS
        folder = f"{self.folder}/upper"
        self.lab.run("mkdir", "-p", f"{folder}/var/lib/niso")
        self.lab.run("cp", "-a", "/etc", folder)
        units.mkdir(parents=True, exist_ok=True)
        for name in MASKED:
            (units / name).symlink_to("/dev/null")
        generators = self.disk / "etc/systemd/system-generators"  # which each reload runs
        generators.mkdir(parents=True, exist_ok=True)
        for generator in pathlib.Path("/usr/lib/systemd/system-generators").glob("*"):
            (generators / generator.name).symlink_to("/dev/null")
        needs = "basic.target systemd-journald.service multi-user.target"
        (units / TARGET).write_text(f"[Unit]\nRequires={needs}\nAfter={needs}\nAllowIsolate=yes\n")
        (units / "multi-user.target").write_text(
            "[Unit]\nRequires=basic.target\nAfter=basic.target\n"
        )
        for wanted in (
            pathlib.Path("/", UNITS, "multi-user.target.wants"),
            pathlib.Path("/usr/lib/systemd/system/multi-user.target.wants"),
        ):
            for link in wanted.iterdir() if wanted.is_dir() else ():
                if not (units / link.name).is_symlink():
                    (units / link.name).symlink_to("/dev/null")

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """As `Lab.run`, inside the machine."""
        return self.lab.run(
            "nsenter",
            f"--target={self.pid}",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--cgroup",
            "--root",
            "--wd=/",
            "--",
            *argv,
            **options,
        )

    def niso(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """As `Lab.niso`, inside the machine."""
        if not forks(options.get("env")):
            return self.run("niso", *argv, **options)
        options = {"cwd": "/", **options}
        return self.lab.run("machine", str(self.pid), *argv, inside=True, **options)

    def systemctl(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        return self.run("systemctl", "--no-pager", *argv, **options)

    def show(self, service: str, *properties: str) -> dict[str, str]:
        """Properties of a service's unit, by their names."""
        lines = self.systemctl(
            "show", f"--property={','.join(properties)}", f"niso-{service}"
        ).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self, service: str) -> str:
        """``active/running``, ``inactive/dead``, ``failed/failed`` …"""
        shown = self.show(service, "ActiveState", "SubState")
        return f"{shown['ActiveState']}/{shown['SubState']}"

    def journal(self, service: str) -> str:
        return str(
            self.run("journalctl", "--no-pager", "--output=cat", f"--unit=niso-{service}").stdout
        )

    def path(self, inside: str) -> pathlib.Path:
        """The path out here of a path in the machine."""
        return pathlib.Path(f"{self.lab.path('/proc')}/{self.pid}/root{inside}")

    def halt(self) -> None:
        """As when the power goes: all its processes end at once."""
        self.lab.run("kill", "-KILL", str(self.pid))
        self._process.wait(10)


def enabled(machine: Machine, folder: str, name: str = "api") -> None:
    """Activate and enable a service, whose unit then runs."""
    machine.niso("activate", folder)
    machine.niso("enable", name)
    assert machine.state(name) == RUNNING


def row(machine: Machine, name: str = "api") -> dict[str, Any]:
    """Return a service's row of ``niso ps``."""
    rows = json.loads(machine.niso("ps", "--json").stdout)
    return dict(next(row for row in rows if row["service"] == name))


def pids(machine: Machine, name: str = "api") -> tuple[int, int]:
    """Return the unit's main process and the service's PID 1 (0 if there is none)."""
    first = json.loads(machine.niso("inspect", name).stdout)["pid"]
    return int(machine.show(name, "MainPID")["MainPID"]), first or 0


def is_followed(machine: Machine, name: str = "api") -> bool:
    """Return whether the unit's main process is the conmon of the service as it runs now."""
    main, first = pids(machine, name)
    try:
        command = machine.path(f"/proc/{main}/cmdline").read_bytes().split(b"\0")
        children = machine.path(f"/proc/{main}/task/{main}/children").read_text().split()
        cgroup = machine.path(f"/proc/{main}/cgroup").read_text()
    except FileNotFoundError:
        return False
    return (
        command[0] == b"/usr/bin/conmon"
        and str(first) in children
        and f"/niso-{name}.service" in cgroup
    )
