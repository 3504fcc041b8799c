"""Test that the JSON Schema accepts all manifests that the loader accepts, and rejects invalid ones
where a schema can."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from samples import samples

from niso.base import convert
from niso.base.errors import InvalidInput
from niso.manifest import validate
from niso.manifest.addresses_and_ports import parse_port
from niso.manifest.json_schema import manifest_schema
from niso.manifest.keys import ANY, KEYS, TABLES, Key, Manifest

VALIDATOR = Draft202012Validator(manifest_schema())
VALID: dict[str, Any] = {
    "package": {"name": "api", "version": "1.0.0", "rootfs": "rootfs"},
    "binary": {"entrypoint": "bin/api", "args": ["--port", "8080", ""], "working_dir": "/app"},
    "environment": {"LOG_LEVEL": "info"},
    "service": {
        "user": "1000:1000",
        "restart": "on-failure",
        "restart_delay": "1s",
        "stop_timeout": "10s",
    },
    "isolation": {"capabilities": ["NET_RAW"], "read_only": True},
    "network": {
        "mode": "bridge",
        "networks": ["backend", "frontend"],
        "ports": ["8080:8080", "8080:8080/tcp", "0.0.0.0:443:443"],
        "hostname": "api",
        "aliases": ["web", "www"],
        "ip": {"backend": "10.99.1.10"},
    },
}
SCHEMA = manifest_schema()
PROPERTIES = {
    key.path: Draft202012Validator(
        SCHEMA["$defs"][TABLES[key.table].__name__]["properties"][key.name]
    )
    for key in KEYS
}
RULES = [key for key in KEYS if key.rule.schema and key.rule.parse is not ANY.parse]


def with_value(key: str, value: object) -> dict[str, Any]:
    """The valid manifest with one key changed; None takes the key away."""
    data = copy.deepcopy(VALID)
    *tables, last = key.split(".")
    table = data
    for name in tables:
        table = table.setdefault(name, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return data


def test_schema_is_a_schema_and_plain_json() -> None:
    Draft202012Validator.check_schema(manifest_schema())
    assert json.loads(json.dumps(manifest_schema())) == manifest_schema()
    assert "null" not in json.dumps(manifest_schema())


def test_every_key_has_a_description() -> None:
    for struct in manifest_schema()["$defs"].values():
        for name, field in struct["properties"].items():
            assert field.get("description"), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package.name", "api"),
        ("package.rootfs", None),
        ("network", {}),
        ("network", {"network": "backend", "ip": "10.99.1.10"}),
        ("environment", {}),
        ("service.user", "www-data"),
        ("environment.A", "line\nline"),
        ("isolation.resources", {"memory_max": "512M", "cpu_max": "200%", "pids_limit": 4096}),
        (
            "isolation.resources",
            {"new_flows_limit": 0, "arp_limit": 9, "new_neighbours_limit": 10**6},
        ),
        ("healthcheck", {"tcp": 8080}),
        (
            "healthcheck",
            {"http": "http://127.0.0.1:8080/health?deep=1", "interval": "5s", "retries": 3},
        ),
        ("healthcheck", {"http": "http://[::1]:8080"}),
        ("healthcheck", {"http": "http://api.niso.local"}),
        ("volumes", {}),
        ("volumes", {"data": {"mount": "/data"}, "pg_Data-1": {"mount": "/etc/app"}}),
        ("volumes", {"conf": {"mount": "/procs", "host": "/", "mode": "ro"}}),
        ("volumes", {"tmp": {"mount": "/tmp", "tmpfs": True, "size": "64M"}}),
    ],
)
def test_valid_manifest_passes(key: str, value: object) -> None:
    data = with_value(key, value)
    assert list(VALIDATOR.iter_errors(data)) == []
    assert validate.walk(data, Manifest) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package", None),
        ("package.name", None),
        ("package.name", "Api"),
        ("package.name", "localhost"),
        ("package.name", "ip6-x"),
        ("package.name", "a" * 64),
        ("package.name", 5),
        ("package.extra", "x"),
        ("package.rootfs", "../x"),
        ("package.rootfs", "/"),
        ("package.oci", "../x"),
        ("binary.entrypoint", ""),
        ("binary.entrypoint", "bin/"),
        ("binary.args", ["a\x00"]),
        ("binary.working_dir", "app"),
        ("environment", {"A B": "x"}),
        ("environment", {"A": 1}),
        ("service.restart", "never"),
        ("service.restart_delay", "1"),
        ("service.user", "1:2:3"),
        ("isolation.capabilities", ["CAP_NET_ROW"]),
        ("isolation.resources", {"pids_limit": 1}),
        ("isolation.resources", {"arp_limit": -1}),
        ("isolation.resources", {"new_neighbours_limit": 10**6 + 1}),
        ("isolation.resources", {"new_flows_limit": 1_000_001}),
        ("isolation.resources", {"fragments_limit": "40"}),
        ("isolation.resources", {"memory": "1G"}),
        ("isolation.resources", {"memory_max": "1g"}),
        ("isolation.resources", {"cpu_max": "50"}),
        ("healthcheck", {}),
        ("healthcheck", {"tcp": 0}),
        ("healthcheck", {"tcp": 80, "http": "http://localhost"}),
        ("healthcheck", {"http": "https://localhost"}),
        ("healthcheck", {"tcp": 80, "retries": 0}),
        ("healthcheck", {"tcp": 80, "interval": 5}),
        ("volumes", {"data": {}}),
        ("volumes", {"a b": {"mount": "/data"}}),
        ("volumes", {"data": {"mount": "data"}}),
        ("volumes", {"data": {"mount": "/"}}),
        ("volumes", {"data": {"mount": "/etc"}}),
        ("volumes", {"data": {"mount": "/etc/hosts"}}),
        ("volumes", {"data": {"mount": "/proc/sys"}}),
        ("volumes", {"data": {"mount": "/data/../etc"}}),
        ("volumes", {"data": {"mount": "/data/"}}),
        ("volumes", {"data": {"mount": "/data", "host": "data"}}),
        ("volumes", {"data": {"mount": "/data", "host": "/data", "tmpfs": True}}),
        ("volumes", {"data": {"mount": "/data", "mode": "ro"}}),
        ("volumes", {"data": {"mount": "/data", "size": "1M"}}),
        ("network.networks", []),
        ("network.networks", ["a", "a"]),
        ("network.networks", ["default"]),
        ("network.network", "none"),
        ("network.networks", ["host"]),
        ("network.network", "backend"),
        ("network.ports", ["53:53/icmp"]),
        ("network.ports", ["127.0.0.1:80"]),
        ("network.ports", ["1.2.3:80:80"]),
        ("network.ports", ["80-90:80:90"]),
        ("network.ports", ["[::1:80:80"]),
        ("network.ports", [""]),
        ("network.ports", [":"]),
        ("network.ports", ["0:80"]),
        ("network.ports", ["80:65536"]),
        ("network.ip", "127.0.0.1"),
        ("network.ip", "10.0.0.256"),
        ("network.ip", ["10.0.0.256"]),
        ("network.ip", {"backend": ["10.0.0.256"]}),
        ("network.ip", {"backend": "db"}),
        ("network.dns", []),
        ("network.dns", ["dns.example"]),
        ("network.dns_search", ["a b"]),
        ("network.extra_hosts", {"db": "gateway"}),
        ("network.extra_hosts", {"localhost": "10.0.0.1"}),
        ("network.policy", {"allow_from": "frontend"}),
        ("network.policy.egress", {"allow": ["*.example.com"]}),
    ],
)
def test_invalid_manifest_does_not_pass(key: str, value: object) -> None:
    assert list(VALIDATOR.iter_errors(with_value(key, value))) != []


@pytest.mark.parametrize(
    "port", [1, 9, 10, 9999, 10000, 59999, 60000, 64999, 65000, 65499, 65500, 65529, 65530, 65535]
)
def test_port_pattern_takes_the_ends_of_its_parts(port: int) -> None:
    assert VALIDATOR.is_valid(with_value("network.ports", [f"{port}:{port}"]))


PORTS = (
    *(
        "8080:8080",
        "8080:8080/tcp",
        "53:53/udp",
        "80:80/sctp",
        "8080",
        "53/udp",
        ":8080",
        ":8000-8010",
        "127.0.0.1::80",
    ),
    *(
        "0.0.0.0:443:443",
        "127.0.0.1:5432:5432",
        "8000-8010:8000-8010",
        "8000-8010:9000-9010/udp",
        "8000-8010",
    ),
    *("[::]:8081:8081", "[2001:db8::1]:8000-8010:8000-8010", "[::]:8082", "[2001:db8::1]::80"),
)


@pytest.mark.parametrize("port", PORTS)
def test_every_form_of_a_port_passes(port: str) -> None:
    parse_port(port, "network.ports[0]")
    assert VALIDATOR.is_valid(with_value("network.ports", [port]))


SAMPLES = st.one_of(
    st.text(max_size=8),
    st.from_regex(r"[a-z0-9./:_~+-]{1,12}", fullmatch=True),
    st.from_regex(
        r"(0\.0\.0\.0:|127\.0\.0\.1:|\[::\]:)?[0-9]{0,5}(-[0-9]{1,5})?:[0-9]{1,5}(/tcp|/udp)?",
        fullmatch=True,
    ),
    st.sampled_from(PORTS),
    st.from_regex(r"[0-9]{1,3}(ms|s|m|h)", fullmatch=True),
    st.from_regex(r"/?[a-z .]{1,4}/[a-z.]{1,3}/?", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", fullmatch=True),
    st.sampled_from(
        ["host", "localhost", "default", "ip6-x", "NET_RAW", "1000:1000", "4294967294", "a\nb"]
    ),
)


BOUNDED = settings(
    deadline=None,
    max_examples=samples(40, 500),
    suppress_health_check=[HealthCheck.filter_too_much],
)


@BOUNDED
@given(st.sampled_from(RULES), SAMPLES, st.integers(-2, 70_000))
def test_what_a_rule_accepts_the_schema_accepts(key: Key, text: str, number: int) -> None:
    value: object = number if "minimum" in key.rule.schema else text
    try:
        key.rule.parse(value, key.path)
    except InvalidInput:
        assume(False)
    kind = convert.kind(key.type)
    if list in kind:
        value = [value] * key.schema.get("minItems", 1)
        assume(key.name != "command" or text)
    elif dict in kind:
        names = {"bandwidth": "in", "limits": "nofile", "sysctls": "net.core.somaxconn"}
        value = {names.get(key.name, "a"): value}
    assert PROPERTIES[key.path].is_valid(value)


@BOUNDED
@given(st.sampled_from([key for key in KEYS if key.names is not ANY]), SAMPLES)
def test_name_that_a_rule_accepts_the_schema_accepts(key: Key, name: str) -> None:
    try:
        key.names.parse(name, key.path)
    except InvalidInput:
        assume(False)
    assert Draft202012Validator({"propertyNames": key.names.schema}).is_valid({name: ""})
