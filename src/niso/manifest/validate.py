"""Find all errors of a manifest: `walk` finds wrong keys and types, `rules` finds invalid values.

Both functions take the data that tomllib returned. `walk` is called only if
`niso.base.convert.convert` has failed. `rules` skips values of a wrong type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import NoneType

from niso.base import convert
from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK
from niso.base.text import shown
from niso.manifest import addresses_and_ports, keys, policy, process_keys, values
from niso.manifest.addresses_and_ports import contradictions
from niso.manifest.policy import AUDIT_ENDS
from niso.manifest.values import join, texts

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind

    type Parse = Callable[[Any, str], Any]


WITHOUT = {
    mode: [
        key.name for key in keys.SECTIONS["network"].values() if key.modes and mode not in key.modes
    ]
    for mode in ("host", "none", "share", "bridge")
}
"""Maps each mode of [network] to the keys that have no effect in this mode, and are therefore
errors."""
_WHY = {
    "host": 'with mode = "host" the service uses the host\'s network',
    "none": 'with mode = "none" the service has no network',
    "share": 'with mode = "share" the service uses the network of another one',
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
_MAX_GUESSES = 20  # the most unknown keys of one table that get a suggestion: difflib is slow


def walk(data: object, table: type, key: str = "") -> list[InvalidInput]:
    """Return an error for each unknown key, missing key and value of a wrong type in a table.
    ``table`` is the class of the table, and ``key`` its key path in the file.
    """
    return list(_walk(data, {dict: table}, key, (table, key)))


def unknown_key(
    key: str, value: object, known: str, near: str | None, elsewhere: str
) -> InvalidInput:
    """Build the error for an unknown key. ``key`` is its path.

    The message proposes ``near``, the path of a key with a similar name. If ``near`` is None, it
    lists the ``known`` keys, and proposes ``elsewhere``, the path of a key with the same name in
    another table.
    """
    right = f"did you mean {near}?" if near else f"known keys: {known}"
    hint = None if near else f"remove {key}"
    if elsewhere and not near:
        right += f"; elsewhere: {elsewhere}"
        hint = f"move it to {elsewhere}, or remove it"
    # show no values of a table: [env] instead of [environment] may contain secrets
    text = "" if isinstance(value, dict) else shown(value)
    return InvalidInput("unknown key", hint, key, value=text, right=right, about_key=True)


def _walk(value: Any, expected: Kind, key: str, root: tuple[Any, str]) -> Iterator[InvalidInput]:
    form = type(value)
    inside: Any = expected.get(form)
    if form is str and inside is not None and value not in inside:
        yield values.wrong(key, value, f"must be one of {_allowed(expected)}", "")
    elif form not in expected:
        reason = f"is {_FORMS.get(form) or _other(value)}"
        date = key.endswith(".audit_until")  # whether the value is quoted
        right = f"must be {AUDIT_ENDS if date else _allowed(expected)}"
        yield values.wrong(key, value, reason, right, _example(value, expected, key))
    elif form is list:
        for index, item in enumerate(value):
            yield from _walk(item, inside, f"{key}[{index}]", root)
    elif convert.is_table(inside):
        yield from _walk_table(value, inside, key, root)
    elif form is dict:
        for name, item in value.items():
            yield from _walk(item, inside, join(key, name), root)


def _other(value: object) -> str:
    is_time = type(value).__module__ == "datetime"
    return "a date or time" if is_time else f"an object of type {type(value).__name__}"


_WORDS = {"env": "environment"}
"""Keys of other tools, with niso's keys for the same."""


def _walk_table(
    data: dict[str, object], table: Any, key: str, root: tuple[Any, str]
) -> Iterator[InvalidInput]:
    known = convert.fields(table)
    guesses = 0
    for name, value in data.items():
        path = join(key, name)
        if name in known:
            yield from _walk(value, known[name], path, root)
        else:
            guesses += 1
            guess = guesses <= _MAX_GUESSES
            word = _WORDS.get(name, name)
            near = nearest(word, [word] if word in known else list(known)) if guess else None
            other = elsewhere(word, value, *root) if guess else ""
            other = f"[{other}]" if other and type(value) is dict else other
            near = join(key, near) if near else None
            yield unknown_key(path, value, ", ".join(known), near, other)
    for name in convert.required(table):
        if name not in data:
            yield _missing(join(key, name), name, key, known[name])


