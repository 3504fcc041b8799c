"""Test that loading any manifest succeeds or raises an Error that is safe to print."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from samples import samples

from niso.base.errors import Error, ErrorGroup
from niso.manifest import build
from niso.manifest import load as model
from niso.manifest.json_schema import schema
from niso.plan.service_spec import ServiceSpec
from niso.store import specs

VALIDATOR = Draft202012Validator(schema())
HEAD: dict[str, Any] = {"package": {"name": "api", "version": "1"}, "binary": {"entrypoint": "x"}}
KEYS = {
    "package": ["name", "version", "rootfs"],
    "binary": ["entrypoint", "args", "working_dir"],
    "environment": ["A", "A B", "PATH"],
    "service": ["user", "restart", "restart_delay", "stop_timeout"],
    "isolation": ["capabilities", "read_only", "resources"],
    "network": [
        "mode",
        "share",
        "network",
        "networks",
        "ports",
        "hostname",
        "aliases",
        "ip",
        "policy",
    ],
    "volumes": ["data"],
    "healthcheck": ["tcp", "http", "interval", "timeout", "retries", "start_period"],
}
TEXTS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(
        [
            "api",
            "a",
            "backend",
            "80:80",
            "80:81",
            "0.0.0.0:80:80",
            "53:53/udp",
            "[::]:1:1",
            ":80",
            "1-2:1-2",
            "10.1.1.1",
            "fd00::1",
            "bridge",
            "host",
            "no",
            "always",
            "1s",
            "2h",
            "0ms",
            "1000:1",
            "/app",
            ".",
            "..",
            "NET_RAW",
            "mount",
            "host",
            "tmpfs",
            "size",
            "/data",
            "64M",
            "memory_max",
            "cpu_max",
            "200%",
            "http://localhost:80/",
            "http://[::1",
            "\x1b[31m",
        ]
    ),
)
SCALARS = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.dates(datetime.date(1, 1, 1)),
    st.datetimes(datetime.datetime(1000, 1, 1)),
    st.times(),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(TEXTS, max_size=4),
        st.dictionaries(TEXTS, inner, max_size=3),
        st.dictionaries(TEXTS, TEXTS, max_size=3),
    ),
    max_leaves=6,
)


def table(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.one_of(st.sampled_from(names), TEXTS), VALUES, max_size=6)


MANIFESTS = st.one_of(
    st.fixed_dictionaries(
        {}, optional={name: st.one_of(table(keys), VALUES) for name, keys in KEYS.items()}
    ),
    st.fixed_dictionaries({}, optional={name: table(keys) for name, keys in KEYS.items()}).map(
        lambda data: HEAD | data
    ),
    st.dictionaries(TEXTS, VALUES, max_size=4),
)


def quoted(text: str) -> str:
    return (
        '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'
    )


def toml(value: Any) -> str:
    """A value in TOML; tables are inline, so any nesting can be written."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(name)} = {toml(item)}' for name, item in value.items())}}}"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def load(content: bytes) -> ServiceSpec | None:
    """The manifest of these bytes, or None after an error, which is held to be of niso and printable."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "manifest.toml")
        with open(path, "wb") as file:
            file.write(content)
        try:
            return model.load(path).spec
        except Error as error:
            single = error.errors if isinstance(error, ErrorGroup) else [error]
            for one in single:
                assert one.message.startswith(path)
                assert all(
                    text is None or text.isprintable() for text in (one.message, one.hint, one.key)
                )
            return None


def is_kept(spec: ServiceSpec) -> None:
    """The store keeps it as it is, and an old store's manifest becomes the same."""
    text = specs.encode_service(spec)
    assert specs.service(f"{text} ") == spec  # another text: else what was encoded is remembered
    assert build.of_written(json.dumps(spec.manifest)) == spec._replace(apart=())


