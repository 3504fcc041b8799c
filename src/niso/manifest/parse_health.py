"""Parse [healthcheck]: how niso checks that a service is healthy.

A probe is a connection from inside the service's network namespace, only to the service itself: its
loopback or its own addresses. Or it is a command that runs inside the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan.records import Healthcheck

if TYPE_CHECKING:
    from typing import Any

KINDS = ("tcp", "http", "command")
"""The keys of which a health check has exactly one."""
INTERVAL, TIMEOUT, RETRIES, START_PERIOD = "5s", "2s", 3, "10s"
MAX_RETRIES = 1000
MAX_URL = 2048
_RIGHT = (
    "http://HOST:PORT/PATH, where HOST is localhost, a loopback address or the service's own name"
)
_EXAMPLE = '"http://127.0.0.1:8080/health"'
_URL_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?#[]@!$&'()*+,;=%"
)


def interval(text: str, key: str) -> float:
    """Parse the time between two probes to seconds. Raises InvalidInput."""
    return values.duration(text, key, 0.1, 86_400.0)


def timeout(text: str, key: str) -> float:
    """Parse the time limit of a probe to seconds; ``ps`` may wait for it. Raises InvalidInput."""
    return values.duration(text, key, 0.01, 60.0)


def start_period(text: str, key: str) -> float:
    """Parse the time after the start in which failed probes do not count to seconds.

    Raises InvalidInput.
    """
    return values.duration(text, key, 0.0, 3600.0)


def url(text: str, key: str, names: Iterable[str] = ()) -> tuple[str, int, str, str]:
    """Parse ``http://...`` to (address to connect to, port, Host header, path).

    The address is "" for ``localhost`` and for ``names``, the service's own. Raises InvalidInput.
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
        reason = (
            "is not supported: a probe stays inside the service and verifies no certificate, "
            "so use http"
        )
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
    return (
        _address(text, key, name, set(names)),
        port,
        host,
        path if path.startswith("/") else f"/{path}",
    )


def _after(text: str) -> tuple[str, str]:
    """Split the text after ``[address]`` to (colon, port); ("", "") without a port."""
    return (":", text[1:]) if text.startswith(":") else ("", "") if not text else (":", "?")


def _address(text: str, key: str, name: str, names: set[str]) -> str:
    """Return the address to connect to for a URL's host. Raises InvalidInput."""
    if name == "localhost" or name in names or name.removesuffix(".niso.local") in names:
        return ""
    if values.is_ipv4(name) and name.startswith("127."):
        return name
    if values.is_ipv6(name):
        import ipaddress

        if ipaddress.IPv6Address(name) == ipaddress.IPv6Address(1):
            return "::1"
    reason = f"{values.shown(name)} is not the service itself" if name else "it has no host"
    raise values.wrong(key, text, f"is not a valid URL here: {reason}", _RIGHT, _EXAMPLE)


def parse(
    section: Mapping[str, Any], names: Iterable[str], parsed: Mapping[str, Any]
) -> Healthcheck:
    """Build the Healthcheck of a section that has all its keys.

    ``names`` are the service's own. ``parsed`` has the values that `problems` has parsed, by key.
    Raises InvalidInput.
    """

    def read[T](rule: Callable[[str, str], T], name: str) -> T:
        key = f"healthcheck.{name}"
        return parsed[key] if key in parsed else rule(section[name], key)

    target: tuple[str, int, str, str | None] = ("", section["tcp"] or 0, "", None)
    if section["http"] is not None:
        target = read(lambda text, key: url(text, key, names), "http")
    return Healthcheck(
        *target,
        read(interval, "interval"),
        read(timeout, "timeout"),
        section["retries"],
        read(start_period, "start_period"),
        tuple(section["command"] or ()),
    )


def own_names(name: object, hostname: object, aliases: object) -> set[str]:
    """Return the host names that mean the service itself in a URL; wrong types are skipped."""
    more = aliases if isinstance(aliases, list | tuple) else ()
    return {own for own in (name, hostname, *more) if isinstance(own, str)}


def problems(
    section: Mapping[str, Any], names: Iterable[str], parsed: dict[str, Any]
) -> list[InvalidInput]:
    """Return an error for each invalid value of the section, given as tomllib returned it.

    Values of a wrong type are skipped: `niso.manifest.validate.walk` reports them.
    Valid values are added to ``parsed`` under their keys.
    """
    errors: list[InvalidInput] = []
    for name, rule in (
        ("interval", interval),
        ("timeout", timeout),
        ("start_period", start_period),
    ):
        text = section.get(name)
        if isinstance(text, str):
            key = f"healthcheck.{name}"
            try:
                parsed[key] = rule(text, key)
            except InvalidInput as error:
                errors.append(error)
    tcp, http, retries = section.get("tcp"), section.get("http"), section.get("retries")
    if isinstance(http, str):
        try:
            parsed["healthcheck.http"] = url(http, "healthcheck.http", names)
        except InvalidInput as error:
            errors.append(error)
    if type(tcp) is int and not 1 <= tcp <= 65535:
        errors.append(
            values.wrong("healthcheck.tcp", tcp, "is not a valid port", "1 to 65535", "8080")
        )
    if type(retries) is int and not 1 <= retries <= MAX_RETRIES:
        right = f"1 to {MAX_RETRIES}"
        errors.append(values.wrong("healthcheck.retries", retries, "is out of range", right, "3"))
    errors += _command(section.get("command"))
    given = [kind for kind in KINDS if section.get(kind) is not None]
    for kind in given[1:]:
        reason, right = f"conflicts with healthcheck.{given[0]}", "set only one of them"
        errors.append(values.wrong(f"healthcheck.{kind}", section[kind], reason, right))
    if not given:
        reason, hint = "has no tcp, http or command", "for example tcp = 8080"
        errors.append(InvalidInput(reason, hint, "healthcheck", right="set one of them"))
    return errors


def _command(words: object) -> Iterator[InvalidInput]:
    """Yield an error for each invalid word of a command; none if it is not an array."""
    key = "healthcheck.command"
    if not isinstance(words, list):
        return
    if not words or words[0] == "":
        right = "a program and its arguments"
        yield values.wrong(key, words, "names no program", right, '["pg_isready", "-q"]')
    for index, word in enumerate(words):
        if isinstance(word, str):
            try:
                values.argument(word, f"{key}[{index}]")
            except InvalidInput as error:
                yield error