def elsewhere(name: str, value: object, table: Any, key: str = "") -> str:
    """Return the path of a key in nested tables that has this name and whose type fits the value.
    Returns "" if there is no such key, or more than one.
    """
    places = [
        path
        for path, kind in _keys(table, key)
        if path.rpartition(".")[2] == name and type(value) in kind
    ]
    return places[0] if len(places) == 1 else ""


def _keys(table: Any, key: str) -> Iterator[tuple[str, Kind]]:
    for name, kind in convert.fields(table).items():
        path = join(key, name)
        yield path, kind
        if convert.is_table(kind.get(dict)):
            yield from _keys(kind[dict], path)


def _missing(path: str, name: str, table: str, expected: Kind) -> InvalidInput:
    if dict in expected or not table:
        header = f"[{path}]" if dict in expected else f"[[{path}]]"
        return InvalidInput(f"missing table {header}", f"add {header}", path, names_key=False)
    hint, right = f"add {name} to [{table}]", _allowed(expected)
    return InvalidInput(f"missing key {path}", hint, path, right=right, names_key=False)


def _allowed(expected: Kind) -> str:
    """Format for a message which types or values a key can have, except NoneType."""
    choices: list[str] = []
    for form, inside in expected.items():
        if form is str and inside:
            choices += [shown(choice) for choice in inside]
        elif form is not NoneType:
            choices.append("true or false" if form is bool else _FORMS[form])
    return " or ".join((", ".join(choices[:-1]), choices[-1])) if len(choices) > 1 else choices[0]


def _example(value: object, expected: Kind, key: str) -> str:
    """Return in TOML what the user probably meant: ``"5s"`` for 5, or "" if unknown."""
    is_number = isinstance(value, int | float) and abs(value) < 10**18
    if expected.get(str, "") is None and is_number:
        text = str(value).lower()
        return _accepted(key, text, *(f"{text}{unit}" for unit in ("s", "M", "%")))
    if isinstance(value, str) and list in expected:
        item = _accepted(key, value)
        return f"[{item}]" if item else ""
    return ""


def _accepted(path: str, *texts: str) -> str:
    """Return in TOML the first of ``texts`` that the rule of the key ``path`` accepts. If it
    accepts none, returns the rule's example.
    """
    example, key = "", keys.key_at(path)
    rule = keys.ANY if key is None else key.rule
    for text in texts:
        try:
            rule.parse(text, path)
            return shown(text)
        except InvalidInput as error:
            example = example or error.example
    return example


def nearest(name: str, known: list[str]) -> str | None:
    """Return the name in ``known`` that is most similar to ``name``, or None if none is similar."""
    if len(name) > values.MAX_NAME:
        return None
    import difflib

    return next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)


