"""Return the paths of niso's files.

Most of these paths are in the state folder or the run folder. The environment variables
``NISO_STATE_DIR`` and ``NISO_RUN_DIR`` can set these two folders.
"""

from __future__ import annotations

import os
import sys

import niso

NETNS_DIR = "/run/netns"
LAB_MARK = "/run/niso-lab"
STATE_DIR, RUN_DIR = "/var/lib/niso", "/run/niso"
"""The locations of the two folders if no environment variable sets them."""
POLICY_DIR = "/etc/niso/policies"
is_command = False
"""Whether this process is a niso command. In a program that uses niso as a library, it is False."""
command_line: list[str] = []
"""The arguments of the niso command that this process runs. In other programs, it is empty."""


def python_prefix() -> str:
    """Return the folder in which this Python is installed, such as /usr or a virtual environment.

    `sys.prefix` would not name the virtual environment, because niso's scripts do not load the
    module site.
    """
    return os.path.dirname(os.path.dirname(sys.executable))


def state_dir() -> str:
    """Return the folder of persistent state (``NISO_STATE_DIR``), mode 0700."""
    other = os.environ.get("NISO_STATE_DIR")
    return os.path.abspath(other) if other else STATE_DIR


def run_dir() -> str:
    """Return the folder of volatile state (``NISO_RUN_DIR``), which a reboot deletes."""
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
    """Return the folder with the copies of a service's package, one subfolder for each version."""
    return f"{packages_dir()}/{service}"


def contents_file(service: str) -> str:
    """Return the file in which niso stores the digests of the files in a service's package."""
    return f"{state_dir()}/contents/{service}"


LOG_NAME = "service.log"
"""The name of the newest log file in `log_dir`."""


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


def health_asked() -> str:
    """Return the file whose modification time says when a command last requested health checks."""
    return f"{run_dir()}/health.asked"


def hosts_root() -> str:
    """Return the folder of hosts files. It has a subfolder for each ordered list of networks."""
    return f"{run_dir()}/hosts"


def lock_dir() -> str:
    return f"{run_dir()}/locks"


def netns_path(service: str) -> str:
    return f"{NETNS_DIR}/niso-{service}"


def cgroup(state_id: str, service: str) -> str:
    """Return the path of a service's cgroup below the root of the hierarchy (cgroups(7))."""
    return f"/niso-{state_id}/{service}"


def in_lab() -> bool:
    """Return whether this process runs in a ``niso lab``: NISO_LAB is 1 and `LAB_MARK` exists."""
    return os.environ.get("NISO_LAB") == "1" and os.path.exists(LAB_MARK)


def in_user_namespace() -> bool:
    """Return whether this process is in a user namespace other than the machine's own."""
    return os.stat("/proc/self/ns/user").st_ino != _MACHINES_OWN


_MACHINES_OWN = 0xEFFFFFFD
"""Inode of the machine's user namespace (PROC_USER_INIT_INO, linux/proc_ns.h)."""


def boot_id() -> str:
    """Return the kernel's random id of the current boot (random(4)). Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def shown(path: str) -> str:
    """Return a path for a message, shortened in the middle if it has more than 200 characters."""
    return path if len(path) <= 200 else f"{path[:120]} ... {path[-75:]}"


# --- the version of this installation -------------------------------------------------------------


def version() -> str:
    """Return niso's version with its commit, if known: ``0.1.0+1234567890ab``.

    Packages that ``./dev`` builds have a file with the commit. In a git checkout, git has the
    commit. Uncommitted changes are not detected.
    """
    module = os.path.dirname(__file__)
    root = os.path.realpath(os.path.join(module, "..", "..", ".."))
    commit = _line(os.path.join(module, "..", "commit"))
    if not commit and os.path.isdir(os.path.join(root, "src", "niso")):
        commit = _commit(root)
    return f"{niso.__version__}+{commit[:12]}" if commit else niso.__version__


def _commit(root: str) -> str:
    """Return the commit that is checked out in a folder, or "" if the folder is not a git checkout.

    The files of git are read directly (gitrepository-layout(5)). git itself, when it is run by
    root, would refuse a repository of another user.
    """
    folder = os.path.join(root, ".git")
    if link := _line(folder):  # a worktree has a file
        folder = os.path.join(root, link.removeprefix("gitdir: "))
    head = _line(f"{folder}/HEAD")
    if head.startswith("ref: refs/") and ".." not in head:
        ref = head.removeprefix("ref: ")
        common = os.path.join(folder, _line(f"{folder}/commondir") or ".")
        head = _line(f"{folder}/{ref}") or _line(f"{common}/{ref}") or _packed(common, ref)
    is_commit = len(head) >= 40 and set(head) <= set("0123456789abcdef")
    return head if is_commit else ""


def _packed(folder: str, ref: str) -> str:
    try:
        with open(f"{folder}/packed-refs", encoding="utf-8", errors="replace") as lines:
            return next(
                (line[:-1].partition(" ")[0] for line in lines if line[40:-1].strip() == ref), ""
            )
    except OSError:
        return ""


def _line(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.readline(4096).rstrip("\n")
    except OSError:
        return ""
