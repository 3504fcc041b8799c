"""Compute the OCI configuration of a service: process, capabilities, mounts and namespaces.

The configuration depends on the service's `ProcessSpec` and the properties of the machine (OCI
runtime-spec 1.0.2, config.md). `niso.runtime.cgroups` computes its resource limits.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.plan.specs import UNLIMITED, ProcessSpec
from niso.runtime import cgroups
from niso.runtime.crun import APP, INIT, cgroup_of, path_env
from niso.runtime.root import TMPFS

if TYPE_CHECKING:
    from typing import Any


THE_MACHINE = {
    "SYS_ADMIN": "it can mount file systems, run programs as the machine's root through cgroups, "
    "and write the hosts files of other services",
    "SYS_MODULE": "it can load kernel modules",
    "SYS_RAWIO": "it can access I/O ports of the hardware",
    "DAC_READ_SEARCH": "it can read every file on the machine's file systems",
    "SYS_PTRACE": "it can take over the commands of niso exec and of health checks, "
    "which start as the machine's root",
    "SYS_RESOURCE": "it can keep the kernel from ending it when memory runs out, "
    "and use the space that file systems reserve",
    "SYS_TIME": "it can set the machine's clock",
    "SYSLOG": "it can read the kernel's log and delete it",
    "SYS_NICE": "it can take the CPU time of all other programs",
    "MKNOD": "it can make device nodes in its volumes, which other programs can open there",
    "LINUX_IMMUTABLE": "it can make files in its volumes immutable, also for root",
}
"""Capabilities whose effect namespaces do not limit to the service, and what they allow."""
HOST_NETWORK = {
    "NET_ADMIN": "it can change the machine's network",
    "NET_RAW": "it can read and forge the machine's packets",
}
"""The same for further capabilities of a service in the host's network namespace."""
LINKED = {
    "NET_ADMIN": "it can make and delete links of the host and of other services, "
    "and so reach any network past all rules",
}
"""The same for further capabilities of a service with a veth pair to the host.

The reason is IFLA_TARGET_NETNSID (linux/if_link.h).
"""

SHELL_TERM = "xterm"
"""Value of TERM for a command on a terminal, if the caller's is unset."""

_ANY = (UNLIMITED, UNLIMITED)
RLIMITS = {
    **dict.fromkeys(("as", "cpu", "data", "fsize", "locks", "nproc", "rss", "rttime"), _ANY),
    "core": (0, 0),
    "memlock": (8 << 20, 8 << 20),
    "msgqueue": (819_200, 819_200),
    "nice": (0, 0),
    # the soft limit is safe for select(2), which cannot use descriptors above 1023
    "nofile": (1024, 1_048_576),
    "rtprio": (0, 0),
    "sigpending": (65_536, 65_536),
    "stack": (8 << 20, UNLIMITED),
}
"""The soft and hard resource limits (setrlimit(2)) of a service whose manifest does not set them.

They are those of a systemd unit, apart from core, and from nproc, which counts all processes of a
uid: isolation.resources.pids_limit counts those of the service.
"""

# As in Podman (pkg/specgen/generate/config_linux.go): files that reveal properties of the machine,
# or change it.
_MASKED = """
/proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi
/proc/timer_list /proc/timer_stats /sys/dev/block /sys/devices/virtual/powercap /sys/firmware
/sys/fs/selinux
"""
_READ_ONLY = "/proc/asound /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"
_RULE = ("type", "major", "minor", "access")
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
"""Device numbers of null, zero, full, random, urandom, tty and ptmx (Linux' devices.txt)."""


class OciHost(NamedTuple):
    """The properties of the machine on which a service's OCI configuration depends."""

    init: str
    """The path of catatonit in the mount namespace in which crun creates the container."""
    limits_max: Mapping[str, int]
    """The largest resource limits that the caller may set, by their names; others are free."""
    seccomp: dict[str, Any]
    """The seccomp profile of all services (seccomp.json)."""
    folders: Sequence[str] = ()
    """Folders of the host that the service sees at the same path, read-only."""
    controllers: Container[str] = cgroups.CONTROLLERS
    """The cgroup controllers that can limit the service."""
    host: str = ""
    """A folder that contains ``folders`` while the container is created, each below its own
    path.
    """
    secrets: str = ""
    """A folder that contains the secrets while the container is created; "" without secrets."""
    devices: Sequence[dict[str, Any]] = ()
    """The devices of the service (config-linux.md, Devices), each also with its ``access``."""
    resets: Collection[str] = ("nice", "oom")
    """Which of its own values (nice value, OOM score) the caller may reset. crun inherits them."""


