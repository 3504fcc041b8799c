"""Declare all keys of manifest.toml in `KEYS`.

A declaration has the key's path, type, description, default, rule, and the field of
`niso.plan.specs.ServiceSpec` for its value. The types and defaults (`TABLES`), the checks
(`niso.manifest.validate`), the JSON Schema (`niso.manifest.json_schema`), the reference, the manual
page and the ServiceSpec (`spec`) are derived from these declarations. To add a key, add an entry
here, a field of the ServiceSpec, and the code that uses the field.

Conditions between several keys are in `niso.manifest.validate` and, for the schema, in
`niso.manifest.json_schema`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from niso.base import convert
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple, named_tuple
from niso.base.names import DEFAULT_NETWORK, family_of, ip_address
from niso.manifest import addresses_and_ports, policy, process_keys, values
from niso.manifest.values import join
from niso.plan import records, specs
from niso.plan.records import Audit, Limits, Policy, PortMapping
from niso.plan.specs import NetworkSpec, ProgramSpec, Published, ServiceSpec

if TYPE_CHECKING:
    from typing import Any


class Rule(NamedTuple):
    """A condition that a value, or each item of an array or table, must meet."""

    parse: Callable[[Any, str], Any]
    """A function (value, key path) that returns the parsed value. It raises InvalidInput if the
    value does not meet the condition."""
    schema: Mapping[str, Any] = {}
    """The same condition as a JSON Schema, as far as a schema can express it."""


ANY = Rule(lambda value, _: value)
"""The rule of a key that accepts every value of the right type."""


class Key(NamedTuple):
    path: str
    """The path of the key, such as service.stop_timeout. volumes.*.size is a key of each table in
    [volumes]."""
    type: Any
    """The type, in the form of `niso.base.convert`. If it is a string, the key is a table with this
    title."""
    default: Any = ...
    """The default value; Ellipsis if the key is required. A table has ``{}``, since its keys have
    their own defaults."""
    rule: Rule = ANY
    to: str = ""
    """The field of the NetworkSpec or ProgramSpec that the value goes to. ``limits.arp`` is a field
    of the record ``limits`` in it. If it is "", the function `spec` handles the value."""
    names: Rule = ANY
    """For a table with names that the user chooses: the rule for these names."""
    schema: Mapping[str, Any] = {}
    """Further conditions on the whole value, as a JSON Schema."""
    modes: tuple[str, ...] = ()
    """The network modes in which a key of [network] is allowed. Empty means all modes."""
    about: str = ""
    """The description of the key, for the JSON Schema and the reference."""

    def described(self, about: str) -> Key:
        return self._replace(about=about)

    @property
    def table(self) -> str:
        """Return the path of the table that this key is in, or "" for the top level of the file."""
        return self.path.removesuffix(".*").rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.removesuffix(".*").rpartition(".")[2]

    @property
    def is_table(self) -> bool:
        return isinstance(self.type, str)

    @property
    def has_any_names(self) -> bool:
        """Return whether this key is a table in which users choose the names, such as [volumes]."""
        return self.path.endswith(".*")


# --- rules ---------------------------------------------------------------------------------------


def _pattern(parse: Callable[[str, str], Any], pattern: str) -> Rule:
    return Rule(parse, {"pattern": pattern})


def _duration(low: float, high: float) -> Rule:
    return _pattern(lambda text, key: values.duration(text, key, low, high), _DURATION)


def _number(low: int, high: int, right: str, example: str, reason: str = "is out of range") -> Rule:
    def parse(number: int, key: str) -> int:
        if not low <= number <= high:
            raise values.wrong(key, number, reason, right, example)
        return number

    return Rule(parse, {"minimum": low, "maximum": high})


_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PORTS = rf"{_PORT}(?:-{_PORT})?"
_OCTET = r"(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_LABEL = r"^(?!(?:host|localhost|outside)$|ip6-)[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_DURATION = r"^(?:0|[1-9][0-9]{0,8})(?:ms|s|m|h)$"
_SIZE = r"^[1-9][0-9]{0,8}[KMG]$"
_PATH = r"^[^\u0000-\u001f\u007f]+$"
_NO_CLIMB = r"(?!(?:.*/)?\.\.(?:/|$))"
_ARGUMENT = r"^[^\u0000]*$"
_WORD = r"^[^\u0000]+$"
_MOUNT = (
    rf"^(?!(?:{'|'.join(specs.TAKEN + specs.TAKEN_FILES)})(?:/|$))"
    rf"(?!(?:{'|'.join(specs.HIDING[1:])})$)"
    r"(?:/(?!\.{1,2}(?:/|$))[^/\u0000-\u001f\u007f]+)+$"
)
_NETWORK = r"^(?!(?:default|none|host)$)[a-z][a-z0-9-]{0,62}$"
_IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
_ADDRESS = rf"{_OCTET}(?:\.{_OCTET}){{3}}|{_IPV6}"
_SUFFIX = rf"(?::{_PORT}(?:-{_PORT})?(?:/(?:tcp|udp|sctp))?|/(?:tcp|udp|sctp|icmp))?"
_PEERS = (
    # a service, a network, an IPv4 address or prefix, an IPv6 one in brackets
    r"(?:(?!(?:host|localhost)(?:[.:/]|$)|outside\.|ip6-)[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.niso\.local)?"
    r"|network:(?!(?:default|none|host)(?:[:/]|$))[a-z][a-z0-9-]{0,62}"
    rf"|{_OCTET}(?:\.{_OCTET}){{3}}(?:/[0-9]{{1,2}})?"
    rf"|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{{1,3}})?\]){_SUFFIX}"
    # an IPv6 address or prefix without brackets, and its suffix
    r"|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{1,3})?(?:/(?:tcp|udp|sctp|icmp))?"
)
_OUTSIDE = (  # a domain name of two labels or more, not below niso.local
    r"(?!(?:[a-z0-9-]+\.)*(?:niso\.local|localhost)(?:[:/]|$))"
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_PEER_FORMS = (
    "Each is a service, outside (every address that is not a service's nor the host's), "
    "network:NAME, an address or a prefix, optionally with :PORT or :PORT-PORT, and with /tcp, "
    "/udp, /sctp or /icmp."
)

_HOST_LABEL = _pattern(values.host_label, _LABEL)
_SERVICE_NAME = _pattern(values.service_name, _LABEL)
_NETWORK_NAME = _pattern(values.network_name, _NETWORK)
_TEXT = _pattern(values.argument, _ARGUMENT)
_TMPFS = _pattern(process_keys.tmpfs, _SIZE)
_RATE = _number(
    0, process_keys.MAX_RATE, f"0, for no limit, to {process_keys.MAX_RATE} a second", "5000"
)
_PEER_IN = _pattern(policy.parse_ingress, f"^(?:{_PEERS})$")
_PEER_OUT = _pattern(policy.parse_egress, f"^(?:{_PEERS})$")
_PACKAGE_VERSION = _pattern(values.version, r"^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,63}$")
_PACKAGE_ROOTFS = _pattern(values.rootfs, rf"^(?!/+$){_NO_CLIMB}{_PATH[1:]}")
_PACKAGE_OCI = _pattern(values.image_path, rf"^{_NO_CLIMB}{_PATH[1:]}")
_BINARY_ENTRYPOINT = _pattern(values.entrypoint, rf"^{_NO_CLIMB}(?!.*/$){_PATH[1:]}")
_BINARY_WORKING_DIR = _pattern(values.working_dir, rf"^/{_PATH[1:-2]}*$")
_ENVIRONMENT_NAME = _pattern(values.environment_name, r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")
_SERVICE_USER = _pattern(
    values.user,
    r"^(?:(?:0|[1-9][0-9]{0,9})(?::(?:0|[1-9][0-9]{0,9}))?|[A-Za-z_][A-Za-z0-9_.-]{0,31})$",
)
_CAPABILITIES = Rule(
    values.capability,
    {"enum": [*values.CAPABILITIES, *(f"CAP_{name}" for name in values.CAPABILITIES)]},
)
_RESOURCES_MEMORY_MAX = _pattern(process_keys.memory_max, _SIZE)
_RESOURCES_CPU_MAX = _pattern(process_keys.cpu_max, r"^[1-9][0-9]{0,6}%$")
_RESOURCES_PIDS_LIMIT = _number(
    process_keys.MIN_PIDS,
    process_keys.MAX_PIDS,
    f"{process_keys.MIN_PIDS}, for PID 1 and the program, to {process_keys.MAX_PIDS}",
    "4096",
)
_LIMIT = _pattern(process_keys.rlimit, process_keys.RLIMIT)
_LIMIT_NAME = Rule(process_keys.rlimit_name, {"enum": [*process_keys.RLIMITS]})
_SYSCTL = _pattern(process_keys.sysctl, process_keys.SYSCTL_VALUE)
_SYSCTL_NAME = _pattern(process_keys.sysctl_name, process_keys.SYSCTL)
_DEVICE = _pattern(process_keys.device, process_keys.DEVICE)
_HEALTHCHECK_TCP = _number(1, 65535, "1 to 65535", "8080", "is not a valid port")
_HEALTHCHECK_HTTP = _pattern(
    process_keys.url,
    r"^http://(?:localhost|127\.[0-9.]+|\[[0-9a-fA-F:.]+\]|[a-z][a-z0-9.-]*)"
    r"(?::[0-9]{1,5})?(?:[/?#].*)?$",
)
_HEALTHCHECK_RETRIES = _number(1, process_keys.MAX_RETRIES, f"1 to {process_keys.MAX_RETRIES}", "3")
_VOLUMES_NAME = _pattern(process_keys.volume_name, "^[A-Za-z][A-Za-z0-9_-]{0,62}$")
_VOLUMES_MOUNT = _pattern(process_keys.mount, _MOUNT)
_VOLUMES_HOST = _pattern(process_keys.host, rf"^(?:/|\.$|\./){_PATH[1:-2]}*$")
_VOLUMES_MODE = Rule(lambda text, _: text == "ro")
_VOLUMES_SIZE = _pattern(process_keys.size, _SIZE)
_SECRETS_NAME = _pattern(process_keys.secret_name, "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}$")
_PUBLISHED = _pattern(
    addresses_and_ports.parse_port,
    rf"^(?:{_OCTET}(?:\.{_OCTET}){{3}}:(?:{_PORTS})?:"
    rf"|(?:\[[0-9A-Fa-f:.]{{2,45}}\]:)?(?:(?:{_PORTS})?:)?)"
    rf"{_PORTS}(?:/(?:tcp|udp|sctp))?$",
)
_IP = _pattern(
    addresses_and_ports.static_address,
    # not 0/8, 127/8, 169.254/16, nor 224/4 and above; for IPv6 only the characters
    rf"^(?:(?!0\.|127\.|169\.254\.|22[4-9]\.|2[3-5][0-9]\.){_OCTET}(?:\.{_OCTET}){{3}}"
    rf"|{_IPV6})$",
)
_EXTRA_HOSTS = _pattern(addresses_and_ports.extra_address, f"^(?:{_ADDRESS}|host-gateway)$")
_EXTRA_HOSTS_NAME = _pattern(
    addresses_and_ports.extra_host,
    r"^(?!(?:localhost|host\.niso\.local)$|ip6-)[a-z0-9_-]{1,63}"
    r"(?:\.[a-z0-9_-]{1,63})*$",
)
_DNS = _pattern(addresses_and_ports.server_address, f"^(?:{_ADDRESS})$")
_DNS_SEARCH = _pattern(
    addresses_and_ports.domain, r"^[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*$"
)
_BANDWIDTH = _pattern(process_keys.rate, _SIZE)
_BANDWIDTH_NAME = Rule(process_keys.way, {"enum": [*process_keys.WAYS]})
_POLICY_EGRESS_ALLOW = _pattern(policy.parse_egress_allow, f"^(?:{_PEERS}|{_OUTSIDE}{_SUFFIX})$")
_POLICY_AUDIT_UNTIL = _pattern(policy.audit_end, rf"^(?:{policy.DATE}|{policy.NO_END})$")


# --- keys ----------------------------------------------------------------------------------------


_SERVICE_REPLICAS = _number(1, process_keys.MAX_REPLICAS, f"1 to {process_keys.MAX_REPLICAS}", "3")
_DEPLOY_SURGE = Rule(
    # the type of the key excludes other strings
    lambda value, key: _SERVICE_REPLICAS.parse(value, key) if isinstance(value, int) else 0,
    _SERVICE_REPLICAS.schema,
)
_CALENDAR = _pattern(process_keys.calendar, process_keys.CALENDAR)
_SIGNAL = _pattern(process_keys.signal, r"^(?:(?:SIG)?[A-Z][A-Z0-9]*|[1-9][0-9]?)$")

KEYS = (
    Key("package", "Package").described("Name and version of the service."),
    Key("package.name", str, rule=_SERVICE_NAME, to="name").described(
        f"Name of the service: {values.NAME_RIGHT}. host, localhost, outside and ip6-* are"
        " reserved."
    ),
    Key("package.version", str, rule=_PACKAGE_VERSION).described("Version of the package."),
    Key("package.rootfs", str | None, None, _PACKAGE_ROOTFS, "rootfs").described(
        "Folder beside the manifest, or an absolute path, which several services can share: the "
        "root file system. niso never writes to it."
    ),
    Key("package.oci", str | None, None, _PACKAGE_OCI).described(
        "Folder of an image: an OCI layout with an optional :TAG, or an unpacked bundle. The "
        "manifest takes from its config what it does not set: entrypoint, args, environment, "
        "user, working_dir, stop_signal, volumes, and the rootfs of a bundle."
    ),
    Key("binary", "Binary").described("Program to run."),
    Key("binary.entrypoint", str, rule=_BINARY_ENTRYPOINT, to="entrypoint").described(
        "File of the package, absolute path in the rootfs, or command on the service's PATH. "
        "Required unless package.oci is set."
    ),
    Key("binary.args", tuple[str, ...], (), _TEXT, "args").described(
        "Arguments of the entrypoint."
    ),
    Key("binary.working_dir", str, "/app", _BINARY_WORKING_DIR, "working_dir").described(
        "Working directory. /app is the package."
    ),
    Key("environment", dict[str, str], {}, _TEXT, "environment", names=_ENVIRONMENT_NAME).described(
        "Environment variables of the service."
    ),
    Key("service", "Service", {}).described("User, restarts and stopping."),
    Key("service.user", str | None, None, _SERVICE_USER, "user").described(
        "User name of the rootfs, or uid[:gid]. If unset, niso assigns a uid."
    ),
    Key(
        "service.restart", convert.choice("on-failure", "no", "always"), "on-failure", to="restart"
    ).described("When to restart the process after it exits. Always no for a job."),
    Key("service.restart_delay", str, "1s", _duration(0.01, 60.0), "restart_delay_s").described(
        "Delay before the first restart, 10ms to 1m. It doubles with each failure, up to 1m."
    ),
    Key("service.stop_timeout", str, "10s", _duration(0.0, 3600.0), "stop_timeout_s").described(
        "Time from stop_signal to KILL, up to 1h."
    ),
    Key("service.stop_signal", str, "TERM", _SIGNAL, "stop_signal").described(
        "Signal that asks the process to exit, name or number: INT for PostgreSQL, QUIT for nginx."
    ),
    Key("service.kind", convert.choice("service", "job"), "service", to="kind").described(
        "service: runs until it is stopped. job: activate waits until it has ended, and fails "
        "unless it exits with status 0."
    ),
    Key("service.timeout", str | None, None, _duration(0.1, 86_400.0), "timeout_s").described(
        "Time limit of a job, 100ms to 24h. If unset, it has none."
    ),
    Key("service.schedule", str | None, None, _CALENDAR, "schedule").described(
        "Times at which systemd runs a job: daily, Mon..Fri 08:00, *-*-* 03:00 (systemd.time(7)). "
        "activate does not run it; niso enable starts its timer, and niso restart runs it."
    ),
    Key("service.replicas", int | None, None, _SERVICE_REPLICAS).described(
        "Number of instances, 1 to 16. If set, also to 1, the service has a service address, which "
        "its names and ports stand for, and instances with addresses of their own."
    ),
    Key("service.update", convert.choice("start-first", "stop-first") | None, None).described(
        "start-first: a changed service starts beside the old one, which gets no new connections "
        "once the new one is healthy; the service has a service address. stop-first: the old one "
        "ends before. If unset, start-first with replicas, else stop-first."
    ),
    # `niso.manifest.load` reads the files
    Key("service.env_file", str | tuple[str, ...], (), _pattern(ANY.parse, _PATH)).described(
        "File of environment variables, or an array of them, relative to the manifest. "
        "[environment] comes before them."
    ),
    Key("deploy", "Deploy", {}).described(
        "How instances are replaced. Only for a service with a service address."
    ),
    Key(
        "deploy.surge", convert.choice("all") | int, "all", _DEPLOY_SURGE, "deploy.surge"
    ).described(
        "Number of new instances that run next to the old ones with start-first: all, or 1 to 16. "
        "With a number, a deploy goes in steps, and both versions serve until its end."
    ),
    Key("deploy.monitor", str, "10s", _duration(0.0, 3600.0), "deploy.monitor_s").described(
        "Time after a swap in which the new version is taken back if an instance of it exits or "
        "turns unhealthy, up to 1h."
    ),
    Key("deploy.drain", str, "10s", _duration(0.0, 3600.0), "deploy.drain_s").described(
        "Time that an instance without new connections may use to finish its open ones before "
        "TERM, up to 1h. It gets TERM at once when it has none."
    ),
    Key("deploy.drain_signal", str | None, None, _SIGNAL, "deploy.drain_signal").described(
        "Signal to the old instances right after a swap, for programs that finish by themselves."
    ),
    Key(
        "deploy.on_failure", convert.choice("rollback", "keep"), "rollback", to="deploy.on_failure"
    ).described(
        "rollback: a version that fails within monitor is taken back. keep: both versions are left "
        "as they are."
    ),
    Key("isolation", "Isolation", {}).described(
        "Capabilities, file system access and resource limits."
    ),
    Key("isolation.capabilities", tuple[str, ...], (), _CAPABILITIES, "capabilities").described(
        "Capabilities that the service keeps: names of capabilities(7), with or without CAP_."
    ),
    Key("isolation.read_only", bool, True, to="read_only").described(
        "Whether / is read-only. /tmp, /run and /var/tmp are always tmpfs."
    ),
    Key("isolation.restrict_suid_sgid", bool, True, to="restrict_suid_sgid").described(
        "Whether the service cannot make setuid and setgid files, and cannot set these bits of "
        "folders (RestrictSUIDSGID of systemd)."
    ),
    Key("isolation.devices", tuple[str, ...], (), _DEVICE, "devices").described(
        "Devices of the host that the service may use: HOST[:PATH][:r|w|rw], below /dev. A folder "
        "stands for the devices in it. The service's user owns them inside the service."
    ),
    Key("isolation.resources", "Resources", {}).described(
        "Resource limits, enforced as far as the host's cgroups can."
    ),
    Key(
        "isolation.resources.memory_max", str | None, None, _RESOURCES_MEMORY_MAX, "memory_max"
    ).described("Memory limit, including swap: 64K, 512M, 2G (powers of 1024). At least 1M."),
    Key("isolation.resources.cpu_max", str | None, None, _RESOURCES_CPU_MAX, "cpu_max").described(
        "CPU limit: 100% is one CPU, 200% two."
    ),
    Key(
        "isolation.resources.pids_limit",
        int,
        process_keys.PIDS,
        _RESOURCES_PIDS_LIMIT,
        "pids_limit",
    ).described(
        "Limit of processes and threads, including PID 1 of the service. 4194304 is the kernel's "
        "own limit."
    ),
    # 64M as in Docker and Podman
    Key("isolation.resources.shm_size", str, "64M", _TMPFS, "shm_size").described(
        "Size limit of /dev/shm: 64K, 512M, 2G. At least 64K."
    ),
    Key("isolation.resources.tmp_size", str | None, None, _TMPFS, "tmp_size").described(
        "Size limit of each of /tmp, /run and /var/tmp, at least 64K. If unset, a quarter of "
        "memory_max, or 256M without it."
    ),
    Key("isolation.resources.new_flows_limit", int, 1000, _RATE, "limits.new_flows").described(
        "Connections and other flows a second that the service may open through the host's "
        "connection tracking, of each family; 5 s of them at once. 0: no limit."
    ),
    Key("isolation.resources.arp_limit", int, 100, _RATE, "limits.arp").described(
        "ARP and neighbour discovery packets a second that the service may send; 10 s of them at "
        "once. 0: no limit."
    ),
    Key("isolation.resources.multicast_limit", int, 100, _RATE, "limits.multicast").described(
        "Multicasts and broadcasts a second that the service may send on each network that passes "
        "them; 5 s of them at once. 0: no limit."
    ),
    Key(
        "isolation.resources.fragments_limit", int | None, None, _RATE, "limits.fragments"
    ).described(
        "IP fragments a second that the service may send; 5 s of them at once. 0: no limit. If "
        "unset, 40 with the capability NET_RAW, NET_ADMIN or SYS_ADMIN, else no limit."
    ),
    Key("isolation.resources.new_neighbours_limit", int, 20, _RATE, "limits.neighbours").described(
        "Addresses a second on the host's own links that the host asks for because of the service, "
        "of each family; 5 s of them at once. 0: no limit. Those asked for in the last 10 s do not "
        "count."
    ),
    Key("limits", dict[str, int | str], {}, _LIMIT, "rlimits", names=_LIMIT_NAME).described(
        "Limits of each process, by the names of setrlimit(2): nofile = 65536, core = "
        '"unlimited", memlock = "64M", nproc = "1000:2000" (soft and hard limit). The others have '
        "the defaults, whoever starts the service: nofile 1024:1048576, core 0, memlock 8M."
    ),
    Key("sysctls", dict[str, int | str], {}, _SYSCTL, "sysctls", names=_SYSCTL_NAME).described(
        "Sysctls of the service's own network namespace, with their names in quotes: "
        '"net.core.somaxconn" = 4096. Only in the modes bridge and none.'
    ),
    Key("healthcheck", "Healthcheck", None).described(
        "Health probe inside the service: tcp, http or command."
    ),
    Key("healthcheck.tcp", int | None, None, _HEALTHCHECK_TCP, "healthcheck.port").described(
        "Port that must accept connections, on loopback or the service's addresses."
    ),
    Key("healthcheck.http", str | None, None, _HEALTHCHECK_HTTP).described(
        "URL of the service itself that must respond with status 200 to 399."
    ),
    Key(
        "healthcheck.command",
        tuple[str, ...] | None,
        None,
        _TEXT,
        "healthcheck.command",
        schema={"minItems": 1, "prefixItems": [{"type": "string", "pattern": _WORD}]},
    ).described(
        "Command to run inside the service, as its user, without a shell. Exit status 0 is healthy."
    ),
    Key(
        "healthcheck.interval", str, "5s", _duration(0.1, 86_400.0), "healthcheck.interval_s"
    ).described("Time between probes, 100ms to 24h."),
    Key("healthcheck.timeout", str, "2s", _duration(0.01, 60.0), "healthcheck.timeout_s").described(
        "Time limit of a probe, 10ms to 1m."
    ),
    Key("healthcheck.retries", int, 3, _HEALTHCHECK_RETRIES, "healthcheck.retries").described(
        "Consecutive failures, after start_period, that count as unhealthy."
    ),
    Key(
        "healthcheck.start_period", str, "10s", _duration(0.0, 3600.0), "healthcheck.start_period_s"
    ).described("Time after the start in which failures do not count, up to 1h."),
    Key(
        "healthcheck.on_unhealthy",
        convert.choice("none", "restart", "stop"),
        "none",
        to="healthcheck.on_unhealthy",
    ).described(
        "restart or stop: niso health does this to the service when it is unhealthy. none: it is "
        "only shown."
    ),
    Key("volumes.*", "Volume", {}, names=_VOLUMES_NAME).described(
        "Storage besides the root file system: folders that niso keeps, paths of the host, tmpfs."
    ),
    Key("volumes.*.mount", str, rule=_VOLUMES_MOUNT, to="volumes.mount").described(
        "Mount point inside the service: an absolute path that overlaps no other volume."
    ),
    Key("volumes.*.host", str | None, None, _VOLUMES_HOST, "volumes.host").described(
        "Path of an existing folder or file on the host: absolute, or ./ and a path below the "
        "manifest's folder."
    ),
    Key(
        "volumes.*.mode", convert.choice("rw", "ro"), "rw", _VOLUMES_MODE, "volumes.read_only"
    ).described("Whether the path of the host is writable (rw) or read-only (ro)."),
    Key("volumes.*.tmpfs", bool, False, to="volumes.tmpfs").described(
        "Whether the volume is in memory and empty at each start."
    ),
    Key("volumes.*.size", str | None, None, _VOLUMES_SIZE, "volumes.size").described(
        "Size limit of a tmpfs: 64K, 512M, 2G (powers of 1024)."
    ),
    Key("volumes.*.shared", bool, False, to="volumes.shared").described(
        "Whether several instances of the service may write to the volume at the same time."
    ),
    Key("secrets.*", "Secret", {}, names=_SECRETS_NAME).described(
        "Files in /run/secrets that only the service's user can read."
    ),
    Key("secrets.*.file", str, rule=_pattern(process_keys.file, _PATH)).described(
        "File of the host with the secret: absolute, or below the manifest's folder. It is read at "
        "each start."
    ),
    Key("network", "Network", {}).described("Networks, names, published ports and policy."),
    Key(
        "network.mode", convert.choice("bridge", "host", "none", "share"), "bridge", to="mode"
    ).described(
        "bridge: own network namespace, on bridges. host: the host's network. none: own network "
        "namespace with only lo. share: network namespace of another service."
    ),
    Key("network.share", str | None, None, _SERVICE_NAME, "share", modes=("share",)).described(
        'With mode = "share": join the network namespace of this service, whose mode is bridge or '
        "none."
    ),
    Key("network.network", str, DEFAULT_NETWORK, _NETWORK_NAME, modes=("bridge",)).described(
        f"Name of the network: {values.NETWORK_RIGHT}. default, none and host are reserved."
    ),
    Key(
        "network.networks",
        tuple[str, ...],
        (),
        _NETWORK_NAME,
        schema={"minItems": 1, "uniqueItems": True},
        modes=("bridge",),
    ).described(
        "Several networks instead of one: eth0, eth1 and so on. The first that is not internal has "
        "the default route."
    ),
    Key(
        "network.ports", tuple[str, ...], (), _PUBLISHED, "ports", modes=("bridge", "share")
    ).described("Published ports: [ADDRESS:]HOST:CONTAINER[/PROTOCOL]. Ports can be ranges."),
    Key(
        "network.hostname", str | None, None, _HOST_LABEL, "hostname", modes=("bridge", "none")
    ).described("Name in the /etc/hosts of all peers. If unset, the package's name."),
    Key(
        "network.aliases",
        tuple[str, ...],
        (),
        _HOST_LABEL,
        "aliases",
        schema={"uniqueItems": True},
        modes=("bridge",),
    ).described("Additional names of the service."),
    Key(
        "network.ip",
        str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None,
        None,
        _IP,
        modes=("bridge",),
    ).described(
        "Static address, or an array of one IPv4 and one IPv6 address; on several networks, a "
        "table of these by network."
    ),
    Key(
        "network.extra_hosts",
        dict[str, str],
        {},
        _EXTRA_HOSTS,
        "extra_hosts",
        names=_EXTRA_HOSTS_NAME,
        modes=("bridge",),
    ).described(
        "Names that only this service's /etc/hosts has, each with an address. host-gateway is the "
        "host, as host.niso.local."
    ),
    Key(
        "network.dns",
        tuple[str, ...] | None,
        None,
        _DNS,
        "dns",
        schema={"minItems": 1, "maxItems": addresses_and_ports.MAX_SERVERS},
        modes=("bridge",),
    ).described("Addresses of name servers, at most three. If unset, those of the host."),
    Key(
        "network.dns_search",
        tuple[str, ...] | None,
        None,
        _DNS_SEARCH,
        "dns_search",
        modes=("bridge",),
    ).described(
        "Search domains of the service's resolv.conf; none if empty. If unset, those of the host."
    ),
    Key(
        "network.bandwidth",
        dict[str, str],
        {},
        _BANDWIDTH,
        "bandwidth",
        names=_BANDWIDTH_NAME,
        modes=("bridge",),
    ).described(
        "Limits of what the service receives (in) and sends (out) on each network, in bits per "
        "second: 64K to 100G, in powers of 1000."
    ),
    Key("network.policy", "Policy", {}, modes=("bridge",)).described(
        "Who may connect to the service and where it may connect. It only narrows what the "
        "networks allow."
    ),
    Key(
        "network.policy.allow_from", tuple[str, ...] | None, None, _PEER_IN, "policy.allow_from"
    ).described(f"Only these peers may connect; if unset, anyone may. {_PEER_FORMS}"),
    Key("network.policy.deny_from", tuple[str, ...], (), _PEER_IN, "policy.deny_from").described(
        f"These peers may not connect, even if allow_from lists them. {_PEER_FORMS}"
    ),
    Key("network.policy.log", bool, False, to="policy.log").described(
        "Whether `niso net drops` shows packets that the policy drops."
    ),
    Key("network.policy.egress", "Egress", {}).described("Where the service may connect."),
    Key(
        "network.policy.egress.allow",
        tuple[str, ...] | None,
        None,
        _POLICY_EGRESS_ALLOW,
        "policy.egress_allow",
    ).described(
        f"The service may connect only to these peers; if unset, to anyone. {_PEER_FORMS} A name "
        "with a dot is an outside name: niso resolves it, and puts its addresses into the rules "
        "and the service's /etc/hosts."
    ),
    Key(
        "network.policy.egress.deny", tuple[str, ...], (), _PEER_OUT, "policy.egress_deny"
    ).described(
        f"The service may not connect to these peers, even if allow lists them. {_PEER_FORMS} "
        "metadata is the metadata service of a cloud: 169.254.169.254 and fd00:ec2::254."
    ),
    Key("network.policy.mode", convert.choice("enforce", "audit"), "enforce").described(
        "enforce: what the policy denies is dropped. audit: it is counted and remembered "
        "(`niso net flows --denied`), and dropped only from audit_until on."
    ),
    Key("network.policy.audit_until", str | None, None, _POLICY_AUDIT_UNTIL).described(
        "End of the audit: a date, or a date and time, at most 14 days ahead; never: it has no "
        "end. If unset, 14 days after it began."
    ),
)


# --- tables --------------------------------------------------------------------------------------


SECTIONS: dict[str, dict[str, Key]] = {"": {}}
"""Maps the path of each table to its keys, a dict by name. The top level of the file is ""."""
for _key in KEYS:
    SECTIONS[_key.table][_key.name] = _key
    if _key.is_table:
        SECTIONS[_key.path] = {}

TABLES: dict[str, Any] = {}
"""Maps the path of each table to its named tuple class, for `niso.base.convert`."""


def _table(path: str, title: str) -> Any:
    """Build the named tuple class of the table at a key path, and add the class to `TABLES`."""
    types: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, key in SECTIONS[path].items():
        types[name], default = key.type, key.default
        if key.is_table:
            inner = _table(key.path, key.type)
            if key.has_any_names:
                types[name] = dict[str, inner]  # type: ignore[valid-type]
            else:
                types[name] = inner | None if default is None else inner
                default = inner() if default == {} else default
        if default is not ...:
            defaults[name] = default
    TABLES[path] = named_tuple(title, types, defaults)
    return TABLES[path]


Manifest = _table("", "Manifest")
BY_PATH = {key.path: key for key in KEYS if not key.is_table}


def key_at(path: str) -> Key | None:
    """Return the declaration of the key at a path such as ``network.ports[0]``, or None."""
    plain = path.rpartition("[")[0] or path
    above, _, name = plain.rpartition(".")
    paths = (plain, f"{above.partition('.')[0]}.*.{name}", above)
    return next((BY_PATH[one] for one in paths if one in BY_PATH), None)


# --- build ---------------------------------------------------------------------------------------


def spec(manifest: Any, parsed: Mapping[str, Any]) -> ServiceSpec:
    """Build the ServiceSpec of a manifest, which is an instance of the class `Manifest`.

    ``parsed`` maps key paths (``network.ports[0]``) to the values that
    `niso.manifest.validate.rules` has parsed. Other values are parsed here. Raises InvalidInput.
    """
    manifest = _completed(manifest, parsed)
    made: dict[str, dict[str, Any]] = defaultdict(dict)
    _read("", manifest, "", parsed, made)
    own, network = made[""], manifest.network
    networks: tuple[str, ...] = ()
    if network.mode == "bridge":
        networks = network.networks or (network.network,)
    addresses: dict[int, dict[str, str]] = {4: {}, 6: {}}
    ip = network.ip or {}
    for on, texts in (ip if isinstance(ip, dict) else {networks[0]: ip}).items():
        for text in (texts,) if isinstance(texts, str) else texts:
            addresses[family_of(text)][on] = str(ip_address(text))
    ports: dict[PortMapping, str] = {}  # each port once, under its first key
    for index, port in enumerate(own.pop("ports")):
        ports.setdefault(port, f"network.ports[{index}]")
    denied = policy.denials(made["policy"].pop("egress_deny"))
    own |= {
        "hostname": own["hostname"] or manifest.package.name,
        "healthcheck": _healthcheck(manifest, made, parsed),
        "volumes": tuple([_volume(name, one, parsed) for name, one in manifest.volumes.items()]),
        "networks": networks,
        "addresses": addresses[4],
        "addresses6": addresses[6],
        "ports": tuple(
            Published(port, ports[port]) for port in addresses_and_ports.distinct(tuple(ports))
        ),
        "policy": Policy(
            **made["policy"], egress_deny=denied, audit=_audit(network.policy, parsed)
        ),
        "limits": Limits(**made["limits"]),
        "secrets": {name: secret.file for name, secret in manifest.secrets.items()},
        "deploy": _deploy(manifest.service, made["deploy"]),
    }
    network_fields = {field: own.pop(field) for field in NetworkSpec._fields if field in own}
    return ServiceSpec(
        name=own.pop("name"),
        network=NetworkSpec(**network_fields),
        process=ProgramSpec(**own),
        manifest=convert.plain(manifest),
    )


def _completed(manifest: Any, parsed: Mapping[str, Any]) -> Any:
    """Return the manifest with the defaults that depend on other keys, such as tmp_size. ``parsed``
    is as for `spec`.
    """
    isolation, service = manifest.isolation, manifest.service
    limits, path = isolation.resources, "isolation.resources.memory_max"
    if limits.tmp_size is None:
        memory_max = _value(BY_PATH[path], limits.memory_max, path, parsed)
        limits = limits._replace(tmp_size=process_keys.tmp_default(memory_max))
    if limits.fragments_limit is None:
        names = [name.removeprefix("CAP_") for name in isolation.capabilities]
        fragments = process_keys.fragments_default(names)
        limits = limits._replace(fragments_limit=fragments)
    if service.kind == "job":  # it runs once: its exit status is its result
        service = service._replace(restart="no")
    return manifest._replace(service=service, isolation=isolation._replace(resources=limits))


def _read(
    section: str, table: Any, base: str, parsed: Mapping[str, Any], made: dict[str, dict[str, Any]]
) -> None:
    """Add the parsed values of a table and of its subtables to ``made``.

    ``made`` maps each named tuple in a ServiceSpec, such as "limits", to its fields. ``section`` is
    the table's path in `SECTIONS`, and ``base`` its path in the file. ``parsed`` is as for `spec`.
    Tables such as [volumes], whose keys are names that the user chooses, are left out.
    """
    for (name, key), value in zip(SECTIONS[section].items(), table, strict=True):
        if key.to:
            record, _, field = key.to.rpartition(".")
            path = f"{base}.{name}" if base else name
            made[record][field] = _value(key, value, path, parsed)
        elif value is not None and key.is_table and not key.has_any_names:
            _read(key.path, value, key.path, parsed, made)


def _value(key: Key, value: Any, path: str, parsed: Mapping[str, Any]) -> Any:
    """Return a key's value as parsed by the key's rule. In an array or a table, each item is
    parsed. A value that is in ``parsed`` is not parsed again.
    """
    if value is None or key.rule is ANY:
        return value
    if type(value) is tuple:
        items = enumerate(value)
        return tuple([_value(key, item, f"{path}[{index}]", parsed) for index, item in items])
    if type(value) is dict:
        return {name: _value(key, item, join(path, name), parsed) for name, item in value.items()}
    return parsed[path] if path in parsed else key.rule.parse(value, path)


def _deploy(service: Any, fields: dict[str, Any]) -> specs.DeploySpec | None:
    if service.replicas is None and service.update != "start-first":
        return None
    return specs.DeploySpec(service.replicas or 1, service.update or "start-first", **fields)


def _volume(name: str, table: Any, parsed: Mapping[str, Any]) -> specs.Volume:
    made: dict[str, dict[str, Any]] = {"volumes": {}}
    _read("volumes.*", table, join("volumes", name), parsed, made)
    return specs.Volume(name, **made["volumes"])


def _audit(written: Any, parsed: Mapping[str, Any]) -> Audit | None:
    if written.mode != "audit":
        return None
    text, path = written.audit_until, "network.policy.audit_until"
    return Audit(text or "", 0, _value(BY_PATH[path], text, path, parsed) or 0)


def _healthcheck(
    manifest: Any, made: Mapping[str, dict[str, Any]], parsed: Mapping[str, Any]
) -> records.Healthcheck | None:
    if manifest.healthcheck is None:
        return None
    fields, http = made["healthcheck"], manifest.healthcheck.http
    target: tuple[str, int, str, str | None] = ("", fields.pop("port") or 0, "", None)
    if http is not None:
        names = process_keys.own_names(
            manifest.package.name, manifest.network.hostname, manifest.network.aliases
        )
        path = "healthcheck.http"
        target = parsed[path] if path in parsed else process_keys.url(http, path, names)
    return records.Healthcheck(*target, **{**fields, "command": fields["command"] or ()})
