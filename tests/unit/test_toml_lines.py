"""Test in which line `niso validate` places an error."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import niso
from niso.base.errors import Error, ErrorGroup
from niso.manifest import toml

TEXT = '''\
# a comment with [table] and key = 1
[stack]
name = "shop"   # [x]

[networks]
back = { subnet = ["10.0.0.0/8",
         "fd00::/64"], ipv6 = true }

[[service]]
name = "a"
ports = [
  "80:80", # [[service]]
  "a = b",
]
[service.environment]
"A B" = """
name = "x"
[service]
"""
C = '[y]'
[[service]]
name = "b"
policy.egress.allow = ["x"]

[services.api]
[services.api.network]
mode = "host"
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("stack", 2),
        ("stack.name", 3),
        ("networks.back", 6),
        ("networks.back.subnet", 6),
        ("service[0]", 9),
        ("service[0].name", 10),
        ("service[0].ports[1]", 11),
        ("service[0].environment", 15),
        ('service[0].environment."A B"', 16),
        ("service[0].environment.C", 20),
        ("service[1].name", 22),
        ("service[1].policy.egress.allow[0]", 23),
        ("service[1].policy.log", 23),
        ("service[1].ports", 21),
        ("services.api.network.mode", 27),
        ("services.api.binary.entrypoint", 25),
        ("services.web", 0),
        ("nothing", 0),
    ],
)
def test_line_of_a_key(key: str, line: int) -> None:
    tomllib.loads(TEXT)
    error = Error("wrong", key=key)
    toml.locate(TEXT, [error])
    # what is not there is at the nearest table that is
    assert error.line == (25 if key == "services.web" else line)


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.text())))
def test_any_valid_file_is_read(data: dict[str, dict[str, str]]) -> None:
    lines = [line for name, table in data.items() for line in toml.table(toml.key(name), table, 0)]
    text = "\n".join(lines)
    assert tomllib.loads(text) == data
    for name, table in data.items():
        for key, value in table.items():
            path = f"{toml.key(name)}.{toml.key(key)}"
            error = Error("wrong", key=path)
            toml.locate(text, [error])
            assert lines[error.line - 1] == f"{toml.key(key)} = {toml.value(value)}"


def test_check_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text('[package]\nname = "A"\nversion = "1"\n\n[binary]\n[network]\nports = ["x"]\n')
    with pytest.raises(ErrorGroup) as caught:
        niso.validate(tmp_path)
    found = [error.message.partition(": ")[0] for error in caught.value.errors]
    assert found == [f"{path}:5", f"{path}:2", f"{path}:7"]
