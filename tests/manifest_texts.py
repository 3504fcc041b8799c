"""Draw manifests, as data and as TOML."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import strategies as st

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
GOOD = b'[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "x"\n[network]\nports = ["80:80"]\n'
