"""Define the paths inside a service where nothing can be mounted."""

from __future__ import annotations

TAKEN = ("/proc", "/sys", "/dev", "/app", "/etc/niso-hosts")
"""niso's own: neither these nor anything below them can be a mount point."""
TAKEN_FILES = (
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
)
HIDING = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/var")
"""These cannot be mount points themselves: that would hide the root, or what niso has put there."""


def taken(path: str) -> str | None:
    """Return why nothing can be mounted at a path inside the service; None if it can."""
    for own in TAKEN:
        if path == own or path.startswith(f"{own}/"):
            return f"{own} is niso's"
    for file in TAKEN_FILES:
        if path == file or path.startswith(f"{file}/"):
            return f"{file} is written by niso"
    return f"it would hide the service's {path}" if path in HIDING else None
