"""Test that reading any stack.toml succeeds or raises errors that are safe to print."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_texts import GOOD, quoted, toml
from samples import samples
from stack_texts import STACKS

from niso.base.errors import Error, ErrorGroup
from niso.look import stack_members
from niso.manifest import stack

BOUNDED = settings(
    max_examples=samples(25, 1600), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def read(content: bytes) -> stack.Stack | None:
    """The stack of these bytes, beside two good packages and a link out; None after errors, which are held to be printable."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("api", "db"):
            os.mkdir(os.path.join(folder, name))
            with open(os.path.join(folder, name, "manifest.toml"), "wb") as file:
                file.write(GOOD.replace(b'"api"', f'"{name}"'.encode()))
        os.symlink("/", os.path.join(folder, "escape"))
        with open(os.path.join(folder, "stack.toml"), "wb") as file:
            file.write(content)
        found = None
        for reader in (stack.outline, stack_members.load):
            try:
                found = reader(folder)
            except Error as error:
                found = None
                for one in error.errors if isinstance(error, ErrorGroup) else [error]:
                    assert all(
                        text is None or text.isprintable()
                        for text in (one.message, one.hint, one.key)
                    ), one.message
        return found  # type: ignore[return-value]


@BOUNDED
@given(STACKS)
def test_random_structure_is_read_or_refused(data: dict[str, Any]) -> None:
    found = read(
        "\n".join(f"{quoted(name)} = {toml(value)}" for name, value in data.items()).encode()
    )
    if found is not None:
        seen: set[str] = set()
        for member in found.members:
            assert set(member.after) <= seen, "each comes after those that it depends on"
            seen.add(member.name)


@BOUNDED
@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_random_bytes_are_refused(content: bytes) -> None:
    assert read(content) is None


TEXT = b'[stack]\nname = "s"\n[networks]\nb = { subnet = "10.99.1.0/24" }\n[[service]]\nname = "api"\npackage = "./api"\n'


@BOUNDED
@given(st.integers(0, len(TEXT)), st.integers(0, 3), st.binary(max_size=4))
def test_good_stack_with_a_few_bytes_changed_is_read_or_refused(
    start: int, length: int, patch: bytes
) -> None:
    read(TEXT[:start] + patch + TEXT[start + length :])
