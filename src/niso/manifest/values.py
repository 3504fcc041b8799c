"""Parsers of single values: text in, a checked value out, or `InvalidInput` with the key, the value and what is right.

Nothing here reads a file or knows the tables of a manifest, so commands use the same rules for what is typed on the command line.
``key`` is what the message calls the value: the path of a manifest key, or the word of an argument.
"""

from __future__ import annotations

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.service_spec import User

if TYPE_CHECKING:
    from typing import NoReturn

LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
DIGITS = frozenset("0123456789")
NAME_CHARACTERS = LOWER | DIGITS | {"-"}
MAX_NAME = 63  # a label of RFC 1035, 2.3.4
MAX_STRING = 131_071  # MAX_ARG_STRLEN (linux/binfmts.h) less its NUL: execve takes no longer argument or variable
MAX_ID = 2**32 - 2  # the last uid_t; 2**32 - 1 means "leave as it is" to chown(2)
MAX_PATH = 4095  # PATH_MAX (linux/limits.h) less its NUL

# linux/capability.h, in the order of their numbers.
CAPABILITIES = tuple(
    """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE""".split()  # noqa: SIM905
)

NAME_RIGHT = "a name of a-z, 0-9 and - that starts with a letter, ends with a letter or digit and has at most 63 characters"
NETWORK_RIGHT = "a name of a-z, 0-9 and - that starts with a letter and has at most 63 characters"

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


def escaped(text: str) -> str:
    """``text`` with everything that is not printable written as TOML escapes it, so that nothing reaches a terminal."""
    if text.isprintable():
        return text
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(c if c.isprintable() else short.get(c) or _code(ord(c)) for c in text)


def _code(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def shown(value: object, limit: int = 80, depth: int = 2) -> str:
    """A value of a manifest as TOML would write it, escaped, with at most about ``limit`` characters a string."""
    if isinstance(value, str):
        head = value[:limit].replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped(head)}{"..." if len(value) > limit else ""}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        inner = [shown(item, 40, depth - 1) for item in value[:5]] if depth else []
        return f"[{', '.join([*inner, '...'] if len(value) > len(inner) else inner)}]"
    if isinstance(value, dict):
        pairs = list(value.items())[:5] if depth else []
        inner = [f"{shown(name, 40)} = {shown(item, 40, depth - 1)}" for name, item in pairs]
        return f"{{{', '.join([*inner, '...'] if len(value) > len(inner) else inner)}}}"
    try:
        return escaped(str(value))[:limit]
    except ValueError:  # an int of more digits than sys.set_int_max_str_digits allows
        return "a very large number"


def wrong(key: str, value: object, reason: str, right: str, example: str = "") -> InvalidInput:
    """The error that says which value of which key is wrong, why, and what would be right."""
    hint = f"for example {example}" if example else None
    return InvalidInput(reason, hint, key, value=shown(value), right=right)


def _name_reason(text: str) -> str | None:
    if not text:
        return "it is empty"
    if len(text) > MAX_NAME:
        return f"it has {len(text)} characters"
    for character in text:
        if character not in NAME_CHARACTERS:
            return f"it has the character {shown(character)}"
    return None if text[0] in LOWER else "it does not start with a letter"


def _label_reason(text: str) -> str | None:
    reason = _name_reason(text)
    if reason is None and text.endswith("-"):
        reason = "it ends with -"
    if reason is None and (text in ("host", "localhost") or text.startswith("ip6-")):
        reason = "that name is taken by the system"
    return reason


def service_name(text: str, key: str) -> str:
    """The name of a service. It is a name in /etc/hosts too, so what `host_label` refuses is refused here."""
    if reason := _label_reason(text):
        raise wrong(key, text, reason, NAME_RIGHT, '"api"')
    return text


def host_label(text: str, key: str) -> str:
    """A hostname or alias: one label (RFC 1123, 2.1, in lower case), no ``host``, ``localhost`` or ``ip6-*``."""
    if reason := _label_reason(text):
        raise wrong(key, text, reason, NAME_RIGHT, '"web"')
    return text


def network_name(text: str, key: str) -> str:
    """The name of a network; ``default`` is refused because its bridge would be that of ``niso-default``."""
    reason = _name_reason(text) or (
        "the network of that name is called niso-default" if text == "default" else None
    )
    if reason:
        raise wrong(key, text, reason, NETWORK_RIGHT, '"backend"')
    return text


def _number(text: str, digits: int) -> int | None:
    """The decimal number ``text`` of at most ``digits`` digits without sign or leading zero; None where it is none."""
    if (
        not text
        or len(text) > digits
        or not DIGITS.issuperset(text)
        or (text[0] == "0" and text != "0")
    ):
        return None
    return int(text)


