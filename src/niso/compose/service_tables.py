"""Convert one service of a compose file to the tables of a manifest.

Keys that niso does not support, or treats differently, are recorded as gaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial

from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.base.names import DEFAULT_NETWORK
from niso.compose import storage
from niso.compose.storage import Storage, beyond, duration, items, pairs, scalar, seconds
from niso.manifest import addresses_and_ports, image, process_keys, values
from niso.manifest.addresses_and_ports import parse_port
from niso.manifest.keys import BY_PATH
from niso.plan.records import PortMapping

DEFAULT = "default"
"""The network in Compose of services that set no network."""
_STATES = {"service_healthy": "healthy", "service_completed_successfully": "completed"}
_ORDERS = ("start-first", "stop-first")
_FAILURES = {"rollback": "rollback", "pause": "keep"}
_CONDITIONS = {"none": "no", "any": "always"}
UNKNOWN = "SET-ME"
"""The entrypoint that is written if only the image defines the service's command."""
_STOP_SIGNALS = {
    **dict.fromkeys(("postgres", "postgis", "pgvector", "timescaledb"), "INT"),
    **dict.fromkeys(("nginx", "nginx-unprivileged", "openresty", "php-fpm", "fpm"), "QUIT"),
    **dict.fromkeys(("httpd", "apache"), "WINCH"),
}
"""Maps names of images, and words in their tags, to the STOPSIGNAL of these images."""


class Missing(NamedTuple):
    """A gap: a key or service of a compose file that was not converted as Compose means it."""

    service: str  # the service in the compose file; empty for the file itself
    key: str  # the key in the compose file; can be empty
    text: str  # what the key does, and what to do instead


class ComposeFile(NamedTuple):
    """The facts about the whole compose file that the conversion of one service needs."""

    stack: str
    names: Mapping[str, str]  # name of a service in the compose file -> name in the stack
    networks: Mapping[str, str]  # name of a network in the compose file -> name in the stack
    internal: frozenset[str]  # internal networks
    checked: frozenset[str]  # services with a health check
    # services whose completion another service waits for, or that swarm-cronjob runs
    jobs: frozenset[str]
    providers: frozenset[str]  # services whose network namespace another service uses
    storage: Storage
    secrets: Mapping[str, str]  # name of a secret -> path of its file
    linked: Mapping[str, list[str]]  # service in the compose file -> its aliases in ``links``


