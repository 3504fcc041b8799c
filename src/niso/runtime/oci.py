"""The OCI configuration of a service (OCI runtime-spec 1.0.2, config.md): a pure function of its spec."""

from __future__ import annotations

from collections.abc import Container, Sequence

from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec
from niso.runtime.root import TMPFS
from niso.runtime.spec import APP, path_env

if TYPE_CHECKING:
    from typing import Any

CONTROLLERS = {
    "memory": "isolation.resources.memory_max",
    "cpu": "isolation.resources.cpu_max",
    "pids": "isolation.resources.pids_limit",
}
"""The cgroup controllers of limits, and the keys that ask for them."""
_CPU_PERIOD_US = 100_000

THE_MACHINE = {
    "SYS_ADMIN": "it can mount, and by cgroups have the machine run programs as root; it can write the hosts files of others",
    "SYS_MODULE": "it can load kernel modules",
    "SYS_RAWIO": "it can use the hardware's ports",
    "DAC_READ_SEARCH": "it can read every file of the machine's file systems",
}
"""Capabilities that no namespace keeps within a service, and what they mean."""
HOST_NETWORK = {
    "NET_ADMIN": "it can change the machine's network",
    "NET_RAW": "it can read and forge the machine's packets",
}
"""The same in mode host."""

INIT = "/dev/niso-init"
"""PID 1 of the service: catatonit, mounted into its /dev."""
SHELL_TERM = "xterm"

NOFILE_SOFT, NOFILE_HARD = 65_536, 1_048_576
"""Open files: enough without a word in the manifest, few enough that a program which closes all of them at start is not slow."""

# As Podman's, pkg/specgen/generate/config_linux.go: what /proc and /sys tell about the machine, and what would change it.
_MASKED = (
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
_READ_ONLY = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
"""null, zero, full, random, urandom, tty, ptmx (Linux' devices.txt)."""


def cgroup(spec: ProcessSpec) -> str:
    """The service's cgroup, below the root of each hierarchy."""
    return f"/niso-{spec.state_id}/{spec.service}"


def process(
    spec: ProcessSpec, args: list[str], nofile_max: int, terminal: bool = False
) -> dict[str, Any]:
    """The ``process`` object for ``args`` run as the service: its user, environment, folder, capabilities and limits.

    ``nofile_max``: the most open files that the caller may grant.
    """
    environment = {
        "PATH": path_env(spec.environment),
        "HOME": spec.home,
        "USER": spec.user_name,
        "HOSTNAME": spec.hostname,
    }
    if terminal:
        environment["TERM"] = SHELL_TERM
    environment.update(spec.environment)
    capabilities = [f"CAP_{name}" for name in spec.capabilities]
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    return {
        "terminal": terminal,
        "user": {
            "uid": spec.uid,
            "gid": spec.gid,
            "umask": 0o022,
            "additionalGids": list(spec.groups),
        },
        "args": args,
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": spec.working_dir,
        "capabilities": {name: capabilities for name in sets},
        "rlimits": [
            {
                "type": "RLIMIT_NOFILE",
                "soft": min(NOFILE_SOFT, nofile_max),
                "hard": min(NOFILE_HARD, nofile_max),
            },
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "noNewPrivileges": True,
    }


def config(
    spec: ProcessSpec,
    root: str,
    init: str,
    hosts_at: str,
    host_folders: list[str],
    seccomp: dict[str, Any],
    nofile_max: int,
    volumes: Sequence[dict[str, Any]] = (),
    controllers: Container[str] = CONTROLLERS,
) -> dict[str, Any]:
    """The whole config.json.

    ``root`` is the assembled root's folder, ``init`` catatonit's path on the host, ``hosts_at`` where the hosts folder is shown,
    ``host_folders`` what of the host is shown read-only at the same path, ``seccomp`` the profile (seccomp.json),
    ``volumes`` mounts that come last, ``controllers`` those that the machine can hold the service's limits with.
    """
    return {
        "ociVersion": "1.0.2",
        "process": process(spec, [INIT, "--", *spec.argv], nofile_max),
        "root": {"path": root, "readonly": spec.read_only},
        "hostname": spec.hostname,
        "mounts": [*_mounts(spec, init, hosts_at, host_folders), *volumes],
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "ipc"},
                {"type": "uts"},
                *([{"type": "network", "path": spec.netns}] if spec.netns else []),
            ],
            "cgroupsPath": cgroup(spec),
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *(
                        {"allow": True, "type": "c", "major": a, "minor": b, "access": "rw"}
                        for a, b in _DEVICES
                    ),
                    {"allow": True, "type": "c", "major": 136, "access": "rw"},
                ],
                **{name: value for name, value in limits(spec).items() if name in controllers},
            },
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            "seccomp": select_seccomp(seccomp, spec.capabilities),
        },
    }


def limits(spec: ProcessSpec) -> dict[str, dict[str, int]]:
    """Controller (cgroups(7)): what linux.resources says of it. Only those that the service has a limit of."""
    found: dict[str, dict[str, int]] = {}
    if spec.memory_max is not None:
        # memory and swap together: swap on top would only make it slow before it is killed
        found["memory"] = {"limit": spec.memory_max, "swap": spec.memory_max}
    if spec.cpu_max is not None:
        found["cpu"] = {"quota": spec.cpu_max * _CPU_PERIOD_US // 100, "period": _CPU_PERIOD_US}
    if spec.pids_limit is not None:
        found["pids"] = {"limit": spec.pids_limit}
    return found


def select_seccomp(profile: dict[str, Any], capabilities: Sequence[str]) -> dict[str, Any]:
    """The profile for a service with these capabilities: rules marked ``with`` or ``without`` a capability are taken or left."""
    have = set(capabilities)
    rules = []
    for rule in profile["syscalls"]:
        if "with" in rule and rule["with"] not in have:
            continue
        if "without" in rule and rule["without"] in have:
            continue
        rules.append(
            {key: value for key, value in rule.items() if key not in ("with", "without", "why")}
        )
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [],
        "syscalls": rules,
    }


def _mounts(
    spec: ProcessSpec, init: str, hosts_at: str, host_folders: list[str]
) -> list[dict[str, Any]]:
    owner = [f"uid={spec.uid}", f"gid={spec.gid}"]
    mounts = [
        _mount("proc", "/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("sysfs", "/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("tmpfs", "/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "devpts",
            "/dev/pts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("tmpfs", "/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"),  # noqa: S108
        _mount("mqueue", "/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount(init, INIT, "bind", "bind", "ro", "nosuid", "nodev"),
        # Before the mounts that may lie below it: a service may own its /run.
        _mount("tmpfs", TMPFS[1], "tmpfs", "nosuid", "nodev", "mode=755", *owner),
        _mount("tmpfs", TMPFS[0], "tmpfs", "nosuid", "nodev", "mode=1777"),
        _mount("tmpfs", TMPFS[2], "tmpfs", "nosuid", "nodev", "mode=1777"),
        _mount(spec.package, APP, "bind", "rbind", "rro", "nosuid", "nodev"),
    ]
    if spec.hosts_folder:
        mounts.append(
            _mount(spec.hosts_folder, hosts_at, "bind", "bind", "ro", "nosuid", "nodev", "noexec")
        )
    mounts += [
        _mount(path, path, "bind", "rbind", "rro", "nosuid", "nodev") for path in host_folders
    ]
    return mounts


def _mount(source: str, destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"source": source, "destination": destination, "type": kind, "options": list(options)}
