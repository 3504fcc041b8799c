"""Test hostile root file systems: links out of them, and FIFOs, devices and endless files.

The lab's own / is read-only meanwhile, and where links lead to is looked at: nothing is written there, nothing waited for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from conftest import Lab
from services import BUSYBOX, busybox_rootfs, package, refused

OUTSIDE = "/tmp/outside"
LONG = bool(os.environ.get("NISO_TEST_LONG"))
ODD = (
    f"ln -s {OUTSIDE}/passwd %s",
    "mkfifo %s",
    "ln -s /dev/zero %s",
    "mknod %s c 1 9",
    "truncate -s 100G %s",
    "mkdir %s",
    "head -c 100000 /dev/urandom >%s",
    f"ln -s ../../../../../../{OUTSIDE}/hosts %s",
    "ln -s loop %s; ln -s %s loop",
    "ln -s /proc/1/root/etc/shadow %s",
)
READ = ("passwd", "group", "hosts", "hostname", "resolv.conf", "nsswitch.conf", "niso-hosts")
MOUNTED = ("app", "proc", "sys", "dev", "tmp", "run", "var/tmp")
ETC = (
    f"ln -s {OUTSIDE} etc",
    "ln -s /proc/1/root/etc etc",
    "mkfifo etc",
    "mknod etc c 1 3",
    "ln -s ../../../../etc etc",
    "echo x >etc",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(deadline_seconds=600) as made:
        made.run("mount", "--bind", "/", "/")
        made.run("mount", "-o", "remount,bind,ro", "/")
        made.run("mkdir", OUTSIDE)
        for name in ("passwd", "hosts"):
            made.write(f"{OUTSIDE}/{name}", "treasure\n")
        yield made


def hostile(lab: Lab, *commands: str) -> str:
    """A service with a rootfs in which these commands have run; gives its package's folder."""
    lab.run("rm", "-rf", "/tmp/packages/evil")
    volumes = {"data": {"mount": "/data/deep", "tmpfs": True}}
    folder = package(
        lab,
        "evil",
        "/bin/busybox",
        "sleep",
        "100000",
        package={"rootfs": "rootfs"},
        binary={"working_dir": "/work"},
        volumes=volumes,
    )
    rootfs = busybox_rootfs(lab, f"{folder}/rootfs")
    lab.run("sh", "-ec", "mkdir work var/tmp; " + "; ".join(commands), cwd=rootfs)
    return folder


def state(lab: Lab) -> str:
    return lab.run("sh", "-c", f"find {OUTSIDE} /etc -printf '%p %s %m %U %T@ %l\\n' | sort").stdout


def lives(lab: Lab, folder: str) -> None:
    """It is started, sees its own hosts file and its working folder, and goes without a trace; nothing outside has changed."""
    before = state(lab)
    lab.niso("activate", folder)
    script = "cat /etc/hosts; cat /etc/hostname; pwd; echo x >/data/deep/file; cat /etc/shadow /etc/hosts.treasure; ls /app"
    seen = lab.niso(
        "exec", "evil", "--", "/bin/busybox", "sh", "-c", script, check=False, timeout=20
    ).stdout
    assert (
        "10.99.0.2  evil.niso.local evil\n" in seen
        and "\nevil\n/work\n" in seen
        and "treasure" not in seen
    ), seen
    assert "root:" not in seen
    lab.niso("remove", "evil")
    assert state(lab) == before
    assert lab.run(
        "sh", "-c", "ls /run/niso/services /var/lib/niso/packages 2>/dev/null", check=False
    ).stdout.split() == [*("/run/niso/services:", "/var/lib/niso/packages:")]


@pytest.mark.parametrize("shift", range(len(ODD) if LONG else 2))
def test_file_of_etc_that_is_something_else_is_neither_waited_for_nor_followed(
    lab: Lab, shift: int
) -> None:
    odd = [
        f"rm -rf etc/{name}; "
        + ODD[(i + shift * 5 + shift // 2) % len(ODD)].replace("%s", f"etc/{name}")
        for i, name in enumerate(READ)
    ]
    lives(lab, hostile(lab, *odd))


@pytest.mark.parametrize("shift", range(6 if LONG else 1))
def test_place_that_niso_mounts_at_does_not_lead_out(lab: Lab, shift: int) -> None:
    ways = (
        f"ln -s {OUTSIDE}/x %s",
        "mkfifo %s",
        f"ln -s ../../../../../{OUTSIDE}/%s %s",
        "echo x >%s",
        "mknod %s c 1 3",
        "ln -s lost %s",
    )
    odd = [
        f"rm -rf {name}; " + ways[(i + shift) % len(ways)].replace("%s", name)
        for i, name in enumerate(MOUNTED)
    ]
    lives(lab, hostile(lab, *odd, f"ln -s {OUTSIDE} data"))


@pytest.mark.parametrize("way", ETC if LONG else ETC[:3])
def test_etc_that_leads_out_or_is_no_folder_becomes_the_services_own(lab: Lab, way: str) -> None:
    lives(lab, hostile(lab, f"rm -rf etc; {way}"))


def test_working_folder_and_entrypoint_do_not_lead_out(lab: Lab) -> None:
    lab.run("sh", "-c", f"cp {BUSYBOX} {OUTSIDE}/busybox; mkdir -p {OUTSIDE}/work")
    said = refused(
        lab,
        "activate",
        hostile(
            lab,
            f"rm -rf work bin/busybox; ln -s {OUTSIDE}/work work; ln -s {OUTSIDE}/busybox bin/busybox",
        ),
    )
    assert "binary.working_dir: '/work' does not exist" in said or "working_dir" in said
    assert (
        f"binary.entrypoint: '/bin/busybox' leads to {OUTSIDE}/busybox, which does not exist"
        in said
    )
