"""Parse [healthcheck], [isolation], [limits], [sysctls], [secrets], [volumes] and schedules.

A health check is a connection or a command. A connection is made from inside the service's network
namespace, and only to the service's loopback or to its own addresses. A command runs inside the
service. A secret is a file of the host that the service sees below /run/secrets, where only the
service's user can read it. `niso.runtime.volumes` resolves the mount point of a volume through the
symbolic links of the rootfs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from niso.base import signals
from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import ip_address
from niso.base.text import shown
from niso.manifest import values
from niso.manifest.values import join
from niso.plan.records import SENDS_RAW, PortMapping
from niso.plan.specs import NOT_DEVICES, UNLIMITED, Device, taken

if TYPE_CHECKING:
    from typing import Any


# --- [service] and [deploy] ----------------------------------------------------------------------


MAX_REPLICAS = 16
MAX_SPREAD = 16  # host ports of one entry of network.ports: each is a separate element


def signal(text: str, key: str) -> str:
    """Return the name of a signal without ``SIG``. ``text`` is its name or number. Only the signals
    of signal(7) are valid. Raises InvalidInput.
    """
    known = signals.numbers()
    numbers = {str(number): name for name, number in known.items()}
    name = numbers.get(text, text.upper()).removeprefix("SIG")
    if f"SIG{name}" not in known:
        right = "a signal of signal(7), such as TERM, INT, QUIT or USR1"
        raise values.wrong(key, text, "is no signal", right, '"QUIT"')
    return name


_CRON = {
    "minutely": "* * * * *",
    "hourly": "0 * * * *",
    "daily": "0 0 * * *",
    "weekly": "0 0 * * Mon",
    "monthly": "0 0 1 * *",
    "quarterly": "0 0 1 1,4,7,10 *",
    "semiannually": "0 0 1 1,7 *",
    "yearly": "0 0 1 1 *",
    "annually": "0 0 1 1 *",
}
"""Maps the words for calendar events of systemd.time(7) to the same times in the form of
crontab(5)."""
_WEEK = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
CALENDAR = r"^[A-Za-z0-9*][A-Za-z0-9*,./:~_+ -]*$"


def _calendar_pattern() -> str:
    part = r"(?:\*|[0-9]{1,4}(?:\.\.[0-9]{1,4})?)(?:/[1-9][0-9]{0,3})?"
    parts = f"{part}(?:,{part})*"
    day = (
        "(?:Mon(?:day)?|Tue(?:sday)?|Wed(?:nesday)?|Thu(?:rsday)?|Fri(?:day)?|Sat(?:urday)?"
        "|Sun(?:day)?)"
    )
    days = rf"{day}(?:(?:\.\.|-){day})?"
    return (
        rf"(?:(?P<days>{days}(?:,{days})*) ?\b)?"
        rf"(?: ?(?:(?P<year>{parts})-)?(?P<month>{parts})(?P<end>[-~])(?P<day>{parts}))?"
        rf"(?: ?(?P<hour>{parts}):(?P<minute>{parts})(?::(?P<second>{parts}))?)?"
        r"(?: (?P<zone>[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)*))?"
    )


_RANGES = {
    "year": (1970, 2199),
    "month": (1, 12),
    "day": (1, 31),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}


def _calendar_parts(text: str) -> dict[str, str] | None:
    """Return {part: text} of a calendar event of systemd.time(7), or None if it is invalid. A
    missing part is "". Some parts, such as the time zone, are checked only by systemd.
    """
    found = re.fullmatch(_calendar_pattern(), text, re.ASCII | re.IGNORECASE)
    parts = {} if found is None else found.groupdict("")
    if not any(parts[name] for name in ("days", "month", "hour") if parts):
        return None
    for name, (low, high) in _RANGES.items():
        numbers = re.findall(r"(?<![0-9/])[0-9]+", parts[name])
        if not all(low <= int(number) <= high for number in numbers):
            return None
    return parts


def calendar(text: str, key: str) -> str:
    """Check a calendar event of systemd.time(7), and return it with single spaces. Raises
    InvalidInput. If ``text`` has the form of crontab(5), the error proposes a calendar event for
    the same times.
    """
    plain = " ".join(text.split())
    right = "a calendar event of systemd.time(7), such as daily, Mon..Fri 08:00 or *-*-* 03:00"
    reason, example = "is not a valid time", "*-*-* 03:00"
    if plain.lower() in _CRON:
        return plain.lower()
    valid = len(plain) <= MAX_CALENDAR and _calendar_parts(plain) is not None
    if not valid and (converted := _of_cron(plain)):
        reason, example = "is a time of cron", converted
    values.require(text, key, None if valid else reason, right, f'"{example}"')
    return plain


MAX_CALENDAR = 200


def cron(schedule: str) -> str | None:
    """Convert a calendar event to crontab(5). Returns None if crontab(5) cannot express it."""
    if schedule in _CRON:
        return _CRON[schedule]
    parts = _calendar_parts(schedule)
    if parts is None or parts["zone"] or parts["end"] == "~" or parts["year"] not in ("", "*"):
        return None
    if parts["second"] not in ("", "0", "00"):
        return None
    fields = []
    for name, other in (("minute", "0"), ("hour", "0"), ("day", "*"), ("month", "*")):
        text = re.sub(r"\b0+(?=[0-9])", "", parts[name] or other).replace("..", "-")
        text = re.sub(r"(?<![0-9-])[01]/", "*/", text)
        if re.search(r"(?<![-0-9])[0-9]+/", text):
            return None
        fields.append(text)
    days = re.sub(r"([A-Za-z]{3})[a-z]*", lambda day: day[1].capitalize(), parts["days"])
    if days and fields[2] != "*":  # cron needs one of them to match, systemd both
        return None
    return " ".join((*fields, days.replace("..", "-") or "*"))


def _of_cron(text: str) -> str | None:
    known = {f"@{word}": word for word in _CRON} | {"@midnight": "daily"}
    fields = text.split()
    if text in known or len(fields) != 5:
        return known.get(text)
    minute, hour, day, month, weekday = fields
    numbered = re.sub(r"\b[0-7]\b", lambda at: _WEEK[int(at[0]) % 7], weekday)
    found = "" if weekday in ("*", "?") else numbered.replace("-", "..") + " "
    times = []
    for field, first in ((month, 1), (day, 1), (hour, 0), (minute, 0)):
        times.append(field.replace("?", "*").replace("-", "..").replace("*/", f"{first}/"))
    times = [time.zfill(2) if time.isdecimal() else time for time in times]
    made = f"{found}*-{times[0]}-{times[1]} {times[2]}:{times[3]}"
    both = found and times[1] != "*"
    return None if both or _calendar_parts(made) is None else made


def of_cron(text: str) -> str | None:
    """Convert times in the form of crontab(5) to a calendar event of systemd.time(7). Returns None
    if the text is invalid, or if no single calendar event has these times.
    """
    return _of_cron(" ".join(text.split()))


def deploy_problems(data: Mapping[str, Any], parsed: Mapping[str, Any]) -> Iterator[InvalidInput]:
    """Yield an error for each key that a manifest may not have with, or without, a service address.

    A service has a service address if it sets service.replicas, or service.update = "start-first".
    ``data`` is the manifest. ``parsed`` maps key paths to its valid values.
    """
    service, network, volumes = (
        table if isinstance(table := data.get(name), dict) else {}
        for name in ("service", "network", "volumes")
    )
    key = "service.replicas" if "replicas" in service else "service.update"
    if "replicas" not in service and service.get("update") != "start-first":
        if data.get("deploy"):
            right = "set service.replicas, or service.update"
            reason = "is not allowed: the service has no service address"
            yield InvalidInput(reason, "remove [deploy]", "deploy", right=right)
        for name, volume in volumes.items():
            if isinstance(volume, dict) and volume.get("shared") is True:
                reason = "is not allowed: the service has one process"
                yield values.wrong(join(join("volumes", name), "shared"), True, reason, "remove it")
        return
    surge = deploy.get("surge", "all") if isinstance(deploy := data.get("deploy"), dict) else "all"
    if surge != "all" and service.get("update", "start-first") != "start-first":
        reason = "is not possible with stop-first, which replaces one instance after the other"
        yield values.wrong("deploy.surge", surge, reason, "remove it")
    is_job = service.get("kind", "service") == "job"
    if is_job:
        yield values.wrong(key, service[key[8:]], "is not allowed for a job", "remove it")
    if (mode := network.get("mode", "bridge")) in ("host", "none", "share"):
        reason = f"is not possible with {key}: a service address needs a network"
        yield values.wrong("network.mode", mode, reason, 'mode = "bridge", or one process')
    if "healthcheck" not in data and not is_job:
        yield InvalidInput(
            "missing table [healthcheck]",
            "add [healthcheck]: an instance gets connections once it is healthy",
            "healthcheck",
            right=f"a health check, because of {key}",
            names_key=False,
        )
    check = data.get("healthcheck")
    if isinstance(check, dict) and check.get("on_unhealthy") == "stop":
        reason = f"is not possible with {key}: an unhealthy instance gets no connections"
        wrong = "healthcheck.on_unhealthy", "stop", reason, '"none" or "restart"'
        yield values.wrong(*wrong)
    for name, volume in volumes.items():
        if not isinstance(volume, dict) or volume.get("shared") is True:
            continue
        if volume.get("tmpfs") is not True and volume.get("mode", "rw") == "rw":
            yield InvalidInput(
                f"is writable, and {key} lets several processes use it",
                "set shared = true if they may write to it at the same time",
                join("volumes", name),
                right='shared = true, mode = "ro" for a path of the host, or tmpfs = true',
                about_key=True,
            )
    yield from _spread_ports(parsed, key)


def _spread_ports(parsed: Mapping[str, Any], key: str) -> Iterator[InvalidInput]:
    """Yield an error for each published port that a service with a service address cannot have."""
    earlier: list[PortMapping] = []
    for path, port in parsed.items():
        if not path.startswith("network.ports["):
            continue
        if port.count > MAX_SPREAD:
            reason = f"has {port.count} ports, too many with {key}"
            yield InvalidInput(
                reason, None, path, value=shown(port.text), right=f"at most {MAX_SPREAD} an entry"
            )
        for other in earlier:
            if port.diverges(other):
                reason = f"and {other.text} lead to different ports, not possible with {key}"
                hint = "use another host port, or the same port of the service"
                yield values.wrong(path, port.text, reason, hint)
        earlier.append(port)


# --- [healthcheck] --------------------------------------------------------------------------------


KINDS = ("tcp", "http", "command")
"""The keys of [healthcheck] that choose the kind of check. Exactly one of them must be set."""
MAX_RETRIES = 1000
MAX_URL = 2048
_RIGHT = (
    "http://HOST:PORT/PATH, where HOST is localhost, a loopback address or the service's own name"
)
_EXAMPLE = '"http://127.0.0.1:8080/health"'
_URL_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?#[]@!$&'()*+,;=%"
)


def url(text: str, key: str, names: Iterable[str] = ()) -> tuple[str, int, str, str]:
    """Parse the URL of a health check to (address to connect to, port, Host header, path).

    The host must be localhost, a loopback address, or one of ``names``, the service's own names.
    The address is "" for localhost and for ``names``. Raises InvalidInput.
    """
    scheme, mark, location = text.partition("://")
    reason = None
    if not text:
        reason = "is empty"
    elif len(text) > MAX_URL:
        reason = f"has more than {MAX_URL} characters"
    elif not _URL_CHARACTERS.issuperset(text):
        reason = "contains a character that must be percent-encoded"
    elif scheme == "https":
        reason = "is not supported: a probe stays inside the service and verifies no certificate"
        reason += ", so use http"
    elif not mark or scheme != "http":
        reason = "is not an http URL"
    if reason:
        raise values.wrong(key, text, reason, _RIGHT, _EXAMPLE)
    location = location.partition("#")[0]
    ends = (location.find("/"), location.find("?"))
    end = min((index for index in ends if index >= 0), default=len(location))
    host, path = location[:end], location[end:] or "/"
    if "@" in host:
        raise values.wrong(key, text, "contains a user or password", _RIGHT, _EXAMPLE)
    bracket, _, after = host.rpartition("]")
    name, colon, number = (
        (bracket[1:], *_after(after)) if bracket.startswith("[") else host.partition(":")
    )
    port = values.port_number(number) if colon else 80
    if port is None:
        raise values.wrong(key, text, "does not have a valid port", "a port, 1 to 65535", _EXAMPLE)
    path = path if path.startswith("/") else f"/{path}"
    return _address(text, key, name, set(names)), port, host, path


def _after(text: str) -> tuple[str, str]:
    return (":", text[1:]) if text.startswith(":") else ("", "") if not text else (":", "?")


def _address(text: str, key: str, name: str, names: set[str]) -> str:
    if name == "localhost" or name in names or name.removesuffix(".niso.local") in names:
        return ""
    if values.is_ipv4(name) and name.startswith("127."):
        return name
    if values.is_ipv6(name) and ip_address(name) == ip_address("::1"):
        return "::1"
    reason = f"{shown(name)} is not the service itself" if name else "it has no host"
    raise values.wrong(key, text, f"is not a valid URL here: {reason}", _RIGHT, _EXAMPLE)


def own_names(name: object, hostname: object, aliases: object) -> set[str]:
    """Return the strings among a service's name, hostname and aliases. The URL of a health check
    may use these names for the service itself.
    """
    more = aliases if isinstance(aliases, list | tuple) else ()
    return {own for own in (name, hostname, *more) if isinstance(own, str)}


def health_problems(section: Mapping[str, Any]) -> Iterator[InvalidInput]:
    """Yield errors unless [healthcheck] has exactly one of tcp, http and a non-empty command."""
    command = section.get("command")
    if isinstance(command, list) and (not command or command[0] == ""):
        right = "a program and its arguments"
        yield values.wrong(
            "healthcheck.command", command, "names no program", right, '["pg_isready", "-q"]'
        )
    given = [kind for kind in KINDS if section.get(kind) is not None]
    for kind in given[1:]:
        reason, right = f"conflicts with healthcheck.{given[0]}", "set only one of them"
        yield values.wrong(f"healthcheck.{kind}", section[kind], reason, right)
    if not given:
        reason, hint = "has no tcp, http or command", "for example tcp = 8080"
        yield InvalidInput(reason, hint, "healthcheck", right="set one of them")


# --- [isolation.resources] ------------------------------------------------------------------------


MIN_MEMORY = 1 << 20
MAX_SIZE = 1 << 60
MIN_PIDS = 2  # PID 1 of the service and its program
MAX_PIDS = 4_194_304  # PID_MAX_LIMIT (linux/threads.h)
MAX_PERCENT = 1_000_000
PIDS = 2048
"""The maximum number of processes and threads if the manifest sets none, as in Podman."""
TMP = 256 << 20
"""The size in bytes of /tmp, /run and /var/tmp each, for a service without a memory limit."""
MIN_TMPFS = 64 << 10
FRAGMENTS = 40
"""The limit of IP fragments per second for a service that can send incomplete packets. The host
keeps the parts of such packets for 30 s, in 4 MiB (net.ipv4.ipfrag_time, ipfrag_high_thresh), which
is enough for 1,600 large packets."""
MAX_RATE = 1_000_000
"""The highest value of the network limits in [isolation.resources], per second."""
WAYS = ("in", "out")
_RATE_UNITS = {"K": 1000, "M": 10**6, "G": 10**9}


def memory_max(text: str, key: str) -> int:
    """Parse a memory limit of at least 1M, such as ``512M``, to bytes. Raises InvalidInput."""
    return _size_in(text, key, MIN_MEMORY, "1M to 1000000000G", '"512M"')


def _size_in(text: str, key: str, low: int, right: str, example: str) -> int:
    size = values.size(text, key)
    values.require(
        text, key, None if low <= size <= MAX_SIZE else "is out of range", right, example
    )
    return size


def rate(text: str, key: str) -> int:
    """Parse a rate in bit/s such as ``100M`` (powers of 1000) to bytes/s. Raises InvalidInput."""
    unit = _RATE_UNITS.get(text[-1:])
    digits = text[:-1]
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else 0
    if unit is None or not number or digits[0] == "0":
        right = "a whole number above 0 with unit K, M or G: bits per second"
        raise values.wrong(key, text, "is not a valid rate", right, '"100M"')
    return values.rate_of_bits(number * unit, key, text)


def way(text: str, key: str) -> str:
    """Return ``text`` if it is a key of network.bandwidth, in or out. Raises InvalidInput."""
    return values.require(
        text, key, None if text in WAYS else "is an unknown direction", "in or out"
    )


def cpu_max(text: str, key: str) -> int:
    """Parse a CPU limit to percent: ``200%`` (two CPUs) is 200. Raises InvalidInput."""
    digits = text.removesuffix("%")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 7 and digits[0] != "0"
    number = int(digits) if is_number else 0
    if digits == text or not 1 <= number <= MAX_PERCENT:
        right = f"1% to {MAX_PERCENT}%, a whole number, where 100% is one CPU"
        raise values.wrong(key, text, "is not a valid CPU limit", right, '"200%"')
    return number


def tmpfs(text: str, key: str) -> int:
    """Parse the size of a tmpfs such as /tmp to bytes. Raises InvalidInput."""
    return _size_in(text, key, MIN_TMPFS, "64K to 1000000000G", '"256M"')


def tmp_default(memory_max: int | None) -> str:
    """Return the default size of /tmp, /run and /var/tmp each, such as ``256M``. ``memory_max`` is
    the service's memory limit in bytes, or None for no limit.
    """
    size = TMP if memory_max is None else memory_max // 4
    if size >= 1 << 39:  # the text of a size has at most nine digits
        return f"{size >> 30}G"
    return f"{size >> 10}K" if size & (1 << 20) - 1 else f"{size >> 20}M"


def fragments_default(capabilities: Collection[str]) -> int:
    """Return the default of fragments_limit, in IP fragments per second, for a service with these
    capabilities. 0 means no limit, for services that cannot send raw packets.
    """
    return 0 if SENDS_RAW.isdisjoint(capabilities) else FRAGMENTS


# --- [limits], [sysctls] and isolation.devices ----------------------------------------------------


_BYTES = frozenset(("as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"))
RLIMITS = (*sorted(_BYTES), "cpu", "locks", "nice", "nofile", "nproc", "rtprio", "rttime")
RLIMITS += ("sigpending",)
"""The resources of setrlimit(2), in lower case without RLIMIT_. Limits in bytes come first."""
RLIMIT = r"^(?:unlimited|[0-9]{1,18}[KMG]?)(?::(?:unlimited|[0-9]{1,18}[KMG]?))?$"
"""A regular expression for a resource limit that is written as text."""
DEVICE = r"^/dev/[^:\u0000-\u001f]+(?::/dev/[^:\u0000-\u001f]+)?(?::(?:r|w|rw))?$"
SYSCTL = r"^net[./][a-z0-9_]+(?:[./][A-Za-z0-9_-]+)+$"
SYSCTL_VALUE = r"^[A-Za-z0-9_-]+(?:[ \t]+[A-Za-z0-9_-]+)*$"
_NISO_SETS = ("accept_ra", "addr_gen_mode", "disable_ipv6", "promote_secondaries", "mcast_solicit")


def rlimit_name(text: str, key: str) -> str:
    """Return ``text`` if it is the name of a resource limit. Raises InvalidInput."""
    reason = None if text in RLIMITS else "is an unknown limit"
    return values.require(text, key, reason, ", ".join(sorted(RLIMITS)))


def rlimit(value: int | str, key: str) -> tuple[int, int]:
    """Parse a limit such as 65536, ``1024:65536``, ``64M`` or ``unlimited`` to (soft, hard). A
    single number is used for both limits, in the units of setrlimit(2). Raises InvalidInput.
    """
    in_bytes = key.rpartition(".")[2] in _BYTES
    right = "a number, unlimited, or SOFT:HARD" + (", also with K, M or G" if in_bytes else "")
    example = '"64M"' if in_bytes else '"1024:65536"'
    parts = [_rlimit(part, in_bytes) for part in str(value).split(":")]
    soft, hard = parts[0], parts[-1]
    if soft is None or hard is None or len(parts) > 2:
        raise values.wrong(key, value, "is not a valid limit", right, example)
    if soft > hard:
        reason = "has a soft limit above the hard limit"
        raise values.wrong(key, value, reason, "SOFT:HARD", example)
    return soft, hard


def _rlimit(text: str, in_bytes: bool) -> int | None:
    if text == "unlimited":
        return UNLIMITED
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1) if in_bytes else 1
    digits = text[:-1] if unit > 1 else text
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
    return None if number is None or number * unit > MAX_SIZE else number * unit


def sysctl_name(text: str, key: str) -> str:
    """Return ``text`` if it is a sysctl that a service may set in its network namespace.

    Parts are separated by dots or slashes. Sysctls of interfaces that niso itself sets are refused,
    because names, addresses and policies depend on them. Raises InvalidInput.
    """
    name = text.replace(".", "/")
    reason, right = None, "a sysctl below net, such as net.core.somaxconn"
    if text == "net":
        reason, right = "is no name", 'a name in quotes: "net.core.somaxconn" = 4096'
    elif not text.startswith(("net.", "net/")):
        reason = "is not a sysctl of the service's network namespace"
    elif not re.fullmatch(SYSCTL, text, re.ASCII):
        reason = "is not a valid name"
    elif name.rpartition("/")[2] in _NISO_SETS:
        reason, right = "is set by niso itself", "remove it"
    return values.require(text, key, reason, right)


def sysctl(value: int | str, key: str) -> str:
    """Return a sysctl's value with tabs between words, as in the kernel. Raises InvalidInput."""
    text = str(value)
    reason = None if re.fullmatch(SYSCTL_VALUE, text, re.ASCII) else "is not a valid value"
    if any(re.fullmatch(r"-?0[xX]?[0-9A-Fa-f]+", word) for word in text.split()):
        reason = "has a number that is not decimal"
    values.require(text, key, reason, "decimal numbers or words, separated by spaces", '"4096"')
    return "\t".join(text.split())