def port_number(text: str) -> int | None:
    """A port, 1 to 65535, or None where ``text`` is none."""
    number = _number(text, 5)
    return number if number and number <= 65535 else None


def duration(text: str, key: str, low: float = 0.0, high: float = 86_400.0) -> float:
    """Seconds of ``200ms``, ``5s``, ``2m`` or ``1h``; ``low`` and ``high`` (seconds) are the ends of its range."""
    right, example = "a whole number with ms, s, m or h", '"10s"'
    digits = text.rstrip("hms")
    unit, number = _DURATION_UNITS.get(text[len(digits) :]), _number(digits, 9)
    if unit is None or number is None:
        raise wrong(key, text, "it is no duration", right, example)
    seconds = number * unit
    if not low <= seconds <= high:
        right = f"a duration from {_short(low)} to {_short(high)}"
        raise wrong(key, text, "it is out of range", right, example)
    return seconds


def _short(seconds: float) -> str:
    for unit in ("h", "m", "s"):
        count = seconds / _DURATION_UNITS[unit]
        if count >= 1 and count.is_integer():
            return f"{count:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


def restart_delay(text: str, key: str) -> float:
    """Seconds to the first restart: it doubles up to a minute, so it can't be nothing and can't be more."""
    return duration(text, key, 0.01, 60.0)


def stop_timeout(text: str, key: str) -> float:
    """Seconds from TERM to KILL; ``0s`` is KILL at once."""
    return duration(text, key, 0.0, 3600.0)


def size(text: str, key: str) -> int:
    """Bytes of ``64K``, ``512M`` or ``2G`` (powers of 1024)."""
    unit, number = _SIZE_UNITS.get(text[-1:]), _number(text[:-1], 9)
    if unit is None or not number:
        raise wrong(key, text, "it is no size", "a whole number above 0 with K, M or G", '"512M"')
    return number * unit


def _octets(text: str) -> tuple[int, ...] | None:
    parts = text.split(".", 4)
    numbers = [_number(part, 3) for part in parts]
    octets = tuple(number for number in numbers if number is not None and number <= 255)
    return octets if len(parts) == len(octets) == 4 else None


def is_ipv4(text: str) -> bool:
    """True for four decimal numbers without leading zeros (RFC 6943, 3.1.1: the strict form)."""
    return _octets(text) is not None


def is_ipv6(text: str) -> bool:
    """True for an IPv6 address in a form of RFC 4291, 2.2, without a zone."""
    if ":" not in text or "%" in text or len(text) > 45:
        return False
    import ipaddress

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _not_unicast(octets: tuple[int, ...]) -> str | None:
    """Why no host of a network can have this address (RFC 6890, table 1 ff.), or None."""
    if octets[0] == 0:
        return "0.0.0.0/8 is no host's address"
    if octets[0] == 127:
        return "127.0.0.0/8 is loopback"
    if octets[:2] == (169, 254):
        return "169.254.0.0/16 is link-local"
    return "it is a multicast or reserved address" if octets[0] >= 224 else None


def ipv4(text: str, key: str) -> str:
    """A unicast IPv4 address that a service can have, as text; whether its network has it is IPAM's to say."""
    octets = _octets(text)
    if octets is None and is_ipv6(text):
        only4 = "only the IPv4 address can be chosen: the IPv6 one is leased, and kept"
        error = wrong(
            key, text, only4, "an IPv4 address where the network has an IPv4 subnet, or none"
        )
        error.hint = f"leave {key} out"
        raise error
    if reason := "it is no IPv4 address" if octets is None else _not_unicast(octets):
        raise wrong(key, text, reason, "an IPv4 address of the network", '"10.99.1.10"')
    return text


def ipv4_prefix(text: str, key: str) -> str:
    """A prefix of unicast IPv4 addresses with no host bits set, as text: ``10.99.1.0/24``. /8 to /30."""
    right, example = "a prefix such as 10.99.1.0/24, from /8 to /30", '"10.99.1.0/24"'
    address, _, length = text.partition("/")
    octets, bits = _octets(address), _number(length, 2)
    if octets is None or bits is None:
        raise wrong(key, text, "it is no IPv4 prefix", right, example)
    if not 8 <= bits <= 30:
        raise wrong(key, text, f"/{bits} is out of range", right, example)
    number = int.from_bytes(bytes(octets))
    start = (number >> (32 - bits) << (32 - bits)).to_bytes(4)
    if number != int.from_bytes(start):
        network = f"{'.'.join(map(str, start))}/{bits}"
        raise wrong(
            key,
            text,
            "it has host bits set",
            f"the network's own address, {network}",
            f'"{network}"',
        )
    if reason := _not_unicast(octets):
        raise wrong(key, text, reason, right, example)
    return text


