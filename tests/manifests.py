"""Write a manifest, and load it or its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from niso.base.errors import ErrorGroup, InvalidInput
from niso.manifest.load import load
from niso.plan.specs import ServiceSpec

HEAD = '[package]\nname = "api"\nversion = "1.0.0"\n[binary]\nentrypoint = "bin/api"\n'


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "manifest.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def loaded(folder: Path, text: str) -> ServiceSpec:
    return load(write(folder, text)).spec


def errors(folder: Path, text: str) -> dict[str, InvalidInput]:
    """Return every error of the manifest by its key."""
    path = write(folder, text)
    with pytest.raises(ErrorGroup) as caught:
        load(path)
    for error in caught.value.errors:
        assert isinstance(error, InvalidInput)
        assert error.message.startswith(f"{path}: ")
        assert str(error.key) in error.message and error.value in error.message
        assert error.message.isprintable()
    by_key = {
        str(error.key): error for error in caught.value.errors if isinstance(error, InvalidInput)
    }
    assert len(by_key) == len(caught.value.errors)
    return by_key


def error(folder: Path, text: str) -> InvalidInput:
    """Return the only error of the manifest."""
    (only,) = errors(folder, text).values()
    return only