def process(spec: ProcessSpec, args: list[str], machine: OciHost) -> dict[str, Any]:
    """Return the OCI process object (config.md, Process) that runs ``args`` like the service. `niso
    exec` and health checks use it too, so that no process inherits the limits of a shell.
    """
    environment = {
        "PATH": path_env(spec.environment),
        "HOME": spec.home,
        "USER": spec.user_name,
        "HOSTNAME": spec.hostname,
    }
    environment.update(spec.environment)
    capabilities = [f"CAP_{name}" for name in spec.capabilities]
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    most = machine.limits_max
    limits = {
        name: [min(number, most.get(name, UNLIMITED)) for number in both]
        for name, both in (RLIMITS | dict(spec.rlimits)).items()
    }
    reset: dict[str, Any] = {"oomScoreAdj": 0} if "oom" in machine.resets else {}
    if "nice" in machine.resets:
        reset["scheduler"] = {"policy": "SCHED_OTHER", "nice": 0}
    user = {"uid": spec.uid, "gid": spec.gid, "umask": 0o022}
    return {
        "terminal": False,
        "user": {**user, "additionalGids": list(spec.groups)},
        "args": args,
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": spec.working_dir,
        "capabilities": {name: capabilities for name in sets},
        "rlimits": [
            {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}
            for name, (soft, hard) in sorted(limits.items())
        ],
        "noNewPrivileges": True,
        **reset,
    }


def config(
    spec: ProcessSpec,
    root: str,
    hosts_at: str,
    machine: OciHost,
    volumes: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the OCI configuration of a service, the content of config.json.

    ``root`` is the path on the host where the service's root is mounted. ``hosts_at`` is the mount
    point, inside the service, of the folder with /etc/hosts. ``volumes`` are the mount objects of
    volumes, which are mounted last.
    """
    device = {"allow": True, "type": "c", "access": "rw"}
    limits = cgroups.limits(spec).items()
    switches = ["restrict_suid_sgid"] if spec.restrict_suid_sgid else []
    return {
        "ociVersion": "1.0.2",
        "process": process(spec, [INIT, "--", *spec.argv], machine),
        "root": {"path": root, "readonly": spec.read_only},
        "hostname": spec.hostname,
        "mounts": [*_mounts(spec, hosts_at, machine), *volumes],
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "ipc"},
                {"type": "uts"},
                *([{"type": "network", "path": spec.netns}] if spec.netns else []),
            ],
            "cgroupsPath": cgroup_of(spec),
            "devices": [
                {key: value for key, value in one.items() if key != "access"}
                for one in machine.devices
            ],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *({**device, "major": major, "minor": minor} for major, minor in _DEVICES),
                    {**device, "major": 136},
                    *(
                        {"allow": True, **{key: one[key] for key in _RULE}}
                        for one in machine.devices
                    ),
                ],
                **{name: value for name, value in limits if name in machine.controllers},
            },
            "maskedPaths": _MASKED.split(),
            "readonlyPaths": _READ_ONLY.split(),
            "seccomp": select_seccomp(machine.seccomp, [*spec.capabilities, *switches]),
        },
    }


def select_seccomp(profile: dict[str, Any], have: Collection[str]) -> dict[str, Any]:
    """Reduce a seccomp profile to the rules that apply to a service.

    ``have`` are the service's capabilities and its [isolation] switches that are on. A rule with
    the key ``with`` applies only if ``have`` contains the named capability or switch. A rule with
    the key ``without`` applies only if ``have`` does not contain it.
    """
    rules = [
        {key: value for key, value in rule.items() if key not in ("with", "without", "why")}
        for rule in profile["syscalls"]
        if ("with" not in rule or rule["with"] in have)
        and ("without" not in rule or rule["without"] not in have)
    ]
    defaults = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet")}
    return {**defaults, "architectures": [], "syscalls": rules}


def _mounts(spec: ProcessSpec, hosts_at: str, machine: OciHost) -> list[dict[str, Any]]:
    owner = [f"uid={spec.uid}", f"gid={spec.gid}"]
    shm, tmp = (
        [f"size={size}"] if size is not None else [] for size in (spec.shm_size, spec.tmp_size)
    )
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    mounts = [
        _mount("proc", "/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("sysfs", "/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("tmpfs", "/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("devpts", "/dev/pts", "devpts", *pts),
        _mount("tmpfs", "/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", *shm),  # noqa: S108
        _mount("mqueue", "/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount(machine.init, INIT, "bind", "bind", "ro", "nosuid", "nodev"),
        # Before mounts that can be below it; the service's user owns /run.
        _mount("tmpfs", TMPFS[1], "tmpfs", "nosuid", "nodev", "mode=755", *owner, *tmp),
        _mount("tmpfs", TMPFS[0], "tmpfs", "nosuid", "nodev", "mode=1777", *tmp),
        _mount("tmpfs", TMPFS[2], "tmpfs", "nosuid", "nodev", "mode=1777", *tmp),
        _mount(spec.package, APP, "bind", "rbind", "rro", "nosuid", "nodev"),
    ]
    flags = ("bind", "ro", "nosuid", "nodev", "noexec")
    if machine.secrets:
        mounts.append(_mount(machine.secrets, f"{TMPFS[1]}/secrets", "bind", *flags))
    if spec.hosts_folder:
        mounts.append(_mount(spec.hosts_folder, hosts_at, "bind", *flags))
    mounts += [
        _mount(machine.host + path, path, "bind", "rbind", "rro", "nosuid", "nodev")
        for path in machine.folders
    ]
    return mounts


def _mount(source: str, destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"source": source, "destination": destination, "type": kind, "options": list(options)}
