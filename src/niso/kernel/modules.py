"""Load kernel modules that the kernel does not load on demand."""

from __future__ import annotations

import os

from niso.base.errors import KernelError
from niso.kernel import sysctl

BRIDGE_NETFILTER = "net/bridge"
_GLOBAL = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
_SYS = "/proc/sys"
_MODPROBE = ("/usr/sbin/modprobe", "/sbin/modprobe")


def load_bridge_netfilter() -> None:
    """Load br_netfilter if it is missing; bridges with nf_call_iptables need it.

    Its global sysctls start at 1, which would pass the frames of all other bridges through the
    rules of all tables. They are set to 0, so these bridges behave as without the module. Raises
    KernelError if the module does not exist.
    """
    if os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}"):
        return
    program = next((path for path in _MODPROBE if os.path.exists(path)), None)
    if program is not None:
        pid = os.posix_spawn(program, ["modprobe", "br_netfilter"], {})
        os.waitpid(pid, 0)
    if not os.path.isdir(f"{_SYS}/{BRIDGE_NETFILTER}"):
        raise KernelError(
            "cannot load the kernel module br_netfilter: services of one network would get no"
            " reply from each other's published ports",
            "install the full set of kernel modules, or publish no ports",
        )
    for name in _GLOBAL:
        sysctl.write(f"{BRIDGE_NETFILTER}/{name}", "0")