class ComposeService:
    """A converter of one service. The result is in ``tables``, unsupported keys are in ``gaps``."""

    def __init__(self, name: str, keys: Mapping[str, Any], world: ComposeFile) -> None:
        self.gaps: list[Missing] = []
        self.tables: dict[str, Any] = {}
        self.given, self._keys, self._world = name, keys, world
        self.name = world.names[name]
        self._at_boot = f"niso enable {world.stack}-{self.name} starts it at boot"
        self.image = "" if keys.get("build") else scalar(keys.get("image"))
        if self.name != name:
            self._gap("", f"its name is {self.name!r}: niso's names are a-z, 0-9 and -")
        self._depends_on()
        self._program()
        self._environment()
        self._life()
        self._isolation()
        self._healthcheck()
        self.tables["volumes"], unsupported = world.storage.volumes(keys)
        for key, what in unsupported:
            self._gap(key, what)
        self._secrets()
        self._network()
        self._kernel()
        self._instances()
        if any(name.startswith("ofelia.") for name in pairs(keys.get("labels"))):
            what = 'ofelia: write a service with this command, kind = "job" and schedule'
            self._gap("labels", what)
        for key in beyond(keys, HANDLED):
            if not key.startswith("x-") and keys[key] not in (None, False, [], {}):
                self._gap(key, ELSEWHERE.get(key, "niso has no such key"))
        for key, kinds in SHAPES.items():
            given = keys.get(key)
            # a bool does not count as an int
            if given is not None and (not isinstance(given, kinds) or isinstance(given, bool)):
                names = " or ".join(KINDS[kind] for kind in kinds)
                self._gap(key, f"{given!r} is not {names}: not taken over")
        self.tables = {table: data for table, data in self.tables.items() if data}

    def _gap(self, key: str, what: str) -> None:
        self.gaps.append(Missing(self.given, key, what))

    def _put(self, table: str, key: str, value: object) -> None:
        if value or value is False:
            self.tables.setdefault(table, {})[key] = value

    def _valid(self, key: str, value: str, rule: Callable[[str, str], object]) -> bool:
        """Return whether ``rule`` accepts a value. If not, add the key to the gaps."""
        if "${" in value:  # niso reads the variable when it has a value
            return True
        try:
            rule(value, key)
        except InvalidInput as error:
            right = f" ({error.right})" if error.right else ""
            self._gap(key, f"{value!r} {error.reason or error.message}{right}")
            return False
        return True

    def _depends_on(self) -> None:
        given = self._keys.get("depends_on")
        if isinstance(given, list):
            given = {scalar(name): {} for name in given}
        needs: dict[str, str] = {}
        for name, item in given.items() if isinstance(given, dict) else ():
            if name not in self._world.names:
                self._gap("depends_on", f"{name!r} is not a service of the stack: left out")
                continue
            wanted = item.get("condition") if isinstance(item, dict) else None
            if isinstance(item, dict) and item.get("restart"):
                self._gap("depends_on", f"a restart of {name!r} does not restart it")
            state = _STATES.get(scalar(wanted), "started")
            if state == "healthy" and name not in self._world.checked:
                self._gap("depends_on", f"{name!r} has no health check here: waits until started")
                state = "started"
            needs[self._world.names[name]] = state
        self.tables["depends_on"] = needs

    def _program(self) -> None:
        keys = self._keys
        named = scalar(keys.get("image"))
        self._put("package", "rootfs", f"./rootfs/{self.name}")
        first, then = self._words("entrypoint"), self._words("command")
        if self._oci:
            self._put("package", "oci", self._oci)
            self._with_image(first, then)
            return
        if keys.get("build"):
            self._gap("build", f"build it as before, and put its files into rootfs/{self.name}")
        elif named:
            self._gap(
                "image",
                f"put the files of {named} into rootfs/{self.name}, see below; what its image says"
                " of user, environment, working directory and stop signal is not known here. Import"
                f" again when images/{self.name} exists",
            )
        argv = [*(first or []), *(then or [])]
        if not argv:
            argv = [UNKNOWN]
            self._gap("command", "set binary.entrypoint: the image alone knows what it runs")
        elif not first:
            self._gap("entrypoint", "if the image has an ENTRYPOINT, put it before the command")
        if not self._valid("entrypoint", argv[0], values.entrypoint):
            argv[0] = UNKNOWN
        self._put("binary", "entrypoint", argv[0])
        self._put("binary", "args", argv[1:])
        folder = scalar(keys.get("working_dir")) or "/"
        if not self._valid("working_dir", folder, values.working_dir):
            folder = "/"
        self._put("binary", "working_dir", folder)
        if any(word == "/app" or word.startswith("/app/") for word in (folder, *argv)):
            self._gap("working_dir", "/app is the service's package, and hides that of the image")

    @cached_property
    def _oci(self) -> str:
        base, error = self._world.storage.base, None
        for text in (f"images/{self.name}:latest", f"images/{self.name}"):
            try:
                image.read(text, base)
                return text
            except Error as refused:
                error = refused
        if os.path.lexists(os.path.join(base, "images", self.name)):
            self._gap("image", f"images/{self.name} cannot be used: {error}")
        return ""

    def _with_image(self, first: list[str] | None, then: list[str] | None) -> None:
        """Convert entrypoint ``first``, command ``then`` and the working folder of a service. niso
        reads missing values from the image. An empty entrypoint or command overrides the image's
        own (compose-spec, 05-services).
        """
        binary = self.tables.setdefault("binary", {})
        if first is not None:
            program, *then = [*first, *(then or [])] or [UNKNOWN]
            if program == UNKNOWN:
                self._gap("entrypoint", "set binary.entrypoint: it is empty without a command")
            elif not self._valid("entrypoint", program, values.entrypoint):
                program = UNKNOWN
            binary["entrypoint"] = program
        if then is not None:
            binary["args"] = then
        folder = scalar(self._keys.get("working_dir"))
        if folder and self._valid("working_dir", folder, values.working_dir):
            binary["working_dir"] = folder
        base = self._world.storage.base
        if os.path.isfile(os.path.join(base, self._oci, "config.json")):
            del self.tables["package"]["rootfs"]  # the rootfs of the bundle is used
        elif not os.path.isdir(os.path.join(base, "rootfs", self.name)):
            self._gap("image", f"unpack images/{self.name} into rootfs/{self.name}, see below")

    def _words(self, key: str) -> list[str] | None:
        given = self._keys.get(key)
        argv = storage.words(given)
        if given is not None and argv is None:
            self._gap(key, f"{given!r} is not a list of words: not taken over")
        return argv

    def _environment(self) -> None:
        taken = {}
        for name, value in pairs(self._keys.get("environment")).items():
            if value is None:
                self._gap("environment", f"{name} comes from the shell: give it a value")
            elif self._valid("environment", name, values.environment_name):
                taken[name] = value
        self.tables["environment"] = taken
        files = []
        for item in items(self._keys.get("env_file")):
            file = scalar(item.get("path") if isinstance(item, dict) else item)
            if isinstance(item, dict) and item.get("required") is False:
                self._gap("env_file", f"{file} must exist")
            files.append(self._world.storage.path(file))
        self._put("service", "env_file", files)

    def _restart(self) -> str:
        """Return the restart policy in the form of Compose's key ``restart``: ``on-failure:3``. The
        key ``deploy.restart_policy`` has precedence over ``restart``.
        """
        given = self._keys.get("restart")
        swarm = _mapping(_mapping(self._keys.get("deploy")).get("restart_policy"))
        if not swarm:
            return "no" if given in (None, False, "") else scalar(given)
        for key in beyond(swarm, ("condition", "max_attempts")):
            self._gap(f"deploy.restart_policy.{key}", "niso has no such key")
        when = scalar(swarm.get("condition")) or "any"
        return f"{_CONDITIONS.get(when, when)}:{scalar(swarm.get('max_attempts'))}"

    def _life(self) -> None:
        keys = self._keys
        policy, _, count = self._restart().partition(":")
        if count:
            self._gap("restart", f"the number of times ({count}) is not limited")
        if self.given in self._world.jobs:
            self._put("service", "kind", "job")
            self._schedule()
            if policy != "no":
                self._gap("restart", "a job is not restarted")
        elif policy == "unless-stopped":
            self._put("service", "restart", "always")
            self._gap("restart", self._at_boot)
        elif policy in ("no", "always", "on-failure"):
            self._put("service", "restart", policy)
            if policy == "always":
                self._gap("restart", self._at_boot)
        else:
            self._gap("restart", f"{policy!r} is not known")
        user = scalar(keys.get("user"))
        if user and self._valid("user", user, values.user):
            self._put("service", "user", user)
        grace = seconds(keys.get("stop_grace_period"))
        if grace is None and keys.get("stop_grace_period") is not None:
            self._gap("stop_grace_period", f"{keys['stop_grace_period']!r} is not a duration")
        if grace is not None:
            text = duration(grace)
            if self._valid("stop_grace_period", text, BY_PATH["service.stop_timeout"].rule.parse):
                self._put("service", "stop_timeout", text)
        word = scalar(keys.get("stop_signal"))
        if not word:
            word = "" if self._oci else self._stop_signal()
        if word and self._valid("stop_signal", word, process_keys.signal):
            name = word if "${" in word else process_keys.signal(word, "stop_signal")
            self._put("service", "stop_signal", name)

    def _schedule(self) -> None:
        times = cron_times(self._keys)
        if (schedule := process_keys.of_cron(times)) is not None:
            self._put("service", "schedule", schedule)
            self._gap("labels", f"niso enable {self._world.stack}-{self.name} starts its timer")
        elif times:
            self._gap("labels", f"{CRON}: {times!r}: set service.schedule (systemd.time(7))")

    def _stop_signal(self) -> str:
        name, _, tag = self.image.rpartition("/")[2].partition("@")[0].partition(":")
        words = (name, *tag.split("-"))
        return next((_STOP_SIGNALS[word] for word in words if word in _STOP_SIGNALS), "")

    def _isolation(self) -> None:
        keys = self._keys
        kept = []
        for item in items(keys.get("cap_add")):
            name = scalar(item).upper().removeprefix("CAP_")
            if name == "ALL":
                self._gap("cap_add", "list the capabilities that it needs")
            elif self._valid("cap_add", name, values.capability):
                kept.append(name)
        self._put("isolation", "capabilities", kept)
        if not keys.get("read_only"):
            self._put("isolation", "read_only", False)
        for item in items(keys.get("security_opt")):
            if not scalar(item).startswith(("no-new-privileges", "label")):
                self._gap("security_opt", f"{item}: niso's own seccomp filter applies")
        deploy = _mapping(keys.get("deploy"))
        for key in beyond(deploy, OF_DEPLOY):
            self._gap(f"deploy.{key}", OF_SWARM.get(key, "niso has no such key"))
        resources = _mapping(deploy.get("resources"))
        for key in beyond(resources, ("limits",)):
            self._gap(f"deploy.resources.{key}", "niso has no such key")
        limits = _mapping(resources.get("limits"))
        for key in beyond(limits, ("cpus", "memory", "pids")):
            self._gap(f"deploy.resources.limits.{key}", "niso has no such key")
        self._resources(limits)

    def _resources(self, limits: Mapping[str, Any]) -> None:
        keys = self._keys
        table: dict[str, Any] = {}
        for key, given in (
            ("memory_max", keys.get("mem_limit", limits.get("memory"))),
            ("shm_size", keys.get("shm_size")),
        ):
            rule = BY_PATH[f"isolation.resources.{key}"].rule
            if given is not None and (size := storage.parse_size(given)) is None:
                self._gap(key, f"{given!r} is not a size")
            elif given is not None and self._valid(key, size or "", rule.parse):
                table[key] = size
        cpus = keys.get("cpus", limits.get("cpus"))
        if cpus is not None:
            try:
                percent = max(1, round(float(cpus) * 100))
            except (ValueError, OverflowError, TypeError):
                self._gap("cpus", f"{cpus!r} is not a number")
            else:
                table["cpu_max"] = f"{min(percent, process_keys.MAX_PERCENT)}%"
        pids = keys.get("pids_limit", limits.get("pids"))
        if isinstance(pids, int) and pids >= process_keys.MIN_PIDS:
            table["pids_limit"] = min(pids, process_keys.MAX_PIDS)
        elif pids is not None:
            self._gap("pids_limit", f"{pids!r} is not a limit of niso: the default applies")
        self._put("isolation", "resources", table)

    def _kernel(self) -> None:
        limits: dict[str, Any] = {}
        for name, given in _mapping(self._keys.get("ulimits")).items():
            both = [given.get("soft"), given.get("hard")] if isinstance(given, dict) else [given]
            words = ["unlimited" if scalar(one) == "-1" else scalar(one) for one in both]
            text = ":".join(dict.fromkeys(words))
            if self._valid("ulimits", name, process_keys.rlimit_name) and self._valid(
                "ulimits", text, partial(_limit, f"limits.{name}")
            ):
                limits[name] = int(text) if text.isdigit() else text
        self.tables["limits"] = limits
        settings: dict[str, Any] = {}
        is_own = self.tables.get("network", {}).get("mode") not in ("host", "share")
        for name, value in pairs(self._keys.get("sysctls")).items():
            text = value or ""
            if not is_own:
                self._gap("sysctls", f"{name}: its network namespace is not the service's own")
            elif self._valid("sysctls", name, process_keys.sysctl_name) and self._valid(
                "sysctls", text, process_keys.sysctl
            ):
                settings[name] = int(text) if text.isdigit() else text
        self.tables["sysctls"] = settings
        devices = []
        for item in items(self._keys.get("devices")):
            parts = (
                [item.get(key) for key in ("source", "target", "permissions")]
                if isinstance(item, dict)
                else [item]
            )
            text = ":".join(scalar(part) for part in parts if part)
            if self._valid("devices", text, process_keys.device):
                devices.append(text)
        self._put("isolation", "devices", devices)

    def _healthcheck(self) -> None:
        check = self._keys.get("healthcheck")
        if not isinstance(check, dict) or self.given not in self._world.checked:
            return
        if self.given in self._world.jobs:
            self._gap("healthcheck", "a job has none")
            return
        test = check.get("test")
        given = storage.words(test) if isinstance(test, list) else None
        if given and given[0] == "CMD":
            command = given[1:]
        elif given and given[0] == "CMD-SHELL":
            command = ["/bin/sh", "-c", *given[1:]]
        else:
            command = ["/bin/sh", "-c", scalar(test)]
        table: dict[str, Any] = {"command": command}
        for key, low, high in (
            ("interval", 0.1, 86_400.0),
            ("timeout", 0.01, 60.0),
            ("start_period", 0.0, 3600.0),
        ):
            given_s = seconds(check.get(key))
            if given_s is None:
                if check.get(key) is not None:
                    self._gap(f"healthcheck.{key}", f"{check[key]!r} is not a duration")
                continue
            kept_s = min(max(given_s, low), high)
            if kept_s != given_s:
                self._gap(f"healthcheck.{key}", f"{given_s:g}s is out of range: {kept_s:g}s")
            path = f"healthcheck.{key}"
            if self._valid(path, duration(kept_s), BY_PATH[path].rule.parse):
                table[key] = duration(kept_s)
        retries = check.get("retries")
        if isinstance(retries, int) and not isinstance(retries, bool):
            table["retries"] = min(max(retries, 1), process_keys.MAX_RETRIES)
        elif retries is not None:
            self._gap("healthcheck.retries", f"{retries!r} is not a number")
        for key in beyond(check, OF_CHECK):
            self._gap(f"healthcheck.{key}", "niso has no such key")
        self.tables["healthcheck"] = table

    def _secrets(self) -> None:
        taken = {}
        for item in items(self._keys.get("secrets")):
            name = scalar(item.get("source") if isinstance(item, dict) else item)
            target = scalar(item.get("target")) if isinstance(item, dict) else ""
            file = self._world.secrets.get(name)
            if file is None:
                self._gap("secrets", f"{name} is not a file: write it into one")
            elif self._valid("secrets", target or name, process_keys.secret_name):
                path = self._world.storage.path(file)
                if reason := values.path_reason(path):
                    self._gap("secrets", f"{path!r} {reason}")
                else:
                    taken[target or name] = {"file": path}
        self.tables["secrets"] = taken

    def _network(self) -> None:
        keys = self._keys
        mode = scalar(keys.get("network_mode"))
        kind, _, other = mode.partition(":")
        if kind in ("host", "none"):
            self._put("network", "mode", kind)
        elif kind == "service" and other in self._world.names:
            self._put("network", "mode", "share")
            self._put("network", "share", self._world.names[other])
        else:
            if kind not in ("", "bridge", "default"):
                self._gap("network_mode", f"{mode!r} cannot be taken over")
            self._bridge()
        if kind not in ("host", "none"):
            self._ports()
        elif keys.get("ports"):
            self._gap("ports", f"mode {kind} has none")

    def _bridge(self) -> None:
        keys, known = self._keys, self._world.networks
        given = keys.get("networks")
        if isinstance(given, list):
            given = {scalar(name): None for name in given}
        if not isinstance(given, dict) or not given:
            given = {DEFAULT: None}
        for name in beyond(given, known):
            self._gap("networks", f"{name!r} is not in the file: left out")
        # the first network has the default route, which an internal network cannot have
        names = [name for name in given if name in known] or [DEFAULT]
        names.sort(key=lambda name: name in self._world.internal)
        if names != [DEFAULT] or known[DEFAULT] != DEFAULT_NETWORK:
            self._put("network", "networks", [known[name] for name in names])
        aliases: dict[str, None] = {}
        addresses = {}
        for name, item in given.items():
            settings = _mapping(item)
            aliases |= dict.fromkeys(map(scalar, items(settings.get("aliases"))))
            fixed = [
                address
                for key in ("ipv4_address", "ipv6_address")
                if (address := scalar(settings.get(key)))
                and self._valid(key, address, addresses_and_ports.static_address)
            ]
            if fixed and name in known:
                addresses[known[name]] = fixed[0] if len(fixed) == 1 else fixed
            for key in beyond(settings, OF_NETWORKS):
                self._gap(f"networks.{name}.{key}", "niso has no such key")
        hostname = scalar(keys.get("hostname"))
        if hostname and self._valid("hostname", hostname, values.host_label):
            self._put("network", "hostname", hostname)
        if container := scalar(keys.get("container_name")):
            aliases[container] = None
        aliases |= dict.fromkeys(self._world.linked.get(self.given, ()))
        taken = [
            name
            for name in aliases
            if name not in (self.name, hostname) and self._valid("aliases", name, values.host_label)
        ]
        self._put("network", "aliases", taken)
        self._put("network", "ip", addresses)
        self._resolver()

    def _resolver(self) -> None:
        given = self._keys.get("extra_hosts")
        if isinstance(given, list):
            parts = (re.split("[:=]", scalar(item), maxsplit=1) for item in given)
            given = {part[0]: part[-1] for part in parts}
        hosts = {}
        for name, address in _mapping(given).items():
            text = scalar(address).strip("[]")
            if self._valid("extra_hosts", name, addresses_and_ports.extra_host) and self._valid(
                "extra_hosts", text, addresses_and_ports.extra_address
            ):
                hosts[name] = text
        self._put("network", "extra_hosts", hosts)
        for key, rule in (
            ("dns", addresses_and_ports.server_address),
            ("dns_search", addresses_and_ports.domain),
        ):
            texts = map(scalar, items(self._keys.get(key)))
            kept = [text for text in texts if self._valid(key, text, rule)]
            self._put("network", key, kept)

    def _ports(self) -> None:
        taken = []
        given = self._keys.get("ports")
        for item in given if isinstance(given, list) else ():
            entry = storage.port(item)
            if entry is not None and (first := storage.first_of_range(entry)) != entry:
                what = f"{entry!r} is one of several host ports, one a container: here {first!r}"
                self._gap("ports", what)
                entry = first
            if entry is None:
                self._gap("ports", f"{item!r} cannot be taken over")
            elif self._valid("ports", entry, parse_port):
                taken.append(entry)
        self._put("network", "ports", list(dict.fromkeys(taken)))

    # --- instances: scale, deploy.replicas, deploy.update_config ------------------------------
    def _instances(self) -> None:
        """Convert the number of instances and ``update_config``, or add them to the gaps."""
        deploy = _mapping(self._keys.get("deploy"))
        update = _mapping(deploy.get("update_config"))
        key, number = self._replicas(deploy)
        order = scalar(update.get("order"))
        if order not in ("", *_ORDERS):
            self._gap("deploy.update_config.order", f"{order!r} is not one of {', '.join(_ORDERS)}")
            order = ""
        if number < 2 and order != "start-first":
            for name in update:
                if name != "order":
                    what = "without replicas or start-first, the old process ends first"
                    self._gap(f"deploy.update_config.{name}", what)
            return
        if number < 2:
            key = "deploy.update_config.order"
        if (reason := self._one_process()) or (reason := self._unchecked(key)):
            self._gap(key, f"{reason}: one process, which ends before its successor starts")
            return
        self._put("service", "replicas", number)
        self._put("service", "update", order)
        self._update(update, order or "start-first", number)
        self._share_volumes()
        self._spread_ports()

    def _replicas(self, deploy: Mapping[str, Any]) -> tuple[str, int]:
        """Return (key that sets the number of instances, this number, at most niso's limit)."""
        most = process_keys.MAX_REPLICAS
        key = "deploy.replicas" if deploy.get("replicas") is not None else "scale"
        given = deploy.get("replicas", self._keys.get("scale"))
        text = scalar(given)
        if given is not None and not re.fullmatch("[0-9]{1,9}", text):
            self._gap(key, f"{text!r} is not a number: one instance")
        number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 1
        if number > most:
            self._gap(key, f"{number} is out of range: {most}")
        return key, min(number, most)

    def _one_process(self) -> str:
        """Return why this service cannot have a service address, or "" if it can. A service address
        also requires a health check, which `_unchecked` adds.
        """
        mode = self.tables.get("network", {}).get("mode", "bridge")
        if self.given in self._world.jobs:
            return "a job has one process"
        if mode != "bridge":
            return f"not possible with network mode {mode}"
        if self.given in self._world.providers:
            return "another service uses its network namespace"
        return ""

    def _unchecked(self, key: str) -> str:
        """Add a health check to a service that has none: a TCP connection to one of its ports.
        ``key`` is the key of the compose file that needs the health check. Returns "" if the
        service has a health check afterwards, or else the reason why not.
        """
        if "healthcheck" in self.tables:
            return ""
        ports = [*self.tables.get("network", {}).get("ports", ()), *items(self._keys.get("expose"))]
        for text in (scalar(port) for port in ports):
            target, _, protocol = storage.fields(text)[-1].partition("/")
            first = target.partition("-")[0]
            if protocol in ("", "tcp") and first.isdigit() and 0 < int(first) < 65536:
                self.tables["healthcheck"] = {"tcp": int(first)}
                what = (
                    f"each instance needs one, because of {key}: here a connection to port {first}"
                )
                self._gap("healthcheck", what)
                return ""
        return "each instance needs a health check"

    def _update(self, update: Mapping[str, Any], order: str, number: int) -> None:
        """Convert the keys of ``update_config`` other than ``order`` to the table [deploy].
        ``order`` is ``start-first`` or ``stop-first``, and ``number`` the number of instances.
        """
        place = "deploy.update_config"
        starts_first = order == "start-first"
        given_s = seconds(update.get("monitor"))
        if update.get("monitor") is not None and not starts_first:
            self._gap(f"{place}.monitor", "with stop-first, each instance must become healthy")
        elif given_s is not None:
            kept_s = min(max(given_s, 0.0), 3600.0)
            if kept_s != given_s:
                self._gap(f"{place}.monitor", f"{given_s:g}s is out of range: {kept_s:g}s")
            self._put("deploy", "monitor", duration(kept_s))
        elif update.get("monitor") is not None:
            self._gap(f"{place}.monitor", f"{update['monitor']!r} is not a duration")
        action = scalar(update.get("failure_action"))
        if action in _FAILURES and starts_first:
            self._put("deploy", "on_failure", _FAILURES[action])
        elif action not in ("", "rollback"):
            self._gap(f"{place}.failure_action", f"{action}: a version that fails is taken back")
        parallel = scalar(update.get("parallelism"))
        if starts_first and parallel.isdigit() and 0 < int(parallel) < number:
            self._put("deploy", "surge", int(parallel))
        elif starts_first and parallel and not parallel.isdigit():
            self._gap(f"{place}.parallelism", "all instances are replaced at the same time")
        elif not starts_first and parallel not in ("", "1"):
            self._gap(f"{place}.parallelism", "one instance is replaced after the other")
        if seconds(update.get("delay")) != 0 and update.get("delay") is not None:
            self._gap(f"{place}.delay", "the next step begins when the instances are healthy")
        if scalar(update.get("max_failure_ratio")) not in ("", "0", "0.0"):
            self._gap(f"{place}.max_failure_ratio", "a deploy fails if one instance fails")
        for key in beyond(update, OF_UPDATE):
            self._gap(f"{place}.{key}", "niso has no such key")

    def _share_volumes(self) -> None:
        anonymous = storage.anonymous(self._keys)
        for volume in self.tables.get("volumes", {}).values():
            if not volume.get("tmpfs") and volume.get("mode") != "ro":
                volume["shared"] = True
                if volume["mount"] in anonymous:
                    what = f"{volume['mount']}: all instances share it; Compose has one for each"
                    self._gap("volumes", what)

    def _spread_ports(self) -> None:
        """Remove published ports that niso does not support for a service with a service address.
        niso supports neither long ranges nor a host port that publishes several ports of the
        service.
        """
        network, most = self.tables.get("network", {}), process_keys.MAX_SPREAD
        earlier: list[PortMapping] = []
        for text in list(network.get("ports", ())):
            if "${" in text:
                continue
            port = parse_port(text, "ports")
            other = next((one for one in earlier if port.diverges(one)), None)
            what = f"{text!r} has {port.count} ports, at most {most} with replicas: left out"
            if port.count <= most and other is not None:
                what = f"{text!r} and {other.text!r} lead to different ports: left out"
            elif port.count <= most:
                earlier.append(port)
                continue
            network["ports"].remove(text)
            self._gap("ports", what)


