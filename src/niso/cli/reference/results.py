"""What --json prints, by command: a test holds every command to it.

Times are RFC 3339 in UTC, sizes bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from niso.base.lite_typing import NamedTuple
from niso.cli.reference.document import Block, Heading, Terms, Text


class Field(NamedTuple):
    """``type`` is string, integer, number, boolean, object or array; ``of`` what an object, or an array's objects, have.

    ``null`` says that it can be null, ``when`` that it is there only then.
    """

    name: str
    type: str
    words: str
    of: tuple[Field, ...] = ()
    null: bool = False
    when: str = ""


class Result(NamedTuple):
    """``shape`` is object, array (of objects), or lines (an object each)."""

    shape: str
    fields: tuple[Field, ...]
    note: str = ""


_SERVICE = Field("service", "string", "the service's name")
_CHANGED = Field("changed", "boolean", "false where it was so already")
_ADDRESS = Field(
    "address",
    "string",
    "its addresses, with a comma and a space between several; empty where it has none",
)
_PORT = (
    Field("host_ip", "string", "the host's address; 0.0.0.0 and :: are all addresses of a family"),
    Field("host_port", "integer", "the first of the host's ports"),
    Field("container_port", "integer", "the first port inside the service"),
    Field("proto", "string", "tcp, udp or sctp"),
    Field("range", "integer", "how many ports in a row", when="they are more than one"),
)
_PORTS = Field("ports", "array", "its published ports, a row for each family", _PORT)
_OUTCOME = (
    _SERVICE,
    Field("changed", "boolean", "false where it was active already, and is as it was"),
    _ADDRESS,
    _PORTS,
)
_UNIT = Field("unit", "string", "the path of its systemd unit", null=True)
_END = (
    Field("service", "string", "null where it is none", null=True),
    Field("address", "string", "an IPv4 or IPv6 address"),
)
_AT = (
    Field("port", "integer", "null for icmp", null=True),
    Field("proto", "string", "tcp, udp, sctp or icmp"),
)
_STATUS = Field("status", "string", "running, starting, restarting, exited (N), failed or inactive")
_HEALTH = Field(
    "health", "string", "starting, healthy or unhealthy; null without a healthcheck", null=True
)
_REASON = (
    Field("verdict", "string", "pass or drop"),
    Field("words", "string", "what decides"),
    Field("service", "string", "whose manifest decides", null=True),
    Field("key", "string", "the key there", null=True),
    Field("text", "string", "the entry there", null=True),
    Field("nft", "array", "strings: the objects of nftables that do it"),
)
_JUDGED = (
    Field("from", "object", "the sender", _END),
    Field("asked", "object", "where it is sent", (_END[1], *_AT)),
    Field("to", "object", "where it comes to, after a published port", (*_END, *_AT)),
    Field("verdict", "string", "pass or drop"),
    Field("path", "object", "what networks and published ports say", _REASON),
    Field("egress", "object", "what the sender's policy says", _REASON),
    Field("ingress", "object", "what the receiver's policy says", _REASON),
)
_PS = (
    _SERVICE,
    _STATUS,
    _HEALTH,
    Field(
        "mode",
        "string",
        "bridge, host, none or share; null where the service is not known yet (stack status)",
        null=True,
    ),
    _ADDRESS,
    _PORTS,
    Field("uptime", "number", "seconds since its process started, null where none runs", null=True),
)
_NETWORK = (
    Field("name", "string", "the network's name"),
    Field("subnet", "string", "its subnets, with a comma and a space between two"),
    Field(
        "subnets",
        "array",
        "one for each family",
        (Field("cidr", "string", "the subnet"), Field("gateway", "string", "the bridge's address")),
    ),
    Field("bridge", "string", "the name of its link on the host"),
    Field("internal", "boolean", "whether nothing is forwarded out"),
    Field("mtu", "integer", "bytes"),
    Field(
        "services",
        "array",
        "known services on it",
        (_SERVICE, Field("active", "boolean", "whether it is active"), _ADDRESS, _PORTS),
    ),
)
_DONE = (_SERVICE, _CHANGED)

RESULTS: dict[str, Result] = {
    "activate": Result("array", _OUTCOME),
    "deactivate": Result("array", _DONE),
    "restart": Result("array", _DONE),
    "remove": Result("array", _DONE),
    "ps": Result("array", _PS),
    "inspect": Result(
        "object",
        (
            _SERVICE,
            _STATUS,
            _HEALTH,
            Field("health_said", "string", "what the last probe said", null=True),
            Field("mode", "string", "bridge, host, none or share"),
            Field("shares", "string", "whose network it has, of mode share", null=True),
            Field("shared_by", "array", "strings: active services that have its network"),
            Field("uptime", "number", "seconds", null=True),
            Field("pid", "integer", "of its PID 1, on the host", null=True, when="it is active"),
            Field("exit_code", "integer", "of its last process", null=True, when="it is active"),
            Field(
                "out_of_memory",
                "boolean",
                "whether the kernel ended a process of it for memory_max",
                when="it is active",
            ),
            Field("restarts", "integer", "since it was activated", when="it is active"),
            Field("started_at", "string", "time", null=True, when="it is active"),
            Field("hostname", "string", "inside the service"),
            Field("names", "array", "strings: what it answers to"),
            Field("networks", "array", "strings, in the order of eth0, eth1 ..."),
            Field(
                "endpoints",
                "array",
                "one for each network",
                (
                    Field("network", "string", "its name"),
                    Field("bridge", "string", "on the host"),
                    _ADDRESS,
                    Field("gateway", "string", "the bridge's addresses, as address"),
                    Field("mac", "string", "the address of the link inside"),
                    Field("interface", "string", "inside the service"),
                    Field("host_interface", "string", "the other end", null=True),
                    Field("mtu", "integer", "bytes"),
                ),
            ),
            _PORTS,
            Field("forwards", "array", "what niso port-forward has published", _PORT),
            Field("netns", "string", "the path of its network namespace", null=True),
            Field(
                "user",
                "object",
                "whom it runs as",
                (
                    Field("uid", "integer", "on the machine, too"),
                    Field("gid", "integer", "likewise"),
                    Field("name", "string", "inside the service"),
                ),
            ),
            Field("enabled", "boolean", "whether it comes back after a reboot"),
            Field("manifest_path", "string", "the file of its last activation"),
            Field("manifest", "object", "all keys of the manifest, with their defaults"),
            Field("package", "string", "the path of niso's copy"),
            Field("rootfs", "string", "the path of its root file system", null=True),
            Field("logs", "string", "the path of the folder of its logs"),
            Field("created_at", "string", "time of its first activation"),
            Field("activated_at", "string", "time of its last activation", null=True),
        ),
    ),
    "port-forward": Result(
        "object",
        (
            _SERVICE,
            _CHANGED,
            _PORTS,
            Field("taken", "array", "who has lost ports by --replace", (_SERVICE, _PORTS)),
        ),
    ),
    "net create": Result("object", _NETWORK),
    "net list": Result(
        "array",
        (
            _NETWORK[0],
            _NETWORK[1],
            Field("services", "integer", "how many known services are on it"),
        ),
    ),
    "net inspect": Result("object", _NETWORK),
    "net remove": Result("array", (_NETWORK[0], _CHANGED)),
    "net ports": Result(
        "array",
        (
            _SERVICE,
            Field("host", "string", "address and port, or ports"),
            Field("container", "integer", "as container_port"),
            *_PORT,
            Field(
                "from", "array", "strings: from where it can be reached", when="--exposed is given"
            ),
        ),
    ),
    "net rules": Result(
        "object", (Field("nftables", "array", "as libnftables gives it: libnftables-json(5)"),)
    ),
    "net ping": Result(
        "object",
        (
            Field("from", "object", "the sender", (_SERVICE, _END[1])),
            Field("to", "object", "the receiver", (_SERVICE, _END[1])),
            Field("ok", "boolean", "true; where nothing came back there is an error"),
            Field("seconds", "number", "from the request to the reply"),
        ),
    ),
    "net explain": Result(
        "object",
        (
            *_JUDGED,
            Field(
                "other_family",
                "object",
                "the same by the other family, where both ends have it",
                _JUDGED,
                null=True,
            ),
            Field(
                "shares",
                "object",
                "by the name of a service that was asked for and shares: whose network it has",
            ),
            Field(
                "proof",
                "object",
                "what came of the real packet",
                (
                    Field("agrees", "boolean", "null where nothing can be told", null=True),
                    Field("arrived", "boolean", "null where that cannot be seen", null=True),
                    Field("answered", "boolean", "whether anything came back", null=True),
                    Field("unsent", "string", "why the sender's kernel did not take it", null=True),
                    Field(
                        "counters",
                        "array",
                        "rules that count the packet",
                        (
                            Field("rule", "string", "as nft has it"),
                            Field("before", "integer", "packets", null=True),
                            Field("after", "integer", "packets", null=True),
                        ),
                    ),
                ),
                when="--prove is given",
            ),
        ),
    ),
    "net stats": Result(
        "array",
        (
            _SERVICE,
            *(
                Field(name, "integer", words, null=True)
                for name, words in (
                    ("in-packets", "packets that came"),
                    ("in-bytes", "bytes"),
                    ("in-drops", "packets that its ingress policy dropped"),
                    ("out-packets", "packets that it sent"),
                    ("out-bytes", "bytes"),
                    ("out-drops", "packets that its egress policy dropped"),
                    ("foreign", "frames that were not its own"),
                )
            ),
        ),
        "A number is null where the kernel does not have what counts it.",
    ),
    "net log": Result(
        "lines",
        (
            Field("time", "string", "time, to the millisecond"),
            Field("service", "string", "whose policy dropped it"),
            Field("direction", "string", "in or out: its ingress or its egress policy"),
            Field("key", "string", "the key of the manifest"),
            Field("source", "object", "the sender", _END),
            Field("destination", "object", "the receiver", (*_END, _AT[0])),
            _AT[1],
            Field("interface", "string", "the link by which it came"),
        ),
    ),
    "net check": Result(
        "array",
        (
            Field("problem", "string", "missing, foreign, different, dropped or failed"),
            Field("what", "string", "the thing"),
            Field("detail", "string", "how it differs; can be empty"),
        ),
    ),
    "net repair": Result(
        "object",
        (
            Field("steps", "integer", "how much was done", when="--sweep is not given"),
            Field("removed", "integer", "how many things", when="--sweep is given"),
        ),
    ),
    "stack up": Result(
        "object",
        (
            Field("stack", "string", "its name"),
            Field("services", "array", "as activate", _OUTCOME),
            Field("left", "array", "strings: services that left the file, and were deactivated"),
            Field("networks", "array", "strings: networks that were made"),
        ),
    ),
    "stack down": Result("array", _DONE),
    "stack status": Result("array", _PS),
    "enable": Result("array", (*_DONE, _UNIT)),
    "disable": Result("array", (*_DONE, _UNIT)),
    "restore": Result("array", _OUTCOME),
}


def page_blocks() -> Iterator[Block]:
    """docs/reference/json.md."""
    yield Text(
        "With `--json` a command prints one JSON value: an array of objects (`[]` where there is nothing), an object, or an object a "
        "line. Times are RFC 3339 in UTC, sizes bytes, durations seconds. Keys stay: new ones may come, none goes or changes its type "
        "within a major version. `--dry-run` prints its steps as text."
    )
    yield Heading("Errors")
    yield Text("On stderr, one object a line; the exit status is the same as without `--json`.")
    yield Terms(
        (
            ("error: object", "the whole of it"),
            ("error.message: string", "what is wrong"),
            ("error.hint: string or null", "the next step"),
            ("error.key: string or null", "the key of a manifest, as network.ports[1]"),
        )
    )
    for name, result in RESULTS.items():
        yield Heading(f"niso {name}")
        yield Text(
            {"array": "An array of objects.", "object": "An object.", "lines": "An object a line."}[
                result.shape
            ]
        )
        if result.note:
            yield Text(result.note)
        yield Terms(tuple(_rows(result.fields, "")))


def _rows(fields: tuple[Field, ...], above: str) -> Iterator[tuple[str, str]]:
    for field in fields:
        kind = {"array": "array of objects" if field.of else "array"}.get(field.type, field.type)
        words = "; ".join(
            each for each in (field.words, f"only where {field.when}" if field.when else "") if each
        )
        yield f"{above}{field.name}: {kind}{' or null' if field.null else ''}", words
        if field.of and field.of is not _JUDGED:
            yield from _rows(
                field.of, f"{above}{field.name}{'[]' if field.type == 'array' else ''}."
            )
