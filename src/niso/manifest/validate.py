"""What is wrong with a manifest, all of it: `walk` finds wrong keys and types, `rules` wrong values.

Both look at what tomllib returned. `walk` only runs after `niso.base.convert.convert` refused; `rules` skip what has the wrong type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import NoneType

from niso.base import convert
from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK
from niso.manifest import parse_health, parse_resources, parse_volumes, values
from niso.manifest.parse_policy import parse_egress, parse_ingress
from niso.manifest.parse_ports import contradictions, parse_port
from niso.plan.records import Port

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind

TEXT_RULES: dict[str, Callable[[str, str], object]] = {
    "package.name": values.service_name,
    "package.version": values.version,
    "package.rootfs": values.rootfs,
    "binary.entrypoint": values.entrypoint,
    "binary.working_dir": values.working_dir,
    "service.user": values.user,
    "service.restart_delay": values.restart_delay,
    "service.stop_timeout": values.stop_timeout,
    "network.share": values.service_name,
    "network.network": values.network_name,
    "network.hostname": values.host_label,
    "network.ip": values.ipv4,
}
ARRAY_RULES: dict[str, Callable[[str, str], object]] = {
    "binary.args": values.argument,
    "isolation.capabilities": values.capability,
    "network.networks": values.network_name,
    "network.aliases": values.host_label,
    "network.policy.allow_from": parse_ingress,
    "network.policy.deny_from": parse_ingress,
    "network.policy.egress.allow": parse_egress,
    "network.policy.egress.deny": parse_egress,
}
MORE_RULES: dict[str, Callable[[str, str], object]] = {
    "isolation.resources.memory_max": parse_resources.memory_max,
    "isolation.resources.cpu_max": parse_resources.cpu_max,
    "healthcheck.interval": parse_health.interval,
    "healthcheck.timeout": parse_health.timeout,
    "healthcheck.start_period": parse_health.start_period,
    "healthcheck.http": lambda text, key: parse_health.url(text, key, ()),
    "network.ports": parse_port,
}
"""The rules of other keys, or of their items, which `rules` has others ask for."""
_OF_A_BRIDGE = ("network", "networks", "ip", "aliases", "policy")
WITHOUT = {
    "host": (*_OF_A_BRIDGE, "ports", "hostname", "share"),
    "none": (*_OF_A_BRIDGE, "ports", "share"),
    "share": (*_OF_A_BRIDGE, "hostname"),
    "bridge": ("share",),
}
"""The keys of [network] that mean nothing in a mode, and so are errors there."""
_WHY = {
    "host": 'with mode = "host" it has the host\'s own network',
    "none": 'with mode = "none" it has no network',
    "share": 'with mode = "share" it has the network of another service',
    "bridge": 'mode is "bridge"',
}
_FORMS = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a floating-point number",
    list: "an array",
    dict: "a table",
    NoneType: "null",
}
_MAX_GUESSES = 20  # unknown keys of one table for which a near one is looked for: difflib is slow


def join(base: str, name: str) -> str:
    """The path of a key as TOML writes it, escaped: ``environment."A B"``."""
    bare = name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    part = name if bare else values.shown(name)
    return f"{base}.{part}" if base else part


def walk(data: object, table: type, key: str = "") -> list[InvalidInput]:
    """Every unknown or missing key and every wrong type of ``data``, which should be a ``table``; ``key`` is what it is called."""
    return list(_walk(data, {dict: table}, key))


def _walk(value: Any, may_be: Kind, key: str) -> Iterator[InvalidInput]:
    form = type(value)
    inside: Any = may_be.get(form)
    unlike = form is str and inside is not None and value not in inside
    if form not in may_be or unlike:
        reason = (
            "it is none of the choices" if unlike else f"it is {_FORMS.get(form, 'a date or time')}"
        )
        yield values.wrong(key, value, reason, _words(may_be), _example(value, may_be, key))
    elif form is list:
        for index, item in enumerate(value):
            yield from _walk(item, inside, f"{key}[{index}]")
    elif convert.is_table(inside):
        yield from _walk_table(value, inside, key)
    elif form is dict:
        for name, item in value.items():
            yield from _walk(item, inside, join(key, name))


def _walk_table(data: dict[str, object], table: Any, key: str) -> Iterator[InvalidInput]:
    known = convert.fields(table)
    guesses = 0
    for name, value in data.items():
        path = join(key, name)
        if name in known:
            yield from _walk(value, known[name], path)
        else:
            guesses += 1
            near = nearest(name, list(known)) if guesses <= _MAX_GUESSES else None
            right = f"{join(key, near)}" if near else f"one of {', '.join(known)}"
            yield InvalidInput(
                "the key is unknown",
                f"did you mean {join(key, near)}?" if near else f"leave {path} out",
                path,
                value=values.shown(value),
                right=right,
            )
    for name in convert.required(table):
        if name not in data:
            path = join(key, name)
            hint = (
                f"add [{path}]"
                if dict in known[name]
                else f"add {name} to [{key}]"
                if key
                else f"add [[{path}]]"
            )
            yield InvalidInput("is missing", hint, path, right=_words(known[name]))


def _words(may_be: Kind) -> str:
    """What such a value is called in TOML, which has no None."""
    words: list[str] = []
    for form, inside in may_be.items():
        if form is str and inside:
            words += [values.shown(choice) for choice in inside]
        elif form is not NoneType:
            words.append("true or false" if form is bool else _FORMS[form])
    return " or ".join(words)


def _example(value: object, may_be: Kind, key: str) -> str:
    """What was probably meant: a number in quotes, with a unit where the key needs one, or a string in brackets; as the key takes it."""
    if (
        str in may_be
        and may_be[str] is None
        and isinstance(value, int | float)
        and abs(value) < 10**18
    ):
        text = str(value).lower()
        return _accepted(_rule(key), key, text, *(f"{text}{unit}" for unit in ("s", "M", "%")))
    if isinstance(value, str) and list in may_be:
        found = _accepted(_rule(f"{key}[0]"), key, value)
        return f"[{found}]" if found else ""
    return ""


def _rule(key: str) -> Callable[[str, str], object] | None:
    """The rule for the text of a key, as far as there is one."""
    array, bracket, _ = key.rpartition("[")
    if bracket:
        return ARRAY_RULES.get(array) or MORE_RULES.get(array)
    if key.startswith("volumes."):
        return {
            "mount": parse_volumes.mount,
            "host": parse_volumes.host,
            "size": parse_volumes.size,
        }.get(key.rpartition(".")[2])
    return (
        values.ipv4 if key.startswith("network.ip.") else TEXT_RULES.get(key) or MORE_RULES.get(key)
    )


def _accepted(rule: Callable[[str, str], object] | None, key: str, *texts: str) -> str:
    """The first of ``texts`` that the rule takes, else the rule's own example; in quotes."""
    hint = ""
    for text in texts:
        try:
            if rule is not None:
                rule(text, key)
            return values.shown(text)
        except InvalidInput as error:
            hint = hint or (error.hint or "").removeprefix("for example ")
    return hint


