"""Test variables in manifests and stacks: substitution, .env, env_file, and relative paths."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_world import World
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from samples import samples

from niso.base.errors import Error, ErrorGroup, InvalidInput, flatten
from niso.manifest import load, stack, toml, variables
from niso.plan.specs import ServiceSpec

HEAD = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "run"\n'
SET = {"A": "one", "EMPTY": "", "PORT": "8080", "B": "${A}"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A", "B", "PORT", "EMPTY", "GONE", "NAME"):
        monkeypatch.delenv(name, raising=False)


def spec(folder: Path, text: str, env: str | None = None) -> ServiceSpec:
    (folder / "manifest.toml").write_text(HEAD + text)
    if env is not None:
        (folder / ".env").write_text(env)
    return load.load(str(folder)).spec


def errors(folder: Path, text: str, env: str | None = None) -> dict[str | None, str]:
    with pytest.raises(Error) as caught:
        spec(folder, text, env)
    return {error.key: error.message for error in flatten(caught.value)}


# --- substitution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "result"),
    [
        ("", ""),
        ("${A}", "one"),
        ("x${A}y${PORT}", "xoney8080"),
        ("${B}", "${A}"),  # a value is not looked at again
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${GONE:-d}", "d"),
        ("${GONE-}", ""),
        ("${A:-${GONE}}", "one"),  # a default that is not used need not be there
        ("${GONE:-${EMPTY:-x}y}z", "xyz"),
        ("${A:?no}", "one"),
        ("${EMPTY?no}", ""),
        ("${A:+yes}${GONE:+no}${EMPTY+set}", "yesset"),
        ("$A $$ $1 $(date) $ {A}", "$A $$ $1 $(date) $ {A}"),
        ("$${A}", "${A}"),
        ("$${A} ${A}", "${A} one"),
        ("$$${A}", "$${A}"),
        ("${GONE:-}}", "}"),
    ],
)
def test_text_with_variables(written: str, result: str) -> None:
    assert variables.text(written, (SET, ".env")) == result


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("${GONE}", "needs the variable GONE, which is not set"),
        ("${GONE:?give a port}", "needs the variable GONE: give a port"),
        ("${EMPTY:?}", "needs the variable EMPTY ("),
        ("${", "is not closed"),
        ("${A", "is not closed"),
        ("${}", 'has "${}", which is not a variable'),
        ("${A%x}", 'has "${A%x}", which is not a variable'),
        ("${#A}", "is not a variable"),
        ("${1}", "is not a variable"),
        ("${A:}", "is not a variable"),
        ("${A B}", "is not a variable"),
        ("${GONE:-" * 40 + "}" * 40, "is nested too deeply"),
    ],
)
def test_text_that_cannot_be_resolved_names_file_key_and_variable(
    tmp_path: Path, written: str, words: str
) -> None:
    found = errors(tmp_path, f"[environment]\nX = {json.dumps(written)}\n", "EMPTY=\nA=1\n")
    assert list(found) == ["environment.X"]
    message = found["environment.X"]
    assert message.startswith(f"{tmp_path}/manifest.toml: environment.X") and words in message


@settings(max_examples=samples(40, 1000), deadline=None)
@given(st.text("${}:-?+A_ \\\"'", max_size=20))
def test_any_text_is_resolved_or_refused(written: str) -> None:
    try:
        result = variables.text(written, (SET, ".env"))
    except InvalidInput:
        assert "${" in written
    else:
        assert "${" in written or result == written


def test_every_string_is_resolved_and_no_key(tmp_path: Path) -> None:
    text = """
    [environment]
    "NAME" = "${A}"
    [service]
    restart = "${R:-always}"
    [isolation]
    read_only = "${RO:-false}"
    [isolation.resources]
    pids_limit = "${PIDS:-100}"
    [healthcheck]
    tcp = "${PORT}"
    [volumes.data]
    mount = "/${A}"
    [network]
    ports = ["${PORT}:80", "${PORT}:80/udp"]
    ip = { niso-default = "10.99.0.${HOST:-9}" }
    [network.policy]
    allow_from = ["${A}:${PORT}"]
    """
    found = spec(tmp_path, text, "A=one\nPORT=8080\n")
    assert dict(found.program.environment) == {"NAME": "one"}
    assert (found.program.restart, found.program.read_only, found.program.pids_limit) == (
        "always",
        False,
        100,
    )
    assert found.program.healthcheck and found.program.healthcheck.port == 8080
    assert [volume.mount for volume in found.program.volumes] == ["/one"]
    assert [one.port.text for one in found.network.ports] == ["8080:80", "8080:80/udp"]
    assert found.network.statics("niso-default") == ("10.99.0.9",)
    assert found.network.policy.allow_from and found.network.policy.allow_from[0].text == "one:8080"
    assert "${" not in json.dumps(found.manifest)  # so that no later start needs the variables
    key = errors(tmp_path, '[environment]\n"${A}" = "x"\n')
    assert list(key) == ['environment."${A}"']


def test_value_of_a_variable_is_checked_like_any_other(tmp_path: Path) -> None:
    text = '[network]\nports = ["${PORT}:80"]\n[healthcheck]\ntcp = "${PORT}"\n'
    found = errors(tmp_path, text + '[environment]\nX = "${GONE}"\n', "PORT=eighty\n")
    assert set(found) == {"network.ports[0]", "healthcheck.tcp", "environment.X"}
    assert '"eighty" is a string (must be a number)' in found["healthcheck.tcp"]


def test_variable_that_is_not_text_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "\udcff")
    assert list(errors(tmp_path, '[environment]\nX = "${A}"\n')) == ["environment.X"]


def test_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[environment]\nX = "${A}"\n'
    assert spec(tmp_path, text, "A=file\n").program.environment["X"] == "file"
    monkeypatch.setenv("A", "shell")
    assert spec(tmp_path, text).program.environment["X"] == "shell"
    # a file that nothing needs is not read
    assert spec(tmp_path, "", "this is no such file").program.environment == {}


def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    spec(tmp_path, '[environment]\nX = "${A}"\n', "A=1\n")
    os.chmod(tmp_path / ".env", 0o666)
    with refuses(InvalidInput, hint="read it and its folder; then pass --trust-owner", file=".env"):
        load.load(str(tmp_path), {os.getuid(), 0})


# --- files of variables -----------------------------------------------------------------------------------------------


def test_form_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text(
        "\ufeff# comment\n\n  A = spaces around  \nB=a#b # comment\nC='lit $A \\n # x' # comment\n"
        'D="a\\nb\\t\\"q\\" \\\\ \\$A \\x"\nexport E=5\nF=\nG=a=b\nPASSED\nNOT_SET\nH=#x\r\nI=${A} $A\n'
    )
    assert variables.read(str(path), {"PASSED": "on"}) == {
        "A": "spaces around",
        "B": "a#b",
        "C": "lit $A \\n # x",
        "D": 'a\nb\t"q" \\ $A \\x',
        "E": "5",
        "F": "",
        "G": "a=b",
        "PASSED": "on",
        "H": "",
        "I": "${A} $A",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A secret=1", "line 2: the name is not valid"),
        ("PASSWORD: secret", "line 2: no = follows PASSWORD"),
        ("export PASSWORD : secret", "line 2: no = follows PASSWORD"),
        ("PASSWORD secret", "line 2: the name is not valid"),
        ("secret-9: 1", "line 2: the name is not valid"),
        ("=1", "line 2: "),
        ("A='x", "line 2: a quote is not closed"),
        ('A="x\\"', "line 2: a quote is not closed"),
        ("A='secret' more", "line 2: text follows the closing quote"),
        ("A=secret\0", "line 2: "),
    ],
)
def test_wrong_line_is_named_without_its_value(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "x.env"
    path.write_text(f"OK=1\n{line}\n")
    with pytest.raises(InvalidInput) as caught:
        variables.read(str(path), {})
    assert caught.value.message.startswith(f"{path}: ") and words in caught.value.message
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    """For .env, env_file and folders in its path; one below the folder may be used."""
    (tmp_path / "other.env").write_text("OTHER=secret\n")
    folder = tmp_path / "api"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "own.env").write_text("OWN=1\n")
    (folder / "in.env").symlink_to("sub/own.env")
    (folder / "out.env").symlink_to("../other.env")
    (folder / "up").symlink_to("..")
    assert spec(folder, '[service]\nenv_file = "in.env"\n').program.environment["OWN"] == "1"
    for written in ("out.env", "up/other.env", "../other.env"):
        for text, key in ((f'"{written}"', ""), (f'["in.env", "{written}"]', "[1]")):
            found = errors(folder, f"[service]\nenv_file = {text}\n")
            assert list(found) == [f"service.env_file{key}"]
            assert "leaves the folder" in "".join(found.values())
    for wrong in ('""', '"a\\u0007"', '"/a\\u0007"'):
        assert list(errors(folder, f"[service]\nenv_file = {wrong}\n")) == ["service.env_file"]
    (folder / ".env").symlink_to("../other.env")
    with refuses(
        InvalidInput,
        hint="put the file there; a link may lead to a file below its folder",
        file=".env",
    ):
        spec(folder, '[environment]\nX = "${OTHER}"\n')
    # one that comes after the check is not followed
    for link in ("sub/own.env", "sub"):
        there = str(folder / "sub" / "own.env")
        assert toml.content(there, "", None, links=False) == b"OWN=1\n"
        (folder / link).rename(folder / "moved")
        (folder / link).symlink_to(folder / "moved")
        with pytest.raises(Error):
            toml.content(there, "", None, links=False)
        (folder / link).unlink()
        (folder / "moved").rename(folder / link)


def test_files_of_a_service_come_before_its_own_variables(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("X=a\nY=a\nZ=a\n")
    (tmp_path / "b.env").write_text("Y=b\nZ=b\n")
    files = '[service]\nenv_file = ["a.env", "./b.env"]\n'
    found = spec(tmp_path, files + '[environment]\nZ = "own"\n')
    assert dict(found.program.environment) == {"X": "a", "Y": "b", "Z": "own"}
    assert spec(tmp_path, '[service]\nenv_file = "a.env"\n').program.environment["Y"] == "a"
    found_errors = errors(tmp_path, '[service]\nenv_file = "gone.env"\n[network]\nports = ["x"]\n')
    assert any(f"{tmp_path}/gone.env: no such file" in one for one in found_errors.values())
    assert "network.ports[0]" in found_errors


# --- stacks -----------------------------------------------------------------------------------------------------------


def test_stack_has_its_own_variables_files_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api" / "data").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "api" / "own.env").write_text("FILE=package\n")
    spec(
        tmp_path / "api",
        '[service]\nenv_file = "own.env"\n[environment]\nX = "${A}"\nY = "${ONLY}"\n'
        '[volumes]\nown = { mount = "/own", host = "./data" }\n',
        "A=package\nONLY=package\n",
    )
    (tmp_path / ".env").write_text("A=stack\nNAME=shop\n")
    text = (
        '[stack]\nname = "${NAME}"\n[[service]]\nname = "api"\npackage = "./${DIR:-api}"\n'
        'ports = ["${PORT:-8080}:80"]\n[service.environment]\nZ = "$${A}"\n'
        '[service.healthcheck]\ntcp = "${PORT:-80}"\n'
        '[service.volumes]\nmine = { mount = "/mine", host = "./data" }\n'
    )
    (tmp_path / "stack.toml").write_text(text)
    loaded = stack.load(str(tmp_path), None)
    (member,) = loaded.members
    found = member.loaded.spec
    assert loaded.name == stack.outline(str(tmp_path)).name == "shop"
    assert dict(found.program.environment) == {
        "FILE": "package", "X": "stack", "Y": "package", "Z": "${A}",
    }  # fmt: skip
    assert [one.port.text for one in found.network.ports] == ["8080:80"]
    assert {volume.mount: volume.host for volume in found.program.volumes} == {
        "/own": f"{tmp_path}/api/data",
        "/mine": f"{tmp_path}/data",
    }
    (tmp_path / "stack.env").write_text("FILE=stack\n")
    (tmp_path / "stack.toml").write_text(text + '[service.service]\nenv_file = "stack.env"\n')
    (member,) = stack.load(str(tmp_path), None).members
    assert member.loaded.spec.program.environment["FILE"] == "stack"  # it replaces the package's
    (tmp_path / "stack.toml").write_text(text.replace("${PORT:-8080}", "${PORT}"))
    with pytest.raises(ErrorGroup) as caught:
        stack.load(str(tmp_path), None)
    assert [error.key for error in caught.value.errors] == ["service[0].ports[0]"]
    assert f"set it in {tmp_path}/.env" in caught.value.errors[0].message


# --- what is kept, and paths beside the manifest ----------------------------------------------------------------------


def test_later_starts_need_no_variables(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = world.package("api", environment={"X": "${A}"}, service={"env_file": "x.env"})
    (Path(manifest).parent / "x.env").write_text("SECRET=1\n")
    monkeypatch.setenv("A", "one")
    world.activate(manifest)
    monkeypatch.delenv("A")
    (Path(manifest).parent / "x.env").unlink()
    world.activate("api")
    row = world.store.service("api")
    assert row and dict(row.require_process().environment) == {"SECRET": "1", "X": "one"}
    with pytest.raises(ErrorGroup, match="needs the variable A"):
        world.activate(manifest)
    world.assert_whole()


def test_variables_and_secrets_are_no_part_of_a_package(world: World) -> None:
    """Neither those of the service nor of another one in its stack; other files of the name are."""
    manifest = world.package("api", service={"env_file": "a.env"}, environment={"V": "${V}"})
    folder = Path(manifest).parent
    (folder / "sub").mkdir()
    for name in (".env", "a.env", "b.env", "sub/.env"):
        (folder / name).write_text("V=1\nUNUSED=1\n" if name != "a.env" else "A=1\n")
    (folder / "link.env").symlink_to("a.env")

    def copied(service: str) -> set[str]:
        row = world.store.service(service)
        assert row
        copy = Path(row.package)
        return {str(path.relative_to(copy)) for path in copy.rglob("*")}

    world.activate(manifest)
    assert copied("api") == {"run", "manifest.toml", "b.env", "sub", "sub/.env"}
    before = world.picture()
    (folder / ".env").write_text("V=1\nUNUSED=rotated\n")
    world.activate(manifest)
    assert world.picture() == before
    (folder / "pw").write_text("secret")
    service = """
    [services.{0}]
    package.folder = "api"
    binary.entrypoint = "run"
    service.env_file = "api/{0}.env"
    secrets.pw.file = "api/pw"
    """
    text = '[stack]\nname = "shop"\n' + service.format("a") + service.format("b")
    (world.folder / "stack.toml").write_text(text.replace("secrets.pw", "secrets.own", 1))
    world.up(str(world.folder))
    for one in ("a", "b"):
        assert copied(one) == {"run", "manifest.toml", ".env", "sub", "sub/.env"}
    world.assert_whole()


def test_folder_beside_the_manifest_is_mounted_and_no_part_of_the_package(world: World) -> None:
    manifest = world.package("api", volumes={"data": {"mount": "/data", "host": "./data"}})
    folder = Path(manifest).parent
    with refuses(Error, key="volumes.data.host", file="api/manifest.toml"):
        world.activate(manifest)
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("1")
    world.activate(manifest)
    row = world.store.service("api")
    assert row
    (volume,) = row.require_process().volumes
    assert volume.source == f"{folder}/data" and volume.identity is not None
    assert not (Path(row.package) / "data").exists()
    (folder / "data" / "file").write_text("what the service writes is no change")
    (outcome,) = world.activate(manifest)
    assert not outcome.changed


@pytest.mark.parametrize("host", ["./../out", "./link", "./in/../../out", "data", "../out"])
def test_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, host: str) -> None:
    folder = tmp_path / "api"
    (folder / "in").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (folder / "link").symlink_to(tmp_path / "out")
    found = errors(folder, f'[volumes]\nd = {{ mount = "/d", host = "{host}" }}\n')
    assert list(found) == ["volumes.d.host"]
    reason = "leaves the folder of this file" if host.startswith("./") else "is not absolute"
    assert reason in found["volumes.d.host"]


def test_what_is_nested_deeply_is_no_trouble(tmp_path: Path) -> None:
    found = errors(tmp_path, f'[environment]\nX = "${{A}}"\nY{".a" * 14} = "${{A}}"\n', "A=1")
    assert list(found) == ["environment.Y"]
