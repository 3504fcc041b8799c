"""Define the paths inside a service where nothing can be mounted."""

from __future__ import annotations

TAKEN = ("/proc", "/sys", "/dev", "/app", "/etc/niso-hosts")
"""niso's own paths: neither these nor paths below them can be a mount point."""
TAKEN_FILES = (
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
)
HIDING = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/var")
"""These paths cannot be mount points: a mount would hide the root, or niso's own mounts."""


def taken(path: str) -> str | None:
    """Return why nothing can be mounted at a path inside the service; None if it can."""
    for own in TAKEN:
        if path == own or path.startswith(f"{own}/"):
            return f"{own} is niso's"
    for file in TAKEN_FILES:
        if path == file or path.startswith(f"{file}/"):
            return f"{file} is written by niso"
    return f"it would hide the service's {path}" if path in HIDING else None