def device(text: str, key: str) -> Device:
    """Parse a device in Docker's form ``HOST[:PATH][:ACCESS]``. Raises InvalidInput.

    Both paths are below /dev. ACCESS is r, w or rw. Docker's default is rwm; the m lets a container
    create the device node itself, and is ignored.
    """
    right, example = "HOST[:PATH][:r|w|rw] with paths below /dev", '"/dev/fuse"'
    paths = text.split(":")
    access = "rw"
    if len(paths) > 1 and not paths[-1].startswith("/"):
        access = paths.pop().replace("m", "")
    reason = None
    if len(paths) > 2 or access not in ("r", "w", "rw"):
        reason = "is not a valid device"
    for path in paths if reason is None else ():
        named = "" if path == text else f"has the path {shown(path)}, which "
        if not path.startswith("/dev/") or not path.isprintable():
            reason = f"{named}is not below /dev"
        elif not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
            reason = f"{named}contains an empty part, . or .."
        elif f"{path}/".startswith(NOT_DEVICES):
            reason = f"{named}is the service's own"
    values.require(text, key, reason, right, example)
    return Device(paths[0], paths[-1], access)


# --- [secrets] ------------------------------------------------------------------------------------


FOLDER = "/run/secrets"
_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def secret_name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a secret and of its file. Raises InvalidInput."""
    valid = 0 < len(text) <= values.MAX_NAME and _CHARACTERS.issuperset(text) and text[0] != "."
    reason = None if valid else "is not a valid name of a secret"
    right = "letters, digits, -, _ and ., first not a dot, at most 63 characters"
    return values.require(text, key, reason, right, "DB_PASSWORD")


def file(text: str, key: str) -> str:
    """Return the path of a secret if it is absolute. `niso.manifest.load` makes it absolute."""
    reason = values.absolute_reason(text)
    return values.require(text, key, reason, "a path of the host", '"./secret.txt"')


def secrets_problems(
    section: Mapping[str, Any], volumes: Mapping[str, Any]
) -> Iterator[InvalidInput]:
    """Yield an error for each volume whose mount point would hide the folder of the secrets."""
    for volume, keys in volumes.items() if section else ():
        mount = keys.get("mount") if isinstance(keys, dict) else None
        if isinstance(mount, str) and (mount == "/run" or f"{mount}/".startswith(f"{FOLDER}/")):
            reason = f"is where [secrets] are: {FOLDER}"
            yield values.wrong(join("volumes", volume) + ".mount", mount, reason, "another path")


# --- [volumes] ------------------------------------------------------------------------------------


def volume_name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a volume and of its folder. Raises InvalidInput."""
    known = _CHARACTERS - {"."}
    valid = 0 < len(text) <= values.MAX_NAME and known.issuperset(text) and text[0].isalpha()
    reason = None if valid else "is not a valid volume name"
    right = "letters, digits, - and _, first a letter, at most 63 characters"
    return values.require(text, key, reason, right, "data")


