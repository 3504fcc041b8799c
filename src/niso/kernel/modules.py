"""Kernel modules that the kernel does not load by itself when they are asked for."""

from __future__ import annotations

import os

from niso.base.errors import KernelError
from niso.kernel import sysctl

BRIDGE_NETFILTER = "net/bridge"
_GLOBAL = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
_SYS = "/proc/sys"
_MODPROBE = ("/usr/sbin/modprobe", "/sbin/modprobe")


def load_bridge_netfilter() -> None:
    """Load br_netfilter where it is missing, for bridges that ask for it by themselves (nf_call_iptables).

    It comes with its global sysctls at 1, which would send the frames of all other bridges through everybody's rules: they
    are set to 0, which is what not having it meant. Raises KernelError where there is no such module.
    """
    if os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}"):
        return
    program = next((path for path in _MODPROBE if os.path.exists(path)), None)
    if program is not None:
        pid = os.posix_spawn(program, ["modprobe", "br_netfilter"], {})
        os.waitpid(pid, 0)
    if not os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}"):
        raise KernelError(
            "the kernel module br_netfilter cannot be loaded: services of one network would get no answer from each other's"
            " published ports",
            "install the kernel's full set of modules, or publish no ports",
        )
    for name in _GLOBAL:
        sysctl.write(f"{BRIDGE_NETFILTER}/{name}", "0")