def user(text: str, key: str) -> User:
    """``uid``, ``uid:gid``, or a name of the rootfs' /etc/passwd (in the characters that useradd(8) takes, or .)."""
    if text[:1] in DIGITS or ":" in text:
        first, colon, second = text.partition(":")
        uid, gid = _number(first, 10), _number(second, 10) if colon else None
        if uid is None or (colon and gid is None):
            _wrong_user(key, text, "it is no uid or uid:gid")
        if max(uid, gid or 0) > MAX_ID:
            _wrong_user(key, text, "the number is out of range")
        return User(None, uid, gid)
    plain = text.replace("-", "").replace("_", "").replace(".", "")
    if not (
        text
        and text[0] not in "-."
        and text.isascii()
        and (plain.isalnum() or not plain)
        and len(text) <= 32
    ):
        _wrong_user(key, text, "it is no user's name")
    return User(text, None, None)


def _wrong_user(key: str, text: str, reason: str) -> NoReturn:
    raise wrong(
        key,
        text,
        reason,
        "uid, uid:gid (0 to 4294967294) or a user's name of the rootfs",
        '"1000:1000"',
    )


def version(text: str, key: str) -> str:
    """A package's version: at most 64 letters, digits and ``. + - _ ~``, starting with a letter or digit."""
    plain = text.translate(dict.fromkeys(map(ord, ".+-_~")))
    if not (text[:1].isalnum() and text.isascii() and plain.isalnum() and len(text) <= 64):
        right = "at most 64 letters, digits and . + - _ ~, a letter or digit first"
        raise wrong(key, text, "it is no version", right, '"1.0.0"')
    return text


def path_reason(text: str) -> str | None:
    """Why this can be no path at all, or None."""
    if not text:
        return "it is empty"
    if not text.isprintable():
        return "it has a control character or one that can't be printed"
    return f"it is longer than {MAX_PATH} bytes" if len(text.encode()) > MAX_PATH else None


def entrypoint(text: str, key: str) -> str:
    """A file of the package (``bin/api``), an absolute path of the rootfs, or a command's name."""
    reason = path_reason(text)
    if reason is None and ".." in text.split("/"):
        reason = "it leaves the package"
    if reason is None and text.endswith("/"):
        reason = "it names a folder"
    if reason:
        right = "a file of the package, an absolute path of the rootfs, or a command on the service's PATH"
        raise wrong(key, text, reason, right, '"bin/api"')
    return text


def working_dir(text: str, key: str) -> str:
    """An absolute path inside the service."""
    reason = path_reason(text) or (None if text.startswith("/") else "it is not absolute")
    if reason:
        raise wrong(key, text, reason, "an absolute path", '"/app"')
    return text


def rootfs(text: str, key: str) -> str:
    """A relative path that does not climb; `niso.manifest.validate` looks whether it is a folder of the package."""
    reason = path_reason(text)
    if reason is None and text.startswith("/"):
        reason = "it is not relative"
    if reason is None and ".." in text.split("/"):
        reason = "it leaves the package's folder"
    if reason:
        raise wrong(key, text, reason, "a folder beside the manifest", '"rootfs"')
    return text


def argument(text: str, key: str) -> str:
    """One argument or value that execve(2) can pass on: no NUL and not too long."""
    reason = "it has a NUL character" if "\0" in text else None
    if reason is None and len(text.encode(errors="surrogatepass")) > MAX_STRING:
        reason = f"it is longer than {MAX_STRING} bytes"
    if reason:
        raise wrong(key, text, reason, f"text without NUL of at most {MAX_STRING} bytes")
    return text


def environment_name(text: str, key: str) -> str:
    """The name of an environment variable (POSIX.1, XBD 8.1, lower case too)."""
    if not (text.isascii() and text.isidentifier() and len(text) <= 255):
        right = "letters, digits and _ that start with no digit, at most 255"
        raise wrong(key, text, "it is no environment variable's name", right, "LOG_LEVEL")
    return text


def capability(text: str, key: str) -> str:
    """A capability's name as in capabilities(7), without CAP_."""
    if text not in CAPABILITIES:
        plain = text.upper().removeprefix("CAP_")
        right = f'"{plain}"' if plain in CAPABILITIES else "a name of capabilities(7) without CAP_"
        raise wrong(key, text, "it is no capability", right, '"NET_BIND_SERVICE"')
    return text
