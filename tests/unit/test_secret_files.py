"""Test [secrets]: their table, what is recorded of them, and when a change restarts, on fakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Error, flatten
from niso.change import activate
from niso.manifest import load
from niso.plan.specs import ProcessSpec

HEAD = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "run"\n'


def process(world: World, name: str = "api") -> ProcessSpec:
    row = world.store.service(name)
    assert row is not None
    return row.require_process()


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('"a b" = { file = "x" }', 'secrets."a b"', "is not a valid name of a secret"),
        ('".x" = { file = "x" }', 'secrets.".x"', "is not a valid name"),
        ('a = "x"', "secrets.a", "is a string (must be a table)"),
        ("a = {}", "secrets.a.file", "missing key"),
        ('a = { env = "X" }', "secrets.a.env", "unknown key"),
        ('a = { file = "" }', "secrets.a.file", "is empty"),
        ('a = { file = "../x" }', "secrets.a.file", "leaves the folder"),
        ('a = { file = "out" }', "secrets.a.file", "leaves the folder"),
        (
            'a = { file = "x" }\n[volumes]\nv = { mount = "/run/secrets/a" }',
            "volumes.v.mount",
            "is where [secrets] are",
        ),
        (
            'a = { file = "x" }\n[volumes]\nv = { mount = "/run" }',
            "volumes.v.mount",
            "is where [secrets] are",
        ),
    ],
)
def test_wrong_secret_is_named(tmp_path: Path, text: str, key: str, words: str) -> None:
    folder = tmp_path / "api"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "manifest.toml").write_text(f"{HEAD}[secrets]\n{text}\n")
    with pytest.raises(Error) as caught:
        load.load(str(folder))
    found = {error.key: error.message for error in flatten(caught.value)}
    assert key in found and words in found[key]


def test_volume_at_run_is_fine_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_text(f'{HEAD}[volumes]\nv = {{ mount = "/run/secrets" }}\n')
    assert load.load(str(tmp_path)).spec.program.volumes[0].mount == "/run/secrets"


def test_store_has_a_digest_that_tells_nothing_of_the_content(world: World) -> None:
    secrets = {"A": {"file": "a"}, "B": {"file": "./b"}}
    manifest = world.package("api", secrets=secrets)
    folder = Path(manifest).parent
    for name in ("a", "b"):
        (folder / name).write_text("the same secret")
    world.activate(manifest)
    first, second = process(world).secrets
    assert (first.name, first.source) == ("A", f"{folder}/a")
    assert first.digest != second.digest and first.salt != second.salt
    row = world.store.service("api")
    assert row and "the same secret" not in json.dumps(row._asdict())
    assert sorted(os.listdir(row.package)) == ["manifest.toml", "run"]
    before = world.pid("api")
    (outcome,) = world.activate(manifest)
    assert not outcome.changed
    (outcome,) = world.activate("api")
    assert not outcome.changed and world.pid("api") == before
    (folder / "a").write_text("another one")
    (outcome,) = world.activate(manifest)
    assert outcome.changed and world.pid("api") != before
    assert process(world).secrets[1] == second
    assert process(world).secrets[0].salt == first.salt
    world.assert_whole()


def test_secret_that_cannot_be_read_starts_nothing(world: World) -> None:
    manifest = world.package("api", secrets={"A": {"file": "a"}})
    folder = Path(manifest).parent
    before = world.picture()
    for make in (
        lambda path: None,
        os.mkfifo,
        os.mkdir,
        lambda path: Path(path).write_bytes(bytes((512 << 10) + 1)),
    ):
        make(str(folder / "a"))
        with refuses(Error, key="secrets.A.file", file="api/manifest.toml"):
            world.activate(manifest)
        assert world.picture() == before
        if (folder / "a").is_dir():
            (folder / "a").rmdir()
        else:
            (folder / "a").unlink(missing_ok=True)
    (folder / "a").write_text("x")
    world.activate(manifest)
    pid = world.pid("api")
    (folder / "a").unlink()
    with refuses(Error, key="secrets.A.file"):
        activate.restart(world.machine, ["api"])
    assert world.pid("api") == pid


def test_secret_that_others_can_change_is_refused(world: World) -> None:
    manifest = world.package("api", secrets={"A": {"file": "a"}})
    secret = Path(manifest).with_name("a")
    secret.write_text("x")
    secret.chmod(0o666)
    mine = {os.getuid()}
    with pytest.raises(Error, match='" is writable for everybody') as caught:
        load.load(manifest, mine)
    (error,) = flatten(caught.value)
    assert (error.key, "--trust-owner" in (error.hint or "")) == ("secrets.A.file", True)
    assert load.load(manifest).spec.program.secrets == {"A": str(secret)}
    secret.chmod(0o600)
    load.load(manifest, mine)


def test_secret_that_is_not_a_file_is_refused_by_check(world: World) -> None:
    manifest = world.package("api", secrets={"A": {"file": "/dev/zero"}, "B": {"file": "later"}})
    with pytest.raises(Error) as caught:
        load.load(manifest)
    (error,) = flatten(caught.value)
    assert error.detail == 'secrets.A.file: "/dev/zero" is not a regular file'
