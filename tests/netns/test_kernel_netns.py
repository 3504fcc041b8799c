"""niso.kernel.netns against ``ip netns``."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable

import pytest
from kernel_world import ip, sh, throw_away_host

from niso.base.errors import KernelError
from niso.kernel import netns

ALIAS = "niso:0123abcd"


def here() -> int:
    return os.stat("/proc/self/ns/net").st_ino


@throw_away_host
def test_namespaces_made_ahead_are_like_others_and_unused_ones_end() -> None:
    home, files, count = here(), os.listdir("/proc/self/fd"), 6
    with netns.ahead(count):
        until = time.monotonic() + 10
        while len(netns._ahead) < count and time.monotonic() < until:
            time.sleep(0.01)
        assert len(netns._ahead) == count
        for name in ("niso-a", "niso-b"):
            netns.create(name, alias=ALIAS)
        assert len(netns._ahead) == count - 2
    assert (netns._ahead, here()) == ([], home)
    assert os.listdir("/proc/self/fd") == files
    spaces = {sh(f"ip netns exec {name} readlink /proc/self/ns/net") for name in netns.names()}
    assert len(spaces) == 2
    for name in netns.names():
        (lo,) = ip(f"-n {name} link")
        assert (lo["ifname"], lo["ifalias"]) == ("lo", ALIAS)
        assert "UP" in lo["flags"]


@throw_away_host
def test_directory_is_a_shared_mount_so_that_other_mount_namespaces_let_go() -> None:
    netns.create("niso-api")
    lines = [line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    shared = [
        any(word.startswith("shared:") for word in words)
        for words in lines
        if words[4] == "/run/netns"
    ]
    assert shared and shared[-1]  # below it may be the mount of `ip netns` on a used machine


@throw_away_host
def test_names_lists_whoevers_namespaces_and_not_other_files() -> None:
    assert netns.names() == []
    sh("ip netns add other")
    netns.create("niso-api")
    pathlib.Path("/run/netns/file").touch()
    pathlib.Path("/run/netns/uts").touch()
    sh("mount --bind /proc/self/ns/uts /run/netns/uts")
    assert netns.names() == ["niso-api", "other"]
    assert [netns.exists(name) for name in ("other", "niso-api", "file", "uts", "absent")] == [
        True,
        True,
        *3 * [False],
    ]


@throw_away_host
def test_empty_file_of_a_killed_create_can_be_deleted_or_used_again() -> None:
    os.makedirs("/run/netns")
    pathlib.Path("/run/netns/niso-a").touch()
    pathlib.Path("/run/netns/niso-b").touch()
    netns.delete("niso-a")
    netns.create("niso-b", alias=ALIAS)
    assert os.listdir("/run/netns") == ["niso-b"]
    assert ip("-n niso-b link")[0]["ifalias"] == ALIAS


@throw_away_host
def test_create_killed_at_any_point_leaves_no_unmarked_namespace_and_works_again() -> None:
    pathlib.Path("/run/niso-lab").touch()
    os.environ["NISO_LAB"] = "1"
    for point in range(1, 20):
        os.environ["NISO_FAILPOINT"] = str(point)
        pid = os.fork()
        if pid == 0:
            netns.create("niso-api", alias=ALIAS)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert not netns.exists("niso-api")
    assert point > 3
    assert ip("-n niso-api link")[0]["ifalias"] == ALIAS


@throw_away_host
def test_create_that_fails_at_any_point_leaves_no_file() -> None:
    pathlib.Path("/run/niso-lab").touch()
    os.environ["NISO_LAB"] = "1"
    home = here()
    for point in range(1, 20):
        os.environ["NISO_FAILPOINT"] = f"{point}:ENOSPC"
        pid = os.fork()
        if pid == 0:
            try:
                netns.create("niso-api")
            except KernelError as error:
                os._exit(2 if here() == home and "no space left" in error.message else 3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            break
        assert status == 2
        assert not os.path.exists("/run/netns/niso-api")
    assert point > 3


@throw_away_host
def test_inside_enters_and_comes_back_also_after_an_error() -> None:
    home = here()
    netns.create("niso-api")
    with netns.inside("niso-api"):
        inner = here()
    assert here() == home
    fd = netns.open_fd("niso-api")
    assert os.fstat(fd).st_ino == inner != home
    assert not os.get_inheritable(fd)
    with pytest.raises(ZeroDivisionError), netns.inside("niso-api"):
        raise ZeroDivisionError
    assert here() == home
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with netns.inside("niso-api"), netns.unnamed():
            assert here() not in (home, inner)
    assert len(os.listdir("/proc/self/fd")) == before
    for enter in (netns.inside("absent").__enter__, lambda: netns.open_fd("absent")):
        with pytest.raises(KernelError, match="'absent'"):
            enter()
    assert here() == home


@throw_away_host
def test_process_dies_where_it_cannot_come_back() -> None:
    netns.create("niso-api")
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        place = netns.inside("niso-api")
        place.__enter__()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and _is_namespace(fd):
                os.close(fd)
        place.__exit__()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def _is_namespace(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("net:")
    except OSError:
        return False


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../etc/x", "a\0b"])
@throw_away_host
def test_name_that_cannot_be_is_refused(name: str) -> None:
    for use in (netns.create, netns.delete, netns.exists, netns.open_fd):
        with pytest.raises(KernelError, match="is not a valid name"):
            use(name)
    assert not os.path.exists("/run/netns")


class Interrupted:
    """A function that is interrupted once, by Ctrl-C, right after it has done what it does."""

    def __init__(self, real: Callable[..., object]) -> None:
        self._real, self._once = real, True

    def __call__(self, *args: object) -> object:
        done = self._real(*args)
        if self._once:
            self._once = False
            raise KeyboardInterrupt
        return done


@throw_away_host
def test_an_interrupt_on_the_way_in_or_out_leaves_the_caller_where_it_was() -> None:
    netns.create("niso-api")
    home = here()
    for name, enter in (
        ("unshare", netns.unnamed),
        ("setns", lambda: netns.inside("niso-api")),
        ("close", netns.unnamed),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, Interrupted(getattr(os, name)))
            with pytest.raises(KeyboardInterrupt), enter():
                pass
        assert here() == home, name
    with pytest.raises(KeyboardInterrupt), netns.inside("niso-api"):
        assert here() != home
        os.setns = Interrupted(os.setns)  # on the way out
    assert here() == home


@throw_away_host
def test_an_interrupted_create_leaves_no_name() -> None:
    for step in ("bind", "share"):
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(netns, step)
            name_it = Interrupted(real)
            # the folder is a mount before, which is no part of what is undone
            patch.setattr(
                netns,
                step,
                lambda *args, name_it=name_it, real=real: (
                    name_it if "niso-api" in str(args) or not args else real
                )(*args),
            )
            with pytest.raises(KeyboardInterrupt):
                netns.create("niso-api", alias=ALIAS)
        assert netns.names() == []
        assert os.listdir("/run/netns") == []
    netns.create("niso-api", alias=ALIAS)