def label(text: str) -> str:
    """Convert a text to the most similar valid name of a service or network."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"s-{plain}".rstrip("-")
    return plain[: values.MAX_NAME].rstrip("-")


def has_check(keys: Mapping[str, Any]) -> bool:
    """Return whether a service of the compose file has a health check that is not disabled."""
    check = keys.get("healthcheck")
    if not isinstance(check, dict) or check.get("disable") is True:
        return False
    test = check.get("test")
    return bool(test) and (not isinstance(test, list) or test[0] != "NONE")


CRON = "swarm.cronjob.schedule"
"""The label that sets the times at which swarm-cronjob runs a service."""


def cron_times(keys: Mapping[str, Any]) -> str:
    """Return the schedule (crontab(5)) in a service's label for swarm-cronjob, or "" for none."""
    labels = {**pairs(keys.get("labels")), **pairs(_mapping(keys.get("deploy")).get("labels"))}
    return labels.get(CRON) or ""


def no_instances(keys: Mapping[str, Any]) -> str:
    """Return the key that sets a service's number of containers to 0, or "" if no key does. Returns
    "" for a service that swarm-cronjob runs: it has containers at the scheduled times.
    """
    replicas = _mapping(keys.get("deploy")).get("replicas")
    if cron_times(keys):
        return ""
    if scalar(replicas) == "0":
        return "deploy.replicas"
    return "scale" if replicas is None and scalar(keys.get("scale")) == "0" else ""


