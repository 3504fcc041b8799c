"""Return the paths of niso's files.

Most of them are in two folders, which environment variables can set.
"""

from __future__ import annotations

import os

NETNS_DIR = "/run/netns"
LAB_MARK = "/run/niso-lab"
STATE_DIR, RUN_DIR = "/var/lib/niso", "/run/niso"
"""The locations of the two folders if no environment variable sets them."""
POLICY_DIR = "/etc/niso/policies"
is_command = False
"""Whether this process is a niso command, not a program that uses niso as a library."""


def state_dir() -> str:
    """Return the folder of persistent state (``NISO_STATE_DIR``), mode 0700."""
    other = os.environ.get("NISO_STATE_DIR")
    return os.path.abspath(other) if other else STATE_DIR


def run_dir() -> str:
    """Return the folder of volatile state (``NISO_RUN_DIR``), which a reboot clears."""
    other = os.environ.get("NISO_RUN_DIR")
    return os.path.abspath(other) if other else RUN_DIR


def policy_dir() -> str:
    """Return the folder of the administrator's policies for attachments (``NISO_POLICY_DIR``)."""
    return os.path.abspath(os.environ.get("NISO_POLICY_DIR") or POLICY_DIR)


def database() -> str:
    return f"{state_dir()}/state.db"


def cluster_dir() -> str:
    """Return the folder with cluster.toml and this host's certificates for the cluster."""
    return f"{state_dir()}/cluster"


def wireguard_key() -> str:
    """Return the file of this host's private WireGuard key, which only root can read."""
    return f"{cluster_dir()}/wireguard.key"


def packages_dir() -> str:
    return f"{state_dir()}/packages"


def package_dir(service: str) -> str:
    """Return the folder of a service's package copies, with one subfolder for each different
    content.
    """
    return f"{packages_dir()}/{service}"


def contents_file(service: str) -> str:
    """Return the file in which niso stores the digests of the files in a service's package."""
    return f"{state_dir()}/contents/{service}"


def log_dir(service: str) -> str:
    return f"{state_dir()}/logs/{service}"


def service_dir(service: str) -> str:
    """Return the folder with the OCI bundle, pid files and state of an active service."""
    return f"{run_dir()}/services/{service}"


def volume_dir(service: str) -> str:
    """Return the folder of a service's named volumes, which outlive the service."""
    return f"{state_dir()}/volumes/{service}"


def health_file(service: str) -> str:
    """Return the file with the last health check result of a running service."""
    return f"{run_dir()}/health/{service}.json"


def hosts_root() -> str:
    """Return the folder of hosts files, with one subfolder for each ordered list of networks."""
    return f"{run_dir()}/hosts"


def lock_dir() -> str:
    return f"{run_dir()}/locks"


def netns_path(service: str) -> str:
    return f"{NETNS_DIR}/niso-{service}"


def in_lab() -> bool:
    """Return whether this process runs in a ``niso lab``: NISO_LAB is 1 and `LAB_MARK` exists."""
    return os.environ.get("NISO_LAB") == "1" and os.path.exists(LAB_MARK)


def boot_id() -> str:
    """Return the kernel's id of the current boot (random(4)). Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def shown(path: str) -> str:
    """Return a path for a message, shortened in the middle if it has more than 200 characters."""
    return path if len(path) <= 200 else f"{path[:120]} ... {path[-75:]}"
