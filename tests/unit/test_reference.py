"""Test that the reference and man pages are up to date and correct."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from reference import other_tools, results, toml_files
from reference.document import Code, Heading, Page, Terms, Text, man, markdown
from reference.pages import pages

from niso.cli import command as cli_command
from niso.cli.command import Command
from niso.cli.general_commands import documented
from niso.engines import cni, docker, netavark, plugin
from niso.manifest import json_schema, load, stack
from niso.manifest.addresses_and_ports import parse_port
from niso.manifest.policy import parse
from niso.plan.records import PortMapping

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = pages()
MANUALS = [name for name in PAGES if name.startswith("man/")]


def commands() -> list[Command]:
    return [each for one in documented() for each in (one.actions or (one,))]


def test_pages_are_what_the_code_says() -> None:
    old = [name for name, text in PAGES.items() if (DOCS / name).read_text() != text]
    assert old == [], "run ./dev docs"


def test_the_table_of_a_guide_is_what_the_code_says() -> None:
    guide = (DOCS / other_tools.GUIDE).read_text(encoding="utf-8")
    assert other_tools.with_commands(guide) == guide, "run ./dev docs"


def test_there_are_no_other_pages() -> None:
    there = {
        f"{folder}/{path.name}"
        for folder in ("man", "reference")
        for path in (DOCS / folder).iterdir()
    }
    assert there == set(PAGES)


@pytest.mark.parametrize("name", MANUALS)
def test_groff_has_nothing_to_say_of_a_man_page(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=78n", DOCS / name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GROFF_NO_SGR": "1"},
    )
    assert done.stderr == ""
    assert "\nSEE ALSO\n" in done.stdout.replace("\b", "") or "S\bSE\bEE\bE" in done.stdout
    assert "\\" not in done.stdout


def test_manuals_have_every_command_option_example_and_exit_status() -> None:
    for command in commands():
        group = command.name.split()[0]
        page = PAGES[f"man/niso-{group}.1" if f"man/niso-{group}.1" in PAGES else "man/niso.1"]
        shown = (
            page.replace("\\-", "-")
            .replace("\\(aq", "'")
            .replace("\\(ga", "`")
            .replace("\\(ti", "~")
        )
        assert f".SS niso {command.name}\n" in shown
        for option in command.options:
            assert f"\\fB{option.takes}\\fR" in shown
        assert all(line in shown for line, _ in command.examples)
        assert all(f"\\fB{status}\\fR" in shown for status, _ in command.exits)


def test_manuals_of_plugins_have_every_option() -> None:
    words = {
        "cni": (*cni._KEYS, *(f"NISO_{key.upper()}" for key in plugin.POLICY_KEYS)),
        "docker": (*docker._OPTIONS, *(f"niso.{key}" for key in plugin.OWN_OPTIONS)),
        "netavark": (*netavark._OPTIONS, *plugin.OWN_OPTIONS),
    }
    by_runtime = {"cniVersion", "name", "runtimeConfig", "args", "prevResult", "ipMasq"}
    by_runtime |= {"disableCheck", "disableGC"}
    for name, keys in words.items():
        shown = PAGES[f"man/niso-{name}.1"].replace("\\-", "-").replace("\\fB", "")
        for key in {key for key in keys if not key.startswith("cni.dev/")} - by_runtime:
            assert re.search(rf"\b{re.escape(key)}\b", shown), (name, key)


def test_letters_that_troff_and_markdown_would_read_are_shown_as_they_are() -> None:
    blocks = (
        Heading("A b"),
        Text(".first `--x` a\\b ^~' [1] *2* <3>"),
        Code(".x\n'y\\n"),
        Terms((("a|b", "-c"), (".d", ".e"))),
    )
    assert man(Page("n", 1, "x-y", blocks, ("m(5)",)), "0") == (
        '.\\" generated from the code by ./dev docs\n.TH N 1 "" "niso 0"\n.SH NAME\nn \\- x\\-y\n.SH A B\n'
        "\\&.first \\fB\\-\\-x\\fR a\\eb \\(ha\\(ti\\(aq [1] *2* <3>\n"
        ".PP\n.RS 4\n.nf\n\\&.x\n\\(aqy\\en\n.fi\n.RE\n"
        ".TP\n\\fBa|b\\fR\n\\-c\n.TP\n\\fB.d\\fR\n\\&.e\n.SH SEE ALSO\n\\fBm\\fR(5)\n"
    )
    assert markdown("T", blocks) == (
        "<!-- generated from the code by ./dev docs -->\n\n# T\n\n## A b\n\n"
        ".first `--x` a\\b ^~' \\[1\\] \\*2\\* \\<3\\>\n\n```\n.x\n'y\\n\n```\n\n"
        "| | |\n| --- | --- |\n| `a\\|b` | -c |\n| `.d` | .e |\n"
    )


# --- the files -------------------------------------------------------------------------------------------------------


def test_example_manifest_is_right(tmp_path: Path) -> None:
    import tomllib

    import jsonschema

    (tmp_path / "manifest.toml").write_text(toml_files.MANIFEST)
    (published,) = load.load(str(tmp_path)).spec.network.ports
    assert published.port == PortMapping("", 8080, 8080, "tcp")
    jsonschema.Draft202012Validator(json_schema.manifest_schema()).validate(
        tomllib.loads(toml_files.MANIFEST)
    )


def test_example_stack_is_right(tmp_path: Path) -> None:
    for name in ("postgres", "api"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.toml").write_text(
            f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "sh"\n[healthcheck]\ntcp = 80\n'
        )
    (tmp_path / "stack.toml").write_text(toml_files.STACK)
    assert [member.name for member in stack.load(str(tmp_path), None).members] == ["db", "api"]


@pytest.mark.parametrize("form", [form for form, _ in toml_files.PORTS])
def test_form_of_a_port_is_right(form: str) -> None:
    parse_port(form, "PORT")


@pytest.mark.parametrize("form", [form for form, _ in toml_files.PEERS])
def test_form_of_a_peer_is_right(form: str) -> None:
    parse((form,), (), None, (), False)
    parse(None, (form,), (form,), (form,), True)


def test_manifest_page_has_every_key_of_the_schema() -> None:
    page = " ".join(PAGES["reference/manifest.md"].split())
    for struct, definition in json_schema.manifest_schema()["$defs"].items():
        for name, field in definition["properties"].items():
            assert field["description"] in page.replace("\\", ""), f"{struct}.{name}"


def test_stack_page_has_every_key() -> None:
    page = PAGES["reference/stack.md"]
    for name in (*stack.Network._fields, *stack.StackServiceKeys._fields):
        assert f"| `{name}: " in page


# --- --json ----------------------------------------------------------------------------------------------------------


def test_what_json_prints_is_told_of_every_command_that_has_it() -> None:
    have = {
        command.name
        for command in commands()
        if any("--json" in option.flags for option in command.options)
    }
    assert have == {name.removesuffix(" --all-hosts") for name in results.RESULTS}
    assert cli_command.COMMANDS.keys() >= {name.split()[0] for name in have}


def test_what_is_inside_an_object_is_told_wherever_it_is() -> None:
    page = PAGES["reference/json.md"]
    for prefix in ("ports[]", "forwards[]", "services[].ports[]", "taken[].ports[]"):
        assert f"| `{prefix}.host_ip: string" in page