def _limit(key: str, text: str, _: str) -> tuple[int, int]:
    return process_keys.rlimit(text, key)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# --- the converted keys and the types of their values ---------------------------------------------

HANDLED = frozenset(
    (
        *("image", "build", "entrypoint", "command", "working_dir", "environment", "env_file"),
        *("ports", "expose", "networks", "network_mode", "hostname", "container_name"),
        *("depends_on", "secrets", "dns", "dns_search", "extra_hosts", "healthcheck", "restart"),
        *("stop_grace_period", "user", "cap_add", "cap_drop", "read_only", "tmpfs", "volumes"),
        *("mem_limit", "cpus", "pids_limit", "shm_size", "deploy", "init", "security_opt"),
        *("profiles", "stdin_open", "tty", "attach", "annotations", "labels", "pull_policy"),
        *("stop_signal", "scale", "ulimits", "sysctls", "devices", "links"),
    )
)
OF_NETWORKS = {"aliases", "ipv4_address", "ipv6_address", "priority", "gw_priority"}
OF_DEPLOY = {"resources", "restart_policy", "mode", "labels", "replicas", "update_config"}
OF_UPDATE = {
    *("order", "parallelism", "monitor", "failure_action", "delay", "max_failure_ratio"),
}
OF_SWARM = {
    "rollback_config": "niso rollback is a deploy like any other, with the same keys",
    "placement": "all instances are on one host",
    "endpoint_mode": "the name always means the service address",
}
OF_CHECK = {"test", "interval", "timeout", "start_period", "retries", "disable"}
KINDS = {list: "a list", dict: "a mapping", str: "a text", int: "a number", float: "a number"}
SHAPES: dict[str, tuple[type, ...]] = {
    "depends_on": (list, dict),
    "environment": (list, dict),
    "env_file": (str, list),
    "ports": (list,),
    "links": (str, list),
    "networks": (list, dict),
    "network_mode": (str,),
    "secrets": (str, list),
    "dns": (str, list),
    "dns_search": (str, list),
    "extra_hosts": (list, dict),
    "healthcheck": (dict,),
    "cap_add": (str, list),
    "tmpfs": (str, list),
    "volumes": (list,),
    "security_opt": (str, list),
    "ulimits": (dict,),
    "sysctls": (list, dict),
    "devices": (list,),
    "deploy": (dict,),
}
"""Maps each key to the types that niso accepts for it. A value of another type is recorded as a
gap."""
ELSEWHERE = {
    "logging": "niso keeps the output itself: niso logs",
    "privileged": "list the capabilities that it needs in isolation.capabilities",
    "configs": "mount the file as a volume, read-only",
    "external_links": "the services must share a network",
    "extends": "copy the keys of the other service",
}
