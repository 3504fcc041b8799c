"""Where niso keeps things. Two folders can be moved by the environment; all else lies below them."""

from __future__ import annotations

import os

NETNS_DIR = "/run/netns"
LAB_MARK = "/run/niso-lab"
STATE_DIR, RUN_DIR = "/var/lib/niso", "/run/niso"
"""Where the two folders are that can be moved."""


def state_dir() -> str:
    """Durable state, 0700: state.db, packages/, logs/ (``NISO_STATE_DIR``)."""
    return os.path.abspath(os.environ.get("NISO_STATE_DIR") or STATE_DIR)


def run_dir() -> str:
    """Volatile state, gone with a reboot: locks/, hosts/, services/ (``NISO_RUN_DIR``)."""
    return os.path.abspath(os.environ.get("NISO_RUN_DIR") or RUN_DIR)


def database() -> str:
    return os.path.join(state_dir(), "state.db")


def package_dir(service: str) -> str:
    """Copies of a service's package; one folder per content below it."""
    return os.path.join(state_dir(), "packages", service)


def log_dir(service: str) -> str:
    return os.path.join(state_dir(), "logs", service)


def service_dir(service: str) -> str:
    """One active service's bundle, pid files and spec."""
    return os.path.join(run_dir(), "services", service)


def volume_dir(service: str) -> str:
    """The named volumes of a service, which outlive it."""
    return os.path.join(state_dir(), "volumes", service)


def health_file(service: str) -> str:
    """What the last probe of a running service said."""
    return os.path.join(run_dir(), "health", f"{service}.json")


def hosts_root() -> str:
    """One folder per ordered list of networks, each with one file ``hosts``."""
    return os.path.join(run_dir(), "hosts")


def hosts_file(folder: str) -> str:
    """Return the path of the hosts file in ``folder`` of `hosts_root`."""
    return os.path.join(hosts_root(), folder, "hosts")


def lock_dir() -> str:
    return os.path.join(run_dir(), "locks")


def netns_path(service: str) -> str:
    return os.path.join(NETNS_DIR, f"niso-{service}")


def in_lab() -> bool:
    """True in a throw-away host made by ``niso lab``: both marks, so that a stray variable is not enough."""
    return os.environ.get("NISO_LAB") == "1" and os.path.exists(LAB_MARK)
