"""`niso validate` and the schemas: files are valid without a host, as `niso activate` takes them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import images
import pytest
from jsonschema import Draft202012Validator

import niso
from niso.cli.main import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STACKS = sorted(EXAMPLES.glob("*/stack.toml"))
MANIFEST = '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "./api"\n'
STACK = '[stack]\nname = "shop"\n[[service]]\nname = "web"\npackage = "./api"\n'


def write(folder: Path, manifest: str = MANIFEST, stack: str = STACK) -> Path:
    (folder / "api").mkdir()
    (folder / "api" / "manifest.toml").write_text(manifest)
    (folder / "stack.toml").write_text(stack)
    return folder


def test_a_folder_stands_for_its_files(tmp_path: Path, capsys, monkeypatch) -> None:
    write(tmp_path)
    assert niso.validate(tmp_path, tmp_path / "api") == (
        niso.Valid(f"{tmp_path}/stack.toml", "stack", "shop", ("web",)),
        niso.Valid(f"{tmp_path}/api/manifest.toml", "manifest", "api", ("api",)),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # needs no root
    assert run(["validate"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/stack.toml: valid stack shop of web\n"
    assert run(["validate", "--json", "api"]) == 0
    (valid,) = json.loads(capsys.readouterr().out)
    assert valid["kind"] == "manifest" and valid["services"] == ["api"]


@pytest.mark.parametrize(
    ("entrypoint", "key", "hint"),
    [
        ("/usr/lib/postgresql/17/bin/postgres", "", "INT"),
        ("/usr/sbin/php-fpm8.4", "", "QUIT"),
        ("/usr/sbin/nginx", 'stop_signal = "QUIT"', ""),
        ("/usr/bin/redis-server", "", ""),
    ],
)
def test_stop_signal_of_a_known_program_is_hinted_at(
    tmp_path: Path, capsys, entrypoint: str, key: str, hint: str
) -> None:
    file = tmp_path / "manifest.toml"
    text = MANIFEST.replace("./api", entrypoint)
    file.write_text(f"{text}\n[service]\n{key}\n")
    assert run(["validate", str(file)]) == 0
    out = capsys.readouterr().out
    assert (f'stops properly after {hint}: stop_signal = "{hint}"' in out) == bool(hint)
    assert ("hint:" in out) == bool(hint)


@pytest.mark.parametrize("ports", ["", 'network = { ports = ["80:6379"] }'])
def test_ports_that_an_image_exposes_are_hinted_at_if_none_is_published(
    tmp_path: Path, capsys, ports: str
) -> None:
    images.layout(tmp_path / "img", {"Cmd": ["x"], "ExposedPorts": {"6379/tcp": {}}})
    package = '{ name = "api", version = "1", oci = "img" }'
    (tmp_path / "manifest.toml").write_text(f"package = {package}\n{ports}\n")
    assert run(["validate", str(tmp_path)]) == 0
    assert ("exposes 6379/tcp" in capsys.readouterr().out) == (not ports)


def test_a_stack_can_have_another_name(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "stack.toml").rename(tmp_path / "production.toml")
    assert niso.validate(tmp_path / "production.toml")[0].kind == "stack"


def test_all_errors_of_all_files_are_reported_once(tmp_path: Path, capsys) -> None:
    write(
        tmp_path,
        MANIFEST + '[network]\nports = ["x"]\nnetwork = "none"\n',
        STACK + 'prots = ["80:80"]\n',
    )
    (tmp_path / "empty").mkdir()
    assert run(["validate", str(tmp_path), f"{tmp_path}/api", f"{tmp_path}/empty"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("niso: ")]
    assert len(lines) == len(set(lines)) == 4
    for part in (
        'network.network: "none" is not a network but a mode (did you mean mode = "none"?)',
        'network.ports[0]: "x"',
        "service[0].prots",
        "empty/manifest.toml: no such file",
    ):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize("file", STACKS, ids=lambda file: file.parent.name)
def test_examples_fit_the_schema_of_stacks(file: Path) -> None:
    niso.validate(file)
    Draft202012Validator(niso.stack_schema()).validate(tomllib.loads(file.read_text()))


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ('[stack]\nname = "Shop"\n[[service]]\nname = "a"\npackage = "."\n', "stack.name"),
        ('[stack]\nname = "shop"\n', ""),
        ('[stack]\nname = "shop"\n[[service]]\nname = "a"\n', "service.0"),
        (STACK + 'prots = ["80:80"]\n', "service.0"),
        (STACK + 'network = "none"\n', "service.0.network"),
        (STACK + 'depends_on = { db = "stopped" }\n', "service.0.depends_on"),
        (STACK + '[service.healthcheck]\ninterval = "often"\n', "service.0.healthcheck.interval"),
        (STACK + "[networks.back]\nmtu = true\n", "networks.back.mtu"),
    ],
)
def test_wrong_stacks_do_not_fit_it(tmp_path: Path, changed: str, path: str) -> None:
    write(tmp_path, stack=changed)
    with pytest.raises(niso.Error):
        niso.validate(tmp_path / "stack.toml")
    errors = list(Draft202012Validator(niso.stack_schema()).iter_errors(tomllib.loads(changed)))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [path]


def test_single_keys_of_a_table_override_the_manifest(tmp_path: Path) -> None:
    manifest = MANIFEST + "[healthcheck]\ntcp = 80\n"
    stack = STACK + '[service.healthcheck]\ninterval = "1s"\n[service.binary]\nargs = ["-v"]\n'
    write(tmp_path, manifest, stack)
    niso.validate(tmp_path)
    Draft202012Validator(niso.stack_schema()).validate(tomllib.loads(stack))


def test_names_of_a_stack_with_a_prefix_are_checked(tmp_path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "manifest.toml").write_text(
        '[package]\nname = "api"\nversion = "1"\n[binary]\nentrypoint = "true"\n'
    )
    text = '[stack]\nname = "{}"\nprefix = true\n[[service]]\nname = "web"\npackage = "./api"\n'
    (tmp_path / "stack.toml").write_text(text.format("shop"))
    assert [valid.services for valid in niso.validate(tmp_path)] == [("shop-web",)]
    (tmp_path / "stack.toml").write_text(text.format("s" * 60))
    with pytest.raises(niso.Error) as caught:
        niso.validate(tmp_path)
    assert "with the prefix of the stack" in str(caught.value)
