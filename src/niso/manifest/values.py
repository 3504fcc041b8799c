"""Parse and check single values, such as names, durations, sizes and addresses.

Each function raises InvalidInput for an invalid text, with the key, the value and the valid form.
Commands check their arguments with the same functions. The parameter ``key`` names the value in
messages: it is the path of a manifest key, or the name of an argument.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from niso.base import names, text
from niso.plan.specs import ProcessUser

# --- one value ------------------------------------------------------------------------------------

# plugins check names too, without this module
LOWER, DIGITS, NAME_CHARACTERS = names.LOWER, names.DIGITS, names.NAME_CHARACTERS
MAX_NAME, NAME_RIGHT, NETWORK_RIGHT = names.MAX_NAME, names.NAME_RIGHT, names.NETWORK_RIGHT
wrong, require = names.wrong, names.require
service_name, host_label, network_name = names.service_name, names.host_label, names.network_name

MAX_STRING = 131_071  # bytes of an argument or variable: MAX_ARG_STRLEN (linux/binfmts.h) less NUL
MAX_ID = 2**32 - 2  # the last uid_t; 2**32 - 1 means "do not change" to chown(2)
MAX_PATH = 4095  # PATH_MAX (linux/limits.h) less its NUL
MIN_RATE, MAX_BANDWIDTH = 64_000, 100 * 10**9  # bits per second

# linux/capability.h, in the order of their numbers.
CAPABILITIES = tuple(
    """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE""".split()  # noqa: SIM905
)

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


def _number(text: str, digits: int) -> int | None:
    is_valid = text and len(text) <= digits and DIGITS.issuperset(text)
    return int(text) if is_valid and (text[0] != "0" or text == "0") else None


def port_number(text: str) -> int | None:
    """Parse a port from 1 to 65535. Returns None if the text is invalid."""
    number = _number(text, 5)
    return number if number and number <= 65535 else None


def duration(text: str, key: str, low: float = 0.0, high: float = 86_400.0) -> float:
    """Parse a duration such as ``200ms``, ``5s``, ``2m`` or ``1h`` to seconds. Raises InvalidInput
    if the text is invalid, or if the duration is less than ``low`` or more than ``high`` seconds.
    """
    right, example = "a whole number with unit ms, s, m or h", '"10s"'
    digits = text.rstrip("hms")
    unit, number = _DURATION_UNITS.get(text[len(digits) :]), _number(digits, 9)
    if unit is None or number is None:
        raise wrong(key, text, "is not a valid duration", right, example)
    seconds = number * unit
    if not low <= seconds <= high:
        right = f"{_short(low)} to {_short(high)}"
        raise wrong(key, text, "is out of range", right, example)
    return seconds


def _short(seconds: float) -> str:
    for unit in ("h", "m", "s"):
        count = seconds / _DURATION_UNITS[unit]
        if count >= 1 and count.is_integer():
            return f"{count:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


def size(text: str, key: str) -> int:
    """Parse a size such as ``512M`` or ``2G`` to bytes (powers of 1024). Raises InvalidInput."""
    unit, number = _SIZE_UNITS.get(text[-1:]), _number(text[:-1], 9)
    if unit is None or not number:
        right = "a whole number above 0 with unit K, M or G"
        raise wrong(key, text, "is not a valid size", right, '"512M"')
    return number * unit


def ipv4_octets(text: str) -> tuple[int, ...] | None:
    """Return the octets of an IPv4 address in strict form (RFC 6943, 3.1.1), or else None."""
    parts = text.split(".", 4)
    numbers = [_number(part, 3) for part in parts]
    octets = tuple(number for number in numbers if number is not None and number <= 255)
    return octets if len(parts) == len(octets) == 4 else None


def is_ipv4(text: str) -> bool:
    return ipv4_octets(text) is not None


def is_ipv6(text: str) -> bool:
    """Return whether ``text`` is an IPv6 address in a form of RFC 4291, 2.2, without a zone."""
    if ":" not in text or "%" in text or len(text) > 45:
        return False
    import ipaddress

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def not_unicast(octets: tuple[int, ...]) -> str | None:
    """Return why no host can have this IPv4 address (RFC 6890, 2.2.2), or None if a host can."""
    if octets[0] == 0:
        return "is in 0.0.0.0/8, which no host can have"
    if octets[0] == 127:
        return "is in 127.0.0.0/8, which is loopback"
    if octets[:2] == (169, 254):
        return "is in 169.254.0.0/16, which is link-local"
    return "is a multicast or reserved address" if octets[0] >= 224 else None


def user(text: str, key: str) -> ProcessUser:
    """Parse a service's user: a uid, ``uid:gid``, or the name of a user in the root file system. A
    name has the form of useradd(8), and may contain dots. Raises InvalidInput.
    """
    right = "uid or uid:gid with numbers up to 4294967294, or a user name of the rootfs"
    reason, user = None, ProcessUser(text, None, None)
    if text[:1] in DIGITS or ":" in text:
        first, colon, second = text.partition(":")
        uid, gid = _number(first, 10), _number(second, 10) if colon else None
        if uid is None or (colon and gid is None):
            reason = "is not a valid uid or uid:gid"
        elif max(uid, gid or 0) > MAX_ID:
            reason = "is out of range"
        user = ProcessUser(None, uid, gid)
    else:
        plain = text.replace("-", "").replace("_", "").replace(".", "")
        is_valid = text and text[0] not in "-." and text.isascii() and len(text) <= 32
        if not is_valid or not (plain.isalnum() or not plain):
            reason = "is not a valid user name"
    require(text, key, reason, right, '"1000:1000"')
    return user


def version(text: str, key: str) -> str:
    """Return ``text`` if it is valid as the version of a package. Raises InvalidInput."""
    plain = text.translate(dict.fromkeys(map(ord, ".+-_~")))
    valid = text[:1].isalnum() and text.isascii() and plain.isalnum() and len(text) <= 64
    right = "at most 64 letters, digits and . + - _ ~, first a letter or digit"
    return require(text, key, None if valid else "is not a valid version", right, '"1.0.0"')


def path_reason(text: str) -> str | None:
    """Return why ``text`` is not valid as a path, or None if it is valid."""
    if not text:
        return "is empty"
    if not text.isprintable():
        return "contains an unprintable character"
    return f"is longer than {MAX_PATH} bytes" if len(text.encode()) > MAX_PATH else None


def absolute_reason(text: str) -> str | None:
    """Return why ``text`` is not valid as an absolute path, or None if it is valid."""
    return path_reason(text) or (None if text.startswith("/") else "is not absolute")


def entrypoint(text: str, key: str) -> str:
    """Return ``text`` if it can be an entrypoint: a file in the package, a path, or a command."""
    reason = path_reason(text)
    if reason is None and ".." in text.split("/"):
        reason = "leaves the package"
    if reason is None and text.endswith("/"):
        reason = "is a folder"
    places = "a file of the package, an absolute path in the rootfs"
    return require(text, key, reason, f"{places}, or a command on the service's PATH", '"bin/api"')


def working_dir(text: str, key: str) -> str:
    """Return ``text`` if it is an absolute path. Raises InvalidInput if the value is invalid."""
    return require(text, key, absolute_reason(text), "an absolute path", '"/app"')


def rootfs(text: str, key: str) -> str:
    """Return ``text`` if it is valid as the path of a rootfs: below the package, or absolute."""
    reason = path_reason(text)
    if reason is None and ".." in text.split("/"):
        reason = "leaves the package's folder"
    if reason is None and not text.strip("/"):
        reason = "is the host's own"
    return require(text, key, reason, ROOTFS_RIGHT, '"rootfs"')


ROOTFS_RIGHT = "a folder beside the manifest, or an absolute path"
IMAGE_RIGHT = "an OCI layout (index.json) or an unpacked bundle (config.json and rootfs)"


def image_path(text: str, key: str) -> str:
    """Return ``text`` if it is valid as the path of an image. Raises InvalidInput."""
    reason = path_reason(text)
    if reason is None and ".." in text.split("/"):
        reason = "contains .."
    return require(text, key, reason, IMAGE_RIGHT, '"images/redis"')


def path_below(text: str, key: str, folder: str) -> str:
    """Join ``folder`` and the path ``text``. Raises InvalidInput if the result is not below it."""
    home = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(home, text))
    if ".." in text.split("/") or path_reason(text) or not f"{path}/".startswith(f"{home}/"):
        reason = path_reason(text) or "leaves the folder of this file"
        raise wrong(key, text, reason, "a path below it, or an absolute one", '"./data"')
    return path


def argument(text: str, key: str) -> str:
    """Return ``text`` if execve(2) accepts it as an argument. Raises InvalidInput."""
    reason = "contains a NUL character" if "\0" in text else None
    if reason is None and len(text.encode(errors="surrogatepass")) > MAX_STRING:
        reason = f"is longer than {MAX_STRING} bytes"
    return require(text, key, reason, f"text without NUL, at most {MAX_STRING} bytes")


def environment_name(text: str, key: str) -> str:
    """Return ``text`` if it is valid as the name of an environment variable (POSIX.1, XBD 8.1)."""
    valid = text.isascii() and text.isidentifier() and len(text) <= 255
    reason = None if valid else "is not a valid environment variable name"
    right = "letters, digits and _, first not a digit, at most 255 characters"
    return require(text, key, reason, right, "LOG_LEVEL")


def capability(text: str, key: str) -> str:
    """Return a capability's name (capabilities(7)) without the prefix CAP_. Raises InvalidInput."""
    plain = text.upper().removeprefix("CAP_")
    right = f'"{plain}"' if plain in CAPABILITIES else "a name of capabilities(7)"
    name = text.removeprefix("CAP_")
    reason = None if name in CAPABILITIES else "is not a valid capability"
    require(text, key, reason, right, '"NET_BIND_SERVICE"')
    return name


# --- lists of texts -------------------------------------------------------------------------------


def join(base: str, name: str) -> str:
    """Append the key ``name`` to the key path ``base``, in quotes if TOML requires them."""
    bare = name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    part = name if bare else text.shown(name)
    return f"{base}.{part}" if base else part


def texts(items: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield (key path, string) for each string in ``items``, an array or table at ``key``."""
    if isinstance(items, list):
        pairs = [(f"{key}[{index}]", item) for index, item in enumerate(items)]
    else:
        pairs = (
            [(join(key, name), item) for name, item in items.items()]
            if isinstance(items, dict)
            else []
        )
    yield from (pair for pair in pairs if isinstance(pair[1], str))


def rate_of_bits(bits: int, key: str, written: object) -> int:
    """Convert a rate from bits to bytes per second. Raises InvalidInput if it is out of range."""
    if not MIN_RATE <= bits <= MAX_BANDWIDTH:
        raise wrong(key, written, "is out of range", "64K to 100G bits per second", '"100M"')
    return bits // 8