def nearest(name: str, known: list[str]) -> str | None:
    """The one of ``known`` that was probably meant."""
    if len(name) > values.MAX_NAME:
        return None
    import difflib

    return next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)


def _table(data: dict[str, Any], path: str) -> dict[str, Any]:
    """The table of that path, ``network.policy``; an empty one where there is none."""
    for name in path.split("."):
        data = data.get(name, {})
        if not isinstance(data, dict):
            return {}
    return data


def _texts(items: object, key: str) -> Iterator[tuple[str, str]]:
    """Path and text of each string of an array or table."""
    if isinstance(items, list):
        yield from (
            (f"{key}[{index}]", item) for index, item in enumerate(items) if isinstance(item, str)
        )
    elif isinstance(items, dict):
        yield from (
            (join(key, name), item) for name, item in items.items() if isinstance(item, str)
        )


def rules(data: dict[str, object], folder: str, parsed: dict[str, Any]) -> list[InvalidInput]:
    """Every wrong value of ``data``; ``folder`` is the package's, in which rootfs must be a folder.

    What right texts mean is added to ``parsed``, by their keys: ``network.ports[0]``.
    """
    errors: list[InvalidInput] = []

    def parse(rule: Callable[[str, str], object], text: str, key: str) -> None:
        try:
            parsed[key] = rule(text, key)
        except InvalidInput as error:
            errors.append(error)

    for key, rule in TEXT_RULES.items():
        section, _, name = key.partition(".")
        value = _table(data, section).get(name)
        if isinstance(value, str):
            parse(rule, value, key)
    for key, rule in ARRAY_RULES.items():
        section, _, name = key.rpartition(".")
        items = _table(data, section).get(name)
        for path, text in _texts(items if isinstance(items, list) else None, key):
            parse(rule, text, path)
    environment = _table(data, "environment")
    for name in environment:
        parse(values.environment_name, name, join("environment", name))
    for path, text in _texts(environment, "environment"):
        parse(values.argument, text, path)
    network = _table(data, "network")
    if isinstance(ip := network.get("ip"), dict):
        for path, text in _texts(ip, "network.ip"):
            parse(values.ipv4, text, path)
    ports = network.get("ports")
    known = list(_texts(ports if isinstance(ports, list) else None, "network.ports"))
    for path, text in known:
        parse(parse_port, text, path)
    errors += _contradictions(
        [(path, text, parsed[path]) for path, text in known if path in parsed]
    )
    errors += parse_resources.problems(_table(data, "isolation.resources"), parsed)
    errors += parse_volumes.problems(_table(data, "volumes"), parsed)
    if isinstance(check := data.get("healthcheck"), dict):
        own = parse_health.own_names(
            _table(data, "package").get("name"), network.get("hostname"), network.get("aliases")
        )
        errors += parse_health.problems(check, own, parsed)
    errors += _modes(network, _table(data, "package").get("name"))
    errors += _networks(network)
    errors += _repeated(network.get("networks"), "network.networks")
    errors += _repeated(network.get("aliases"), "network.aliases")
    rootfs = _table(data, "package").get("rootfs")
    if isinstance(rootfs, str) and not any(error.key == "package.rootfs" for error in errors):
        errors += _rootfs(rootfs, folder)
    return errors