def mount(text: str, key: str) -> str:
    """Return ``text`` if it is valid as a volume's mount point. Raises InvalidInput."""
    reason = values.absolute_reason(text)
    if reason is None and text != "/" and not {"", ".", ".."}.isdisjoint(text.split("/")[1:]):
        reason = "contains an empty part, . or .."
    if reason is None and (why := taken(text)):
        reason = f"cannot be a mount point: {why}"
    right = "an absolute path in the service, such as /data"
    return values.require(text, key, reason, right, '"/data"')


def host(text: str, key: str) -> str:
    """Return a volume's host path if it is absolute. `niso.manifest.load` makes it absolute."""
    right = "an absolute path on the host, or one beside this file that starts with ./"
    return values.require(text, key, values.absolute_reason(text), right, '"/srv/data"')


def size(text: str, key: str) -> int:
    """Parse the size of a tmpfs volume to bytes. Raises InvalidInput if the value is invalid."""
    return _size_in(text, key, 0, "at most 1000000000G", '"64M"')


def volumes_problems(
    section: Mapping[str, Any], parsed: Mapping[str, Any]
) -> Iterator[InvalidInput]:
    """Yield errors for overlapping mount points, and for keys of a volume that exclude each other.
    ``section`` is the table [volumes]. ``parsed`` maps key paths to parsed values.
    """
    points: dict[str, str] = {}  # mount point -> its key
    above: dict[str, str] = {}  # parent folder of a mount point -> that mount point
    for volume, keys in section.items():
        base = join("volumes", volume)
        if not isinstance(keys, dict):
            continue
        if (key := f"{base}.mount") in parsed:
            yield from _overlapping(parsed[key], key, points, above)
        yield from _combined(keys, base)


