"""Test that whatever a compose file says, there is a stack or an error."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from compose_files import write
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

import niso
from niso.base.errors import InvalidInput
from niso.manifest import toml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=6) | st.floats(0, 9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "image",
        "build",
        "entrypoint",
        "command",
        "working_dir",
        "environment",
        "ports",
        "networks",
        "network_mode",
        "hostname",
        "depends_on",
        "healthcheck",
        "restart",
        "stop_grace_period",
        "user",
        "cap_add",
        "read_only",
        "tmpfs",
        "volumes",
        "mem_limit",
        "cpus",
        "pids_limit",
        "shm_size",
        "deploy",
        "security_opt",
        "profiles",
        "dns",
        "extra_hosts",
    ]
)


@settings(deadline=None, max_examples=samples(40, 2000))
@given(
    st.dictionaries(
        st.sampled_from(["a", "b_C", "9", ""]), st.dictionaries(KEYS, PLAIN), min_size=1
    ),
    st.dictionaries(st.sampled_from(["default", "x", "volumes"]), PLAIN),
)
def test_whatever_a_file_says_there_is_a_stack_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, services: dict[str, Any], networks: dict[str, Any]
) -> None:
    """Wrong values are gaps, never a traceback, and never an invalid stack."""
    folder = tmp_path_factory.mktemp("any")
    text = json.dumps({"services": services, "networks": networks, "volumes": networks})
    try:
        made = niso.import_compose(write(folder, text), folder)
    except InvalidInput:
        return
    for name in made.services:
        (folder / "rootfs" / name).mkdir(parents=True)
    niso.validate(folder)


@given(st.dictionaries(st.text(), PLAIN.filter(lambda data: data is not None)))
def test_toml_text_is_read_back(data: dict[str, Any]) -> None:
    data = json.loads(json.dumps(data).replace("null", "0"))
    text = "\n".join(toml.table("t", data, 1))
    assert tomllib.loads(text)["t"] == data
