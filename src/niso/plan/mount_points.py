"""Where nothing can be mounted inside a service."""

from __future__ import annotations

TAKEN = ("/proc", "/sys", "/dev", "/app", "/etc/niso-hosts")
"""Neither these nor anything below them can be a mount point: they are niso's."""
TAKEN_FILES = (
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
)
HIDING = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/var")
"""Not these themselves: the service's root, or what niso has put there, would be hidden."""


def taken(path: str) -> str | None:
    """Why nothing can be mounted at this path inside the service, or None."""
    for each in TAKEN:
        if path == each or path.startswith(f"{each}/"):
            return f"{each} is niso's"
    for each in TAKEN_FILES:
        if path == each or path.startswith(f"{each}/"):
            return f"{each} is written by niso"
    return f"it would hide the service's {path}" if path in HIDING else None