def _overlapping(
    point: str, key: str, points: dict[str, str], above: dict[str, str]
) -> Iterator[InvalidInput]:
    """Yield an error if the mount point ``point`` overlaps an earlier one. Then add the point to
    ``points`` and ``above``. ``points`` maps each earlier mount point to its key in the manifest.
    ``above`` maps each parent folder of an earlier mount point to this mount point.
    """
    parts = point.split("/")
    folders = ["/".join(parts[:end]) for end in range(2, len(parts))]
    other = next((folder for folder in folders if folder in points), None)
    reason = "lies below"
    if point in points:
        other, reason = point, "is the same as"
    elif point in above:
        other, reason = above[point], "lies above"
    if other is not None:
        right = "a mount point that does not overlap another"
        yield values.wrong(key, point, f"{reason} {points[other]} ({shown(other)})", right)
    points.setdefault(point, key)
    for folder in folders:
        above.setdefault(folder, point)


def _combined(keys: Mapping[str, Any], base: str) -> Iterator[InvalidInput]:
    tmpfs, bound = keys.get("tmpfs") is True, "host" in keys
    only_host = "only a path of the host has a mode, other volumes are writable"
    for is_wrong, key, reason, right in (
        (tmpfs and bound, "host", f"conflicts with {base}.tmpfs", "set only one of the two"),
        (
            not tmpfs,
            "size",
            "is not allowed: only a tmpfs has a size",
            "remove it, or set tmpfs = true",
        ),
        (not bound, "mode", f"is not allowed: {only_host}", "remove it, or set host"),
    ):
        if is_wrong and key in keys:
            yield values.wrong(f"{base}.{key}", keys[key], reason, right)