def _table(data: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split("."):
        data = data.get(name, {})
        if not isinstance(data, dict):
            return {}
    return data


def rules(data: dict[str, Any], folder: str, parsed: dict[str, Any]) -> list[InvalidInput]:
    """Return an error for each invalid value in the data of a manifest.

    ``folder`` is the package's folder: a relative package.rootfs must not leave it. The valid
    values are added to ``parsed``, by key path (``network.ports[0]``).
    """
    errors: list[InvalidInput] = []
    package, network = _table(data, "package"), _table(data, "network")
    hostname, aliases = network.get("hostname"), network.get("aliases")
    own = process_keys.own_names(package.get("name"), hostname, aliases)
    for parse, value, path in _written(data):
        try:
            if path == "healthcheck.http":
                parsed[path] = process_keys.url(value, path, own)
            else:
                parsed[path] = parse(value, path)
        except InvalidInput as error:
            errors.append(error)
    errors += addresses_and_ports.problems(network)
    errors += _contradictions(network.get("ports"), parsed)
    errors += policy.problems(network, parsed)
    volumes = _table(data, "volumes")
    errors += process_keys.volumes_problems(volumes, parsed)
    errors += process_keys.secrets_problems(_table(data, "secrets"), volumes)
    if isinstance(check := data.get("healthcheck"), dict):
        errors += process_keys.health_problems(check)
    errors += _kind(_table(data, "service"), data)
    errors += process_keys.deploy_problems(data, parsed)
    errors += _modes(network, package.get("name"))
    errors += _networks(network)
    mode = network.get("mode")
    if mode in ("host", "share") and _table(data, "sysctls"):
        reason = f"is not allowed: {_WHY[mode]}"
        hint, right = "remove [sysctls]", 'mode = "bridge" or "none"'
        errors.append(InvalidInput(reason, hint, "sysctls", right=right))
    audit = _table(data, "network.policy")
    if "audit_until" in audit and audit.get("mode", "enforce") == "enforce":
        reason, right = "is not allowed: the policy is enforced", 'set mode = "audit", or remove it'
        key = "network.policy.audit_until"
        errors.append(values.wrong(key, audit["audit_until"], reason, right))
    errors += _repeated(network.get("networks"), "network.networks")
    errors += _repeated(network.get("aliases"), "network.aliases")
    rootfs = package.get("rootfs")
    if isinstance(rootfs, str) and "package.rootfs" in parsed:
        errors += _rootfs(rootfs, folder)
    return errors


def _written(data: dict[str, Any]) -> Iterator[tuple[Parse, Any, str]]:
    """Yield (parse function, value, key path) for everything in a manifest that must be parsed.

    The names in a table, such as those of labels, come before its values. Unknown keys and values
    of a wrong type are skipped, because `walk` reports them.
    """
    for section, known in keys.SECTIONS.items():
        for base, table in _tables(data, section):
            for name, value in table.items():
                if (key := known.get(name)) is None:
                    continue
                path = f"{base}.{name}" if base else name
                if key.names is not keys.ANY and isinstance(value, dict):
                    for one in value:
                        yield key.names.parse, one, join(path, one)
                if key.rule is not keys.ANY:
                    for at, one in _typed(value, convert.field(keys.TABLES[section], name), path):
                        yield key.rule.parse, one, at


def _tables(data: dict[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key path, content) for each table of ``section``, a key of `SECTIONS`. For
    ``volumes.*``, these are all tables [volumes.NAME].
    """
    if not section:
        yield "", data
    elif section.endswith(".*"):
        above = section.removesuffix(".*")
        for name, table in _table(data, above).items():
            if isinstance(table, dict):
                yield join(above, name), table
    else:
        yield section, _table(data, section)


def _typed(value: Any, expected: Kind, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (key path, value) for a value and its items at all depths that have a valid type."""
    form = type(value)
    inside = expected.get(form)
    if form is list and inside is not None:
        for index, item in enumerate(value):
            yield from _typed(item, inside, f"{path}[{index}]")
    elif form is dict and inside is not None:
        for name, item in value.items():
            yield from _typed(item, inside, join(path, name))
    elif form in expected:
        yield path, value


def _contradictions(ports: object, parsed: Mapping[str, Any]) -> Iterator[InvalidInput]:
    written = texts(ports if isinstance(ports, list) else None, "network.ports")
    known = [(path, text, parsed[path]) for path, text in written if path in parsed]
    for index, before in contradictions(port for _, _, port in known):
        path, text, _ = known[index]
        first, earlier, _ = known[before]
        reason = f"conflicts with {first}, {shown(earlier)}: same host port"
        yield values.wrong(path, text, reason, "choose another host port")


def _kind(service: dict[str, Any], data: Mapping[str, object]) -> Iterator[InvalidInput]:
    """Yield an error for each key that only services can have if this is a job, and vice versa."""
    if service.get("kind", "service") == "service" and "timeout" in service:
        reason = "is not allowed: only a job has a time limit"
        right = 'remove it, or set kind = "job"'
        yield values.wrong("service.timeout", service["timeout"], reason, right)
    if service.get("kind", "service") == "service" and "schedule" in service:
        reason, right = "is not allowed: only a job has a schedule", 'kind = "job", or remove it'
        yield values.wrong("service.schedule", service["schedule"], reason, right)
    if service.get("kind") != "job":
        return  # `walk` reports it
    if (restart := service.get("restart", "no")) in ("always", "on-failure"):
        reason = "is not allowed: a job runs once for each activation"
        yield values.wrong("service.restart", restart, reason, 'remove it, or restart = "no"')
    if "healthcheck" in data:
        reason = "is not allowed: a job is done when its process exits with status 0"
        hint, right = "remove [healthcheck]", "no health check for a job"
        yield InvalidInput(reason, hint, "healthcheck", right=right)


def _modes(network: dict[str, Any], service: object) -> Iterator[InvalidInput]:
    """Yield an error for each key of [network] that its mode forbids, or requires and lacks."""
    mode = network.get("mode", "bridge")
    if not isinstance(mode, str) or mode not in WITHOUT:
        return
    for name, value in network.items():
        if name in WITHOUT[mode]:
            key = f"network.{name}"
            fitting = "share" if name == "share" else "bridge"  # a mode in which the key is allowed
            right = 'set mode = "share", or remove it' if name == "share" else "remove it"
            error = values.wrong(key, value, f"is not allowed: {_WHY[mode]}", right)
            error.hint = f"remove {key}"
            if mode != "bridge":
                error.hint += f', or set mode = "{fitting}"'
            yield error
    share = network.get("share")
    if mode == "share" and "share" not in network:
        key, hint = "network.share", 'add share = "NAME" to [network]'
        right = "the service whose network to share"
        yield InvalidInput(f"missing key {key}", hint, key, right=right, names_key=False)
    if mode == "share" and isinstance(share, str) and share == service:
        reason, right = "is the service itself", "the name of another service"
        yield values.wrong("network.share", share, reason, right)


def _networks(network: dict[str, Any]) -> Iterator[InvalidInput]:
    """Yield an error if [network] has both ``network`` and ``networks``, or no network in
    ``networks``, or if ``ip`` does not fit the networks.
    """
    several, ip = network.get("networks"), network.get("ip")
    if "network" in network and "networks" in network:
        reason, right = "conflicts with network.network", "set only one of the two"
        yield values.wrong("network.networks", several, reason, right)
    if several == []:
        right = "one or more networks"
        yield values.wrong("network.networks", several, "is empty", right, '["backend"]')
    names = several if isinstance(several, list) else [network.get("network", DEFAULT_NETWORK)]
    if isinstance(ip, str | list) and len(names) > 1:
        example = f"{{ {names[0]} = {shown(ip)} }}" if isinstance(names[0], str) else ""
        reason = "names no network, but the service is on several networks"
        yield values.wrong("network.ip", ip, reason, "a table NETWORK = ADDRESS", example)
    if isinstance(ip, dict):
        known = {name for name in names if isinstance(name, str)}
        for name in (name for name in ip if name not in known):
            reason, right = "is for a network that the service is not on", shown(names)
            yield values.wrong(join("network.ip", name), ip[name], reason, f"one of {right}")


def _repeated(items: object, key: str) -> Iterator[InvalidInput]:
    first: dict[str, int] = {}
    for path, text in texts(items if isinstance(items, list) else None, key):
        index = int(path[len(key) + 1 : -1])
        if first.setdefault(text, index) != index:
            reason = f"is the same as {key}[{first[text]}]"
            yield values.wrong(path, text, reason, "list each name once")


def _rootfs(rootfs: str, folder: str) -> Iterator[InvalidInput]:
    home = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(home, rootfs))
    reason = ""
    if path == home:
        reason = "is the package's own folder"
    elif path == "/":
        reason = "is the host's own"
    elif not rootfs.startswith("/") and os.path.commonpath((path, home)) != home:
        reason = "leaves the package's folder"
    elif os.path.lexists(path) and not os.path.isdir(path):
        reason = "is not a folder"
    if reason:
        yield values.wrong("package.rootfs", rootfs, reason, values.ROOTFS_RIGHT, '"rootfs"')