def _contradictions(known: list[tuple[str, str, Port]]) -> Iterator[InvalidInput]:
    """Host ports that two entries publish differently at one address."""
    for place, before in contradictions(port for _, _, port in known):
        path, text, _ = known[place]
        first, earlier, _ = known[before]
        yield values.wrong(
            path, text, f"{first} ({values.shown(earlier)}) has that host port", "another host port"
        )


def _modes(network: dict[str, Any], service: object) -> Iterator[InvalidInput]:
    """What does not go with the mode. Of keys that are wrong in themselves too, both is said."""
    mode = network.get("mode", "bridge")
    if not isinstance(mode, str) or mode not in WITHOUT:
        return
    for name, value in network.items():
        if name in WITHOUT[mode]:
            key = f"network.{name}"
            right = 'mode = "share", or to leave it out' if name == "share" else "to leave it out"
            hint = f"leave {key} out" + (
                "" if mode == "bridge" else f', or mode = "{_fitting(name)}"'
            )
            error = values.wrong(key, value, _WHY[mode], right)
            error.hint = hint
            yield error
    share = network.get("share")
    if mode == "share" and "share" not in network:
        key, right = "network.share", "the name of the service whose network it is to share"
        yield InvalidInput("is missing", 'add share = "NAME" to [network]', key, right=right)
    if mode == "share" and isinstance(share, str) and share == service:
        right = "the name of another service"
        yield values.wrong("network.share", share, "it is the service's own name", right)


def _fitting(name: str) -> str:
    """A mode in which a key of [network] is right."""
    return "share" if name == "share" else "bridge"


def _networks(network: dict[str, Any]) -> Iterator[InvalidInput]:
    several, ip = network.get("networks"), network.get("ip")
    if "network" in network and "networks" in network:
        yield values.wrong(
            "network.networks", several, "network.network is there too", "one of the two keys"
        )
    if several == []:
        yield values.wrong(
            "network.networks", several, "it is empty", "one network or more", '["backend"]'
        )
    names = several if isinstance(several, list) else [network.get("network", DEFAULT_NETWORK)]
    if isinstance(ip, str) and len(names) > 1:
        example = f"{{ {names[0]} = {values.shown(ip)} }}" if isinstance(names[0], str) else ""
        yield values.wrong(
            "network.ip",
            ip,
            "there are several networks",
            "a table of network and address",
            example,
        )
    if isinstance(ip, dict):
        known = {name for name in names if isinstance(name, str)}
        for name in (name for name in ip if name not in known):
            reason, right = "the service is not on that network", f"one of {values.shown(names)}"
            yield values.wrong(join("network.ip", name), ip[name], reason, right)


def _repeated(items: object, key: str) -> Iterator[InvalidInput]:
    first: dict[str, int] = {}
    for path, text in _texts(items if isinstance(items, list) else None, key):
        index = int(path[len(key) + 1 : -1])
        if first.setdefault(text, index) != index:
            yield values.wrong(path, text, f"{key}[{first[text]}] is the same", "each name once")


def _rootfs(rootfs: str, folder: str) -> Iterator[InvalidInput]:
    home = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(home, rootfs))
    right, example = "a folder beside the manifest", '"rootfs"'
    if path == home or os.path.commonpath((path, home)) != home:
        reason = (
            "it is the package's own folder"
            if path == home
            else "it leads out of the package's folder"
        )
        yield values.wrong("package.rootfs", rootfs, reason, right, example)
    elif not os.path.isdir(path):
        reason = "it is no folder" if os.path.lexists(path) else "there is no such folder"
        yield values.wrong("package.rootfs", rootfs, reason, right, example)
