"""Draw stack files."""

from __future__ import annotations

from hypothesis import strategies as st
from manifest_texts import KEYS, TEXTS, VALUES, table

PACKAGES = st.sampled_from(
    [
        "./api",
        "api",
        "./db",
        "..",
        ".",
        "/",
        "/etc",
        "./nowhere",
        "./api/../../..",
        "",
        "\0",
        "x" * 5000,
        "./escape",
    ]
)
NAMES = st.sampled_from(["api", "db", "a", "s", "host", "Api", "api.b", "", "-x", "\x1b", "а"])
SERVICE = st.fixed_dictionaries(
    {"name": NAMES, "package": PACKAGES},
    optional={
        "depends_on": st.dictionaries(
            NAMES, st.sampled_from(["healthy", "started", "ill"]), max_size=3
        )
        | st.lists(NAMES, max_size=3)
        | VALUES,
        **{name: VALUES for name in KEYS["network"]},
        **{name: table(keys) for name, keys in KEYS.items() if name not in ("package", "network")},
    },
)
NETWORK = st.fixed_dictionaries(
    {},
    optional={
        "subnet": st.sampled_from(
            ["10.99.1.0/24", "10.99.0.0/99", "fd00::/64", "::/0", "10.99.1.1", ""]
        )
        | VALUES,
        "ipv6": st.booleans() | VALUES,
        "gateway": TEXTS | VALUES,
        "internal": st.booleans() | VALUES,
        "mtu": st.integers(-1, 70_000) | VALUES,
    },
)
STACKS = st.fixed_dictionaries(
    {},
    optional={
        "stack": st.fixed_dictionaries({"name": NAMES}) | VALUES,
        "networks": st.dictionaries(NAMES | TEXTS, NETWORK | VALUES, max_size=3) | VALUES,
        "service": st.lists(SERVICE | VALUES, max_size=4) | VALUES,
        "more": VALUES,
    },
)
