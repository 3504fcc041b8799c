"""niso.kernel.proc_sys against the files themselves, seen from another process."""

from __future__ import annotations

import errno
import os

import pytest
from kernel_world import sh, throw_away_host

from niso.base.errors import KernelError
from niso.kernel import netns, proc_sys


@pytest.mark.parametrize(
    ("fsopen", "walks"), [(proc_sys._FSOPEN, 64), (proc_sys._FSOPEN, 1), (9999, 1)]
)
@throw_away_host
def test_written_value_is_that_namespaces_only(fsopen: int, walks: int) -> None:
    """By a proc file system of our own, by one after the other, and where the kernel gives none."""
    proc_sys._FSOPEN, proc_sys._MOST_WALKS = fsopen, walks
    proc_sys._FEW = -1  # as on a host with many namespaces
    netns.create("niso-api")
    before = sh("cat /proc/sys/net/ipv4/ip_forward")
    with netns.inside("niso-api"):
        proc_sys.write("net/ipv4/ip_forward", "1")
        assert proc_sys.read("net/ipv4/ip_forward") == "1"
        proc_sys.write("net/ipv4/ip_local_port_range", "30000 40000")
    assert (
        sh("cat /proc/sys/net/ipv4/ip_forward")
        == before
        == f"{proc_sys.read('net/ipv4/ip_forward')}\n"
    )
    assert sh("ip netns exec niso-api cat /proc/sys/net/ipv4/ip_forward") == "1\n"
    assert (
        sh("ip netns exec niso-api cat /proc/sys/net/ipv4/ip_local_port_range") == "30000\t40000\n"
    )
    own = os.fstat(proc_sys._top).st_dev != os.stat("/proc/sys").st_dev
    assert own == (fsopen != 9999)


@throw_away_host
def test_read_only_sysctls_of_networks_stay_so_and_read_only_others_do_not_matter() -> None:
    proc_sys._FEW = -1
    netns.create("niso-api")
    sh("mount --bind /proc/sys /proc/sys")
    sh("mount --bind /proc/sys/net /proc/sys/net")
    sh("mount -o remount,bind,ro /proc/sys")  # as in a lab
    proc_sys.write("net/ipv4/ip_forward", "1")
    assert os.fstat(proc_sys._top).st_dev != os.stat("/proc/sys").st_dev
    sh("mount -o remount,bind,ro /proc/sys/net")
    proc_sys._top = -1
    proc_sys._folders.clear()
    with pytest.raises(KernelError, match="read-only") as caught:
        proc_sys.write("net/ipv4/ip_forward", "0")
    assert caught.value.errno == errno.EROFS
    proc_sys.write("net/ipv4/ip_forward", "1")  # as it is already


@throw_away_host
def test_odd_missing_and_refused_names_and_values() -> None:
    sh("ip link add a.b.c type bridge")
    proc_sys.write("net/ipv4/conf/a.b.c/route_localnet", "1")
    assert sh("cat /proc/sys/net/ipv4/conf/a.b.c/route_localnet") == "1\n"
    assert proc_sys.read("net/ipv4/conf/a.b.c/route_localnet") == "1"
    assert proc_sys.read("net/ipv4/conf/absent/forwarding") is None
    assert proc_sys.read("net/ipv4/ip_forward/below") is None
    with pytest.raises(KernelError, match="net/ipv4/conf/absent/forwarding to '1': no such file"):
        proc_sys.write("net/ipv4/conf/absent/forwarding", "1")
    value = "net/ipv4/ip_unprivileged_port_start to '70000'"
    with pytest.raises(KernelError, match=value) as caught:
        proc_sys.write("net/ipv4/ip_unprivileged_port_start", "70000")
    assert caught.value.errno == errno.EINVAL
    for name in (
        *("kernel/hostname", "/net/ipv4/ip_forward"),
        *("net/../kernel/hostname", "net.ipv4.ip_forward"),
    ):
        with pytest.raises(KernelError, match="not a sysctl of a network namespace"):
            proc_sys.read(name)
        with pytest.raises(KernelError, match="not a sysctl of a network namespace"):
            proc_sys.write(name, "1")


@throw_away_host
def test_read_only_proc_is_not_gone_around() -> None:
    sh("mount --bind /proc/sys /proc/sys")
    sh("mount -o remount,bind,ro /proc/sys")
    assert proc_sys.read("net/ipv4/ip_forward") == "0"
    with pytest.raises(KernelError, match="read-only file system"):
        proc_sys.write("net/ipv4/ip_forward", "1")
