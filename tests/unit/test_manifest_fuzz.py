"""Test that loading any manifest succeeds or raises an Error that is safe to print."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from manifest_texts import GOOD, MANIFESTS, NEAR, quoted, toml
from samples import samples

from niso.base.errors import Error, ErrorGroup
from niso.manifest import load as manifest_load
from niso.manifest.json_schema import manifest_schema
from niso.plan.specs import ServiceSpec
from niso.store import service_rows

VALIDATOR = Draft202012Validator(manifest_schema())


def load(content: bytes) -> ServiceSpec | None:
    """The manifest of these bytes, or None after an error, which is held to be of niso and printable."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "manifest.toml")
        with open(path, "wb") as file:
            file.write(content)
        try:
            return manifest_load.load(path).spec
        except Error as error:
            single = error.errors if isinstance(error, ErrorGroup) else [error]
            for one in single:
                assert one.message.startswith(path)
                assert all(
                    text is None or text.isprintable() for text in (one.message, one.hint, one.key)
                )
            return None


def is_kept(spec: ServiceSpec) -> None:
    """The store keeps it as it is."""
    text = service_rows.encode_service(spec)
    assert (
        service_rows.service(f"{text} ") == spec
    )  # another text: else what was encoded is remembered


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
        assert spec.names[0] == spec.network.hostname
        assert set(spec.network.addresses) <= set(spec.network.networks)
        assert len({port for port, _ in spec.network.ports}) == len(spec.network.ports)
        assert 0 < spec.program.restart_delay_s <= 60
        assert 0 <= spec.program.stop_timeout_s <= 3600


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
    check = spec.program.healthcheck
    assert (check is None) == ("healthcheck" not in data)
    assert check is None or (1 <= check.port <= 65535 and check.interval_s >= 0.1)
    for volume in spec.program.volumes:
        assert volume.mount.startswith("/") and volume.mount not in ("/", "/etc", "/app")
    assert (spec.program.memory_max or 1 << 20) >= 1 << 20


@settings(deadline=None, max_examples=samples(75, 300))
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_random_bytes_never_raise_anything_but_an_error_of_niso(content: bytes) -> None:
    load(content)


@settings(deadline=None, max_examples=samples(75, 300))
@given(st.integers(0, len(GOOD)), st.integers(0, 3), st.binary(max_size=4))
def test_good_manifest_with_a_few_bytes_changed_loads_or_is_refused(
    start: int, length: int, patch: bytes
) -> None:
    load(GOOD[:start] + patch + GOOD[start + length :])
