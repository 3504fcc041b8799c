"""The section [healthcheck]: how niso sees that a service is well.

A probe connects inside the service's network namespace, and to the service alone: its loopback, or its own addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan.records import Healthcheck

if TYPE_CHECKING:
    from typing import Any

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
    """Seconds from one probe to the next."""
    return values.duration(text, key, 0.1, 86_400.0)


def timeout(text: str, key: str) -> float:
    """Seconds that a probe may take; ``ps`` may have to wait for it."""
    return values.duration(text, key, 0.01, 60.0)


def start_period(text: str, key: str) -> float:
    """Seconds from the start in which a failed probe does not count."""
    return values.duration(text, key, 0.0, 3600.0)


def url(text: str, key: str, names: Iterable[str] = ()) -> tuple[str, int, str, str]:
    """(address to connect to, port, host for the request, path) of ``http://...``.

    The address is "" for ``localhost`` and for one of ``names``, which are the service's own. Raises InvalidInput.
    """
    scheme, mark, rest = text.partition("://")
    reason = None
    if not text:
        reason = "it is empty"
    elif len(text) > MAX_URL:
        reason = f"it has more than {MAX_URL} characters"
    elif not _URL_CHARACTERS.issuperset(text):
        reason = "it has a character that a URL cannot have as it is"
    elif scheme == "https":
        reason = (
            "https is not supported: a probe stays inside the service and checks no certificate"
        )
    elif not mark or scheme != "http":
        reason = "it is no http URL"
    if reason:
        raise values.wrong(key, text, reason, _RIGHT, _EXAMPLE)
    rest = rest.partition("#")[0]
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    host, path = rest[:end], rest[end:] or "/"
    if "@" in host:
        raise values.wrong(key, text, "it has a user or password", _RIGHT, _EXAMPLE)
    bracket, _, after = host.rpartition("]")
    name, colon, number = (
        (bracket[1:], *_after(after)) if bracket.startswith("[") else host.partition(":")
    )
    port = values.port_number(number) if colon else 80
    if port is None:
        raise values.wrong(key, text, "its port is none", "a port of 1 to 65535", _EXAMPLE)
    return (
        _address(text, key, name, set(names)),
        port,
        host,
        path if path.startswith("/") else f"/{path}",
    )


def _after(text: str) -> tuple[str, str]:
    """What follows ``[address]``: a colon and the port, or nothing."""
    return (":", text[1:]) if text.startswith(":") else ("", "") if not text else (":", "?")


def _address(text: str, key: str, name: str, names: set[str]) -> str:
    if name == "localhost" or name in names or name.removesuffix(".niso.local") in names:
        return ""
    if values.is_ipv4(name) and name.startswith("127."):
        return name
    if values.is_ipv6(name):
        import ipaddress

        if ipaddress.IPv6Address(name) == ipaddress.IPv6Address(1):
            return "::1"
    reason = f"{values.shown(name)} is not the service itself" if name else "it names no host"
    raise values.wrong(key, text, reason, _RIGHT, _EXAMPLE)


def parse(
    section: Mapping[str, Any], names: Iterable[str], parsed: Mapping[str, Any]
) -> Healthcheck:
    """The check that the section, which has all its keys, asks for; ``names`` are the service's own.

    ``parsed`` are the values of keys whose texts `problems` has parsed. Raises InvalidInput.
    """

    def read[T](rule: Callable[[str, str], T], name: str) -> T:
        key = f"healthcheck.{name}"
        return parsed[key] if key in parsed else rule(section[name], key)

    where: tuple[str, int, str, str | None] = ("", section["tcp"] or 0, "", None)
    if section["http"] is not None:
        where = read(lambda text, key: url(text, key, names), "http")
    return Healthcheck(
        *where,
        read(interval, "interval"),
        read(timeout, "timeout"),
        section["retries"],
        read(start_period, "start_period"),
    )


def own_names(name: object, hostname: object, aliases: object) -> set[str]:
    """The names in a URL that mean the service; what has the wrong type is left out."""
    more = aliases if isinstance(aliases, list | tuple) else ()
    return {each for each in (name, hostname, *more) if isinstance(each, str)}


def problems(
    section: Mapping[str, Any], names: Iterable[str], parsed: dict[str, Any]
) -> list[InvalidInput]:
    """Every wrong value of the section as tomllib returned it; what has the wrong type is left to `niso.manifest.validate.walk`.

    What right texts mean is added to ``parsed``, by their keys.
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
            values.wrong(
                "healthcheck.tcp", tcp, "it is out of range", "a port of 1 to 65535", "8080"
            )
        )
    if type(retries) is int and not 1 <= retries <= MAX_RETRIES:
        right = f"a number of 1 to {MAX_RETRIES}"
        errors.append(
            values.wrong("healthcheck.retries", retries, "it is out of range", right, "3")
        )
    if tcp is not None and http is not None:
        errors.append(
            values.wrong(
                "healthcheck.http", http, "healthcheck.tcp is there too", "one of the two keys"
            )
        )
    if tcp is None and http is None:
        errors.append(
            InvalidInput(
                "has neither tcp nor http",
                "for example tcp = 8080",
                "healthcheck",
                right="one of the two",
            )
        )
    return errors
