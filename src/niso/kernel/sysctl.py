"""Sysctls of the network namespace that the caller is in, by /proc/sys (proc_sys_net(5), ip-sysctl).

Parts of a name are parted by slashes, so that an interface may have dots in its name: "net/ipv4/conf/eth0.7/forwarding".
"""

from __future__ import annotations

from niso import failpoint
from niso.errors import KernelError
from niso.kernel.netlink import refused


def read(name: str) -> str | None:
    """The value without its newline; None where this kernel, or this interface, does not have it. Raises KernelError."""
    try:
        with open(_path(name), encoding="ascii") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refused(f"read sysctl {name}", error.errno or 0) from error


def write(name: str, value: str) -> None:
    """Set it. Raises KernelError, also where there is no such sysctl."""
    what = f"set sysctl {name} to '{value}'"
    path = _path(name)
    try:
        failpoint.hit(what)
        # Unbuffered: the error of the one write(2) is the kernel's answer.
        with open(path, "wb", buffering=0) as file:
            file.write(value.encode())
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def _path(name: str) -> str:
    """Only below net/: all others are the whole machine's."""
    if not name.startswith("net/") or ".." in name.split("/"):
        raise KernelError(f"'{name}' is not a sysctl of a network namespace")
    return f"/proc/sys/{name}"