@settings(
    deadline=None, max_examples=samples(80, 400), suppress_health_check=[HealthCheck.too_slow]
)
@given(MANIFESTS)
def test_random_structure_loads_or_is_refused_and_what_loads_is_whole(data: dict[str, Any]) -> None:
    spec = load(
        "\n".join(f"{quoted(name)} = {toml(value)}" for name, value in data.items()).encode()
    )
    if spec is not None:
        assert VALIDATOR.is_valid(data)
        is_kept(spec)
        assert spec.names[0] == spec.hostname
        assert set(spec.addresses) <= set(spec.networks)
        assert len({port for port, _ in spec.ports}) == len(spec.ports)
        assert 0 < spec.restart_delay_s <= 60
        assert 0 <= spec.stop_timeout_s <= 3600


PATHS = st.one_of(
    st.from_regex(r"(/(\.{0,2}|[a-e]{1,2}|etc|app|proc|hosts|usr|tmp)){1,3}/?", fullmatch=True),
    st.text(max_size=5),
)
SIZES = st.from_regex(r"[0-9]{1,10}[KMGk]?", fullmatch=True)
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "healthcheck": st.fixed_dictionaries(
            {},
            optional={
                "tcp": st.integers(-1, 70_000),
                "http": st.from_regex(
                    r"https?://(localhost|127\.0\.0\.1|\[::1\]|api|web|b\.c|@)(:[0-9]{0,6})?([/?#][a-z%\\ \"]{0,3})?",
                    fullmatch=True,
                ),
                "interval": st.from_regex(r"[0-9]{1,4}(ms|s|m|h)", fullmatch=True),
                "retries": st.integers(-1, 1002),
            },
        ),
        "volumes": st.dictionaries(
            st.from_regex(r"[a-zA-Z0-9_.-]{0,3}", fullmatch=True),
            st.fixed_dictionaries(
                {"mount": PATHS},
                optional={
                    "host": PATHS,
                    "mode": st.sampled_from(["rw", "ro"]),
                    "tmpfs": st.booleans(),
                    "size": SIZES,
                },
            ),
            max_size=3,
        ),
        "isolation": st.fixed_dictionaries(
            {
                "resources": st.fixed_dictionaries(
                    {},
                    optional={
                        "memory_max": SIZES,
                        "cpu_max": st.from_regex(r"[0-9]{1,8}%?", fullmatch=True),
                        "pids_limit": st.integers(-1, 2**23),
                    },
                )
            }
        ),
    },
).map(lambda data: HEAD | data)


@settings(
    deadline=None, max_examples=samples(120, 600), suppress_health_check=[HealthCheck.too_slow]
)
@given(NEAR)
def test_what_is_nearly_right_loads_as_the_schema_says_or_is_refused(data: dict[str, Any]) -> None:
    spec = load(
        "\n".join(f"{quoted(name)} = {toml(value)}" for name, value in data.items()).encode()
    )
    if spec is None:
        return
    assert VALIDATOR.is_valid(data)
    is_kept(spec)
    check = spec.healthcheck
    assert (check is None) == ("healthcheck" not in data)
    assert check is None or (1 <= check.port <= 65535 and check.interval_s >= 0.1)
    for volume in spec.volumes:
        assert volume.mount.startswith("/") and volume.mount not in ("/", "/etc", "/app")
    assert (spec.memory_max or 1 << 20) >= 1 << 20


@settings(deadline=None, max_examples=samples(75, 300))
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_random_bytes_never_raise_anything_but_an_error_of_niso(content: bytes) -> None:
    load(content)


GOOD = b'[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "x"\n[network]\nports = ["80:80"]\n'


@settings(deadline=None, max_examples=samples(75, 300))
@given(st.integers(0, len(GOOD)), st.integers(0, 3), st.binary(max_size=4))
def test_good_manifest_with_a_few_bytes_changed_loads_or_is_refused(
    start: int, length: int, patch: bytes
) -> None:
    load(GOOD[:start] + patch + GOOD[start + length :])
