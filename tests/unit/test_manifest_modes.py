"""Test network modes in manifest.toml: allowed keys, and errors about others."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from niso.base.errors import ErrorGroup, InvalidInput
from niso.manifest.json_schema import manifest_schema
from niso.manifest.load import load

HEAD = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "sleep"\n'
VALIDATOR = Draft202012Validator(manifest_schema())

KEYS = {
    "ports": "ports = ['80:80']",
    "network": "network = 'backend'",
    "networks": "networks = ['a', 'b']",
    "ip": "ip = '10.99.1.10'",
    "aliases": "aliases = ['web']",
    "hostname": "hostname = 'front'",
    "policy": "policy = { allow_from = ['db'] }",
}
RIGHT = {
    "bridge": ("ports", "network", "ip", "aliases", "hostname", "policy"),
    "host": (),
    "none": ("hostname",),
    "share": ("ports",),
}


def write(folder: Path, text: str) -> str:
    (folder / "manifest.toml").write_text(HEAD + text)
    return str(folder)


def errors(folder: Path, text: str) -> list[InvalidInput]:
    with pytest.raises(ErrorGroup) as caught:
        load(write(folder, text))
    return list(caught.value.errors)  # type: ignore[arg-type]


def table(mode: str, *lines: str) -> str:
    share = ["share = 'db'"] if mode == "share" else []
    return "\n".join(["[network]", f"mode = '{mode}'", *share, *lines])


@pytest.mark.parametrize("mode", RIGHT)
def test_mode_with_all_that_goes_with_it_is_right(tmp_path: Path, mode: str) -> None:
    text = table(mode, *(KEYS[key] for key in RIGHT[mode]))
    spec = load(write(tmp_path, text)).spec
    assert (spec.network.mode, spec.network.share) == (mode, "db" if mode == "share" else None)
    assert VALIDATOR.is_valid(tomllib.loads(HEAD + text))


@pytest.mark.parametrize(
    ("mode", "key"), [(m, k) for m in RIGHT if m != "bridge" for k in KEYS if k not in RIGHT[m]]
)
def test_key_that_does_not_go_with_the_mode_is_an_error_that_says_what_to_do(
    tmp_path: Path, mode: str, key: str
) -> None:
    text = table(mode, KEYS[key])
    (error,) = errors(tmp_path, text)
    assert error.key == f"network.{key}"
    assert error.message.startswith(f"{tmp_path}/manifest.toml: network.{key}: ")
    assert f'mode = "{mode}"' in error.message
    assert error.hint == f'remove network.{key}, or set mode = "bridge"'
    assert not VALIDATOR.is_valid(tomllib.loads(HEAD + text))


@pytest.mark.parametrize("mode", ["host", "none", "share"])
def test_all_that_does_not_go_with_a_mode_comes_at_once(tmp_path: Path, mode: str) -> None:
    wrong = [key for key in KEYS if key not in RIGHT[mode] and key != "network"]
    found = errors(tmp_path, table(mode, *(KEYS[key] for key in wrong)))
    assert {error.key for error in found} == {f"network.{key}" for key in wrong}


@pytest.mark.parametrize("mode", ["bridge", "host", "none"])
def test_share_without_its_mode_is_an_error(tmp_path: Path, mode: str) -> None:
    text = table(mode, "share = 'db'")
    (error,) = errors(tmp_path, text)
    assert (error.key, '"db" is not allowed' in error.message) == ("network.share", True)
    assert 'mode = "share"' in error.message
    assert not VALIDATOR.is_valid(tomllib.loads(HEAD + text))


def test_share_without_any_mode_is_an_error(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "[network]\nshare = 'db'")
    assert error.key == "network.share"
    assert not VALIDATOR.is_valid(tomllib.loads(HEAD + "[network]\nshare = 'db'"))


def test_mode_share_needs_to_know_whose(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "[network]\nmode = 'share'")
    assert (error.key, error.hint) == ("network.share", 'add share = "NAME" to [network]')
    assert "missing key network.share" in error.message
    assert not VALIDATOR.is_valid(tomllib.loads(HEAD + "[network]\nmode = 'share'"))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("api", "is the service itself"),
        ("Db", 'is not a valid name: "D" is not allowed (a-z, 0-9, -)'),
        ("localhost", "is reserved by the system"),
    ],
)
def test_share_of_what_cannot_be_is_an_error(tmp_path: Path, share: str, words: str) -> None:
    (error,) = errors(tmp_path, f"[network]\nmode = 'share'\nshare = '{share}'")
    assert error.key == "network.share"
    assert words in error.message


def test_mode_that_there_is_not_names_those_that_there_are(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "[network]\nmode = 'macvlan'")
    assert error.key == "network.mode"
    assert '"bridge", "host", "none" or "share"' in error.message


def test_only_bridge_mode_has_networks(tmp_path: Path) -> None:
    found = {mode: load(write(tmp_path, table(mode))).spec.network.networks for mode in RIGHT}
    assert found == {"bridge": ("niso-default",), "host": (), "none": (), "share": ()}
