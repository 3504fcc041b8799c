"""Test the command line: parsing, errors, and completeness of the help."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import shlex
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from fake_world import World

import niso
from niso.base import paths
from niso.base.errors import Error, UsageError
from niso.base.report import Finished
from niso.cli import command as cli_command
from niso.cli import main, service_commands
from niso.cli import parse as cli_parse
from niso.cli.command import Command
from niso.cli.net_commands import _lines
from niso.cli.parse import parse

HIDDEN = ("complete", "on-exit")


def commands() -> list[Command]:
    found: list[Command] = []
    for name in cli_command.COMMANDS:
        each = cli_command.find(name, "")
        found += each.actions or (each,)
    return found


COMMANDS = {command.name: command for command in commands()}
VISIBLE = [command for name, command in COMMANDS.items() if name not in HIDDEN]


def said(capsys: Any, *words: str) -> tuple[int, str, str]:
    status = main.run(list(words))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(autouse=True)
def anybody_at_80_columns(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("COLUMNS", "80")


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_first_screen_groups_the_commands_and_fits_a_terminal_of_32_lines(capsys, words) -> None:
    status, out, err = said(capsys, *words)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 31 and all(len(line) <= 80 for line in lines)
    assert [line for line in lines if line in cli_command.HEADINGS] == [*cli_command.HEADINGS]


def test_each_command_is_under_one_heading_or_in_the_plumbing(capsys) -> None:
    listed = [
        name
        for names in (*cli_command.HEADINGS.values(), (cli_command.PLUMBING,))
        for part in names
        for name in part.split(", ")
        if name
    ]
    assert len(listed) == len(set(listed))
    assert all(cli_parse.named(name).name == name for name in listed)
    hidden = {*HIDDEN, "help", "version"}
    assert {name.split()[0] for name in listed} == cli_command.COMMANDS.keys() - hidden
    plumbing = said(capsys, "help", "plumbing")[1]
    assert all(f"  {name} " in plumbing for name in cli_command.PLUMBING.split(", "))


@pytest.mark.parametrize("words", ["net policy", "cluster member"])
def test_first_word_of_actions_shows_these_actions(capsys, words) -> None:
    group, word = words.split()
    asked = [said(capsys, group, word, "--help"), said(capsys, "help", group, word)]
    assert asked[0] == asked[1]
    status, out, err = asked[0]
    assert (status, err) == (0, "") and out.startswith(f"usage: niso {words} ACTION")
    for action in cli_command.find(group, "").actions:
        is_shown = f"  {action.name.split()[-1]} " in out and action.does[:20] in out
        assert is_shown == action.name.startswith(f"{words} ")


def test_former_commands_become_present_ones_with_a_note() -> None:
    for former, option, now in cli_command.RENAMED:
        words, note = cli_command.present([*former.split(), *option.split(), "x"])
        if not (option or former != "kubernetes"):
            words, note = cli_command.present([former])
        command = cli_command.find(words[0], " ".join(words[1:3]))
        assert not command.actions and now.startswith(command.name)
        flags = {flag for one in command.options for flag in one.flags}
        assert {word for word in now.split() if word.startswith("--")} <= flags
        assert f"'niso {former}" in note and now.removesuffix(" --yes") in note
        assert cli_command.present(words) == (words, "")
    assert cli_command.present(["net", "names", "--host=on", "--json"])[0] == [
        *("net", "names", "on", "--json")
    ]
    for words in (
        ["exec", "a", "--", "check"],
        ["kubernetes", "--help"],
        ["activate", "--", "--take"],
    ):
        assert cli_command.present(words) == (words, "")


def test_former_command_runs_as_the_present_one(capsys, tmp_path) -> None:
    (tmp_path / "manifest.toml").write_text(
        '[package]\nname = "a"\nversion = "1"\n[binary]\nentrypoint = "true"\n'
    )
    now = said(capsys, "validate", str(tmp_path))
    former = said(capsys, "check", str(tmp_path))
    assert now[0] == 0 and now[2] == ""
    assert former == (*now[:2], "niso: 'niso check' is now 'niso validate'\n")


def test_words_of_other_tools_run_if_they_can_mean_only_one_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = {
        "stop api": "deactivate api",
        "rm api": "remove api",
        "start api": "activate api",
        "net ls --json": "net list --json",
        "net rm backend": "net remove backend",
        "up ./shop": "stack up ./shop",
    }
    for theirs, ours in same.items():
        assert cli_command.present(theirs.split()) == (ours.split(), "")
    for unclear in ("up", "up -d", "down", "start ./api", "start", "ls", "restart api"):
        assert cli_command.present(unclear.split()) == (unclear.split(), "")
    (tmp_path / "stack.toml").touch()
    assert cli_command.present(["down", "--dry-run"])[0] == ["stack", "down", "--dry-run"]


class Swept:
    """A host with more objects than `niso reset` lists."""

    def sweep(self, dry_run: bool = False) -> SimpleNamespace:
        for number in range(30):
            for what in ("stop", "ip netns delete"):
                self.progress(SimpleNamespace(describe=lambda w=what, n=number: f"{w} s{n}"))
        self.progress(Finished())
        return SimpleNamespace(removed=60)


@pytest.mark.parametrize(("answer", "agrees"), [("y\n", True), ("\n", False), ("", False)])
def test_reset_lists_all_services_and_asks(capsys, monkeypatch, answer, agrees) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert service_commands._agrees(Swept()) == agrees
    said = capsys.readouterr().err
    assert all(f"stop s{number}\n" in said for number in range(30))
    assert "... and 10 more" in said and "done" not in said and said.endswith("[y/N] ")


def test_reset_without_a_terminal_needs_yes(capsys, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    status, out, err = said(capsys, "reset")
    assert (status, out) == (2, "") and "--yes" in err and "--dry-run" in err


@pytest.mark.parametrize("name", ["net", "stack"])
def test_group_alone_shows_its_actions(capsys, name) -> None:
    asked = [
        said(capsys, *words) for words in ([name], [name, "--help"], [name, "-h"], ["help", name])
    ]
    assert len(set(asked)) == 1
    status, out, err = asked[0]
    assert (status, err) == (0, "")
    group = cli_command.find(name, "")
    assert group.actions
    for action in group.actions:
        if action.aside:
            assert re.search(rf"also: (.|\n)*\b{action.name.split()[1]}\b", out)
            continue
        assert f"{action.name.split()[1]:<7}  {action.does}" in out or f" {action.does}\n" in out
    assert len(out.splitlines()) <= 23 and all(len(line) <= 80 for line in out.splitlines())


def wrong_with_help(capsys, command: Command) -> list[str]:
    """Return what the help of a command lacks, by name."""
    name = command.name.split()
    status, out, err = said(capsys, *name, "--help")
    paragraphs = out.split("\n\n")
    examples = re.search(r"^examples?:\n((?:  .*\n)+)", out, re.MULTILINE)
    outside = out.replace(examples[1], "") if examples else out
    right = {
        "status": (status, err) == (0, ""),
        "other forms": said(capsys, "help", *name)[1] == said(capsys, *name, "-h")[1] == out,
        "usage": paragraphs[0].startswith(f"usage: niso {command.name}"),
        "sentence": paragraphs[1].lower() == f"{command.does}.".lower(),
        "example": bool(examples) or command.name in ("help", "version"),
        "80 columns": all(len(line) <= 80 for line in outside.splitlines()),
    }
    for option in command.options:
        flag = option.flags[-1]
        right[flag] = bool(re.search(rf"^  .*{re.escape(flag)}\b", out, re.MULTILINE))
        default = f"(default: {option.default})" in " ".join(out.split())
        right[f"default of {flag}"] = not option.default or default
    return [what for what, is_right in right.items() if not is_right]


def test_help_has_usage_a_sentence_all_options_and_an_example(capsys) -> None:
    found = {command.name: wrong_with_help(capsys, command) for command in VISIBLE}
    assert {name: lacks for name, lacks in found.items() if lacks} == {}


@pytest.mark.parametrize("columns", [60, 132])
def test_help_fits_other_terminals(columns, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in VISIBLE:
        outside = re.sub(
            r"^examples?:\n((?:  .*\n)+)", "", cli_parse.command(command), flags=re.MULTILINE
        )
        assert max(len(line) for line in outside.splitlines()) <= columns, command.name
    for words in ([], ["net"], ["stack"]):
        assert max(len(line) for line in said(capsys, *words)[1].splitlines()) <= columns, words


def test_example_fits_80_columns() -> None:
    assert [line for command in VISIBLE for line, _ in command.examples if len(line) > 78] == []


def wrong_with_example(command: Command, line: str) -> str:
    """Return why an example is not a call of its command that can be parsed; '' if it is."""
    words = shlex.split(
        line.replace("source <(", "").replace(")", "") if line.startswith("source") else line
    )
    words = words[: words.index(">")] if ">" in words else words
    words = [word for word in words if word != "@reboot"]
    name = command.name.split()
    if words[0].rpartition("/")[2] != "niso" or words[1 : 1 + len(name)] != name:
        return "another command"
    try:
        parse(command, words[1 + len(name) :])
    except Error as error:
        return str(error)
    return ""


def test_examples_are_of_their_command_and_right() -> None:
    examples = [(command, line) for command in VISIBLE for line, _ in command.examples]
    assert examples
    found = {line: wrong_with_example(command, line) for command, line in examples}
    assert {line: why for line, why in found.items() if why} == {}


def test_one_option_has_one_meaning_everywhere() -> None:
    shorts: dict[str, set[str]] = {}
    for command in VISIBLE:
        flags = [flag for option in command.options for flag in option.flags]
        assert len(flags) == len(set(flags)), command.name
        for option in command.options:
            # -t of exec is that of docker exec
            for flag in () if command.name == "exec" else option.flags[:-1]:
                shorts.setdefault(flag, set()).add(option.flags[-1])
    assert all(len(longs) == 1 for longs in shorts.values()), shorts


# --- how words are taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("logs api", {"name": "api", "follow": False, "lines": None, "timestamps": False}),
        ("logs -ft api", {"follow": True, "timestamps": True}),
        ("logs api -n5", {"lines": 5}),
        ("logs api -fn 5", {"follow": True, "lines": 5}),
        ("logs api -n -5", {"lines": -5}),
        ("logs api --lines=7 -t", {"lines": 7, "timestamps": True}),
        ("logs -- -x", {"name": "-x"}),
        (
            "net create x --subnet 10.1.0.0/24 --subnet=fd00::/64",
            {"subnet": ["10.1.0.0/24", "fd00::/64"], "name": "x"},
        ),
        ("net create --mtu 9000 x", {"mtu": 9000, "gateway": [], "ipv6": False}),
        ("net explain api db:1", {"family": None, "prove": False}),
        ("net explain -6 api db:1", {"family": 6}),
        ("net check", {"name": None}),
        ("deactivate", {"names": [], "all": False}),
        ("deactivate a b", {"names": ["a", "b"]}),
        ("activate --timeout=5s a", {"what": ["a"], "timeout": "5s"}),
        ("activate a", {"timeout": "60s"}),
        ("stack up", {"dir": "."}),
        ("stack up there -v", {"dir": "there", "verbose": True}),
        ("exec api -- ls --help -v --", {"name": "api", "command": ["ls", "--help", "-v", "--"]}),
        ("exec api ls -- x", {"command": ["ls", "--", "x"]}),
        ("exec api", {"command": []}),
        ("exec -it api sh", {"name": "api", "command": ["sh"]}),
        ("exec -i -t api ls -a", {"name": "api", "command": ["ls", "-a"]}),
        ("ps -a", {"all": True}),
        ("logs api --tail 5 --follow --since 2h", {"lines": 5, "follow": True, "since": "2h"}),
        ("lab -- sh -c x", {"command": ["sh", "-c", "x"]}),
        ("lab sh -h", {"command": ["sh", "-h"]}),
        ("lab", {"command": []}),
    ],
)
def test_words_become_values(line, values) -> None:
    words = line.split()
    command = COMMANDS[" ".join(words[:2])] if words[0] in ("net", "stack") else COMMANDS[words[0]]
    args = parse(command, words[len(command.name.split()) :])
    assert {name: getattr(args, name) for name in values} == values


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("activat x", "unknown command 'activat' / did you mean 'activate'?"),
        ("frobnicate", "unknown command 'frobnicate' / niso help lists them"),
        ("-x", "unknown command '-x' / niso help lists them"),
        (
            "-v ps",
            "unknown command '-v' / options go after the command: niso ps --help lists its options",
        ),
        (
            "-v activate ./api",
            "unknown command '-v' / options go after the command: niso activate ./api -v",
        ),
        (
            "-v stack up there",
            "unknown command '-v' / options go after the command: niso stack up there -v",
        ),
        (
            "net -v create x",
            "unknown command '-v' / options go after the command: niso net create x -v",
        ),
        ("-v net frob", "unknown command '-v' / niso help lists them"),
        (
            "start ./a",
            "unknown command 'start' / niso activate ./a: starts the service of a folder",
        ),
        ("deactivat db", "unknown command 'deactivat' / niso help lists them"),
        ("unenable db", "unknown command 'unenable' / niso help lists them"),
        ("net delet bk", "unknown action 'net delet' / niso help net lists them"),
        ("help activat", "unknown command 'activat' / did you mean 'activate'?"),
        ("help net lst", "unknown action 'net lst' / did you mean 'net list'?"),
        ("net lst", "unknown action 'net lst' / did you mean 'net list'?"),
        ("net zzzzz", "unknown action 'net zzzzz' / niso help net lists them"),
        ("stack pss .", "unknown action 'stack pss' / did you mean 'stack ps'?"),
        # what ends something is never suggested
        ("stack dwon .", "unknown action 'stack dwon' / niso help stack lists them"),
        ("remov api", "unknown command 'remov' / niso help lists them"),
        ("deactivate --al", "unknown option '--al' / niso deactivate --help lists them"),
        ("net removee x", "unknown action 'net removee' / niso help net lists them"),
        # commands of other tools
        (
            "run -d -p 80:80 nginx",
            "unknown command 'run' / niso activate ./FOLDER: ports, volumes and the rest are in "
            "the folder's manifest.toml",
        ),
        ("status api", "unknown command 'status' / niso ps: lists inactive services too"),
        ("compose up -d", "unknown command 'compose' / niso stack up: reads ./stack.toml"),
        ("network ls", "unknown command 'network' / niso net list"),
        ("net delete x", "unknown action 'net delete' / niso net remove NAME"),
        (
            "stack config",
            "unknown action 'stack config' / niso stack up --dry-run: shows the steps",
        ),
        (
            "pull redis",
            "unknown command 'pull' / there are no images: a service is a folder, and can have a "
            "root file system",
        ),
        (
            "help compose",
            "unknown command 'compose' / niso stack up: niso help stack lists the actions",
        ),
        (
            "activate",
            "missing PATH|NAME: a manifest, its folder or a known service / niso activate --help",
        ),
        ("activate --colour x", "unknown option '--colour' / niso activate --help lists them"),
        ("activate --dryrun", "unknown option '--dryrun' / did you mean '--dry-run'?"),
        ("activate --time 5s x", "unknown option '--time' / did you mean '--timeout'?"),
        ("ps --jsno", "unknown option '--jsno' / did you mean '--json'?"),
        ("ps -x", "unknown option '-x' / niso ps --help lists them"),
        ("ps more", "unexpected argument 'more' / niso ps --help"),
        ("ps --json=1", "--json takes no value: '--json=1' / niso ps --help"),
        ("logs x -n", "-n needs a value: -n, --tail, --lines N / niso logs --help"),
        ("logs x -n --follow", "-n needs a value: -n, --tail, --lines N / niso logs --help"),
        ("logs x -n many", "-n 'many': must be a whole number / niso logs --help"),
        ("logs x -fx", "unknown option '-x' / niso logs --help lists them"),
        (
            "net create",
            "missing NAME: up to 63 of a-z, 0-9 and -, starting with a letter / niso net create --help",
        ),
        (
            "net create x --mtu many",
            "--mtu 'many': must be a whole number / niso net create --help",
        ),
        ("net explain a b -4 -6", "-4 and -6 are mutually exclusive / niso net explain --help"),
        (
            "port-forward a 1:1 --remove --take-over",
            "--remove and --take-over are mutually exclusive / niso port-forward --help",
        ),
        ("exec api --colour -- sh", "unknown option '--colour' / niso exec --help lists them"),
        ("completion fish", "unknown shell 'fish' / bash or zsh"),
    ],
)
def test_wrong_words_are_status_2_and_the_hint_says_what_is_right(capsys, line, words) -> None:
    message, _, hint = words.partition(" / ")
    status, out, err = said(capsys, *line.split())
    assert out == "" and err == f"niso: {message}\n  hint: {hint}\n"
    assert status == (125 if line.startswith("exec") else 2)


def test_wrong_words_for_json_callers_are_json(capsys) -> None:
    status, out, err = said(capsys, "ps", "--json", "--colour")
    assert (status, out) == (2, "")
    assert (
        err
        == '{"error": {"message": "unknown option \'--colour\'", "hint": "niso ps --help lists them", "key": null}}\n'
    )
    for line, command in (
        ("--json net list", "net list"),
        ("net --json list", "net list"),
        ("--json net ls", "net list"),
        ("--json net apply", "net repair"),
        ("--json stack status", "stack ps"),
    ):
        _, _, err = said(capsys, *line.split())
        hint = f"options go after the command: niso {command} --json"
        assert f'"unknown command \'--json\'", "hint": "{hint}"' in err


@pytest.mark.parametrize("command", VISIBLE, ids=lambda command: command.name)
def test_words_that_nobody_expects_are_never_worse_than_an_error(command) -> None:
    odd = [
        "",
        "-",
        "--",
        "---",
        "--=",
        "-=",
        "=x",
        "--x=y",
        "-\x00",
        "ä",
        "-ä",
        "--json=",
        "-nn",
        "\udcff",
    ]
    for first in odd:
        for second in odd:
            try:
                parse(command, [first, second, "x"])
            except UsageError:
                pass


@pytest.mark.parametrize("words", [["version"], ["--version"], ["-V"]])
def test_version_is_that_of_the_package_and_the_commit_of_the_checkout(capsys, words) -> None:
    import importlib.metadata

    folder, commit = pathlib.Path(__file__).parents[2], ""
    if (folder / ".git").exists():  # a copy of the files has none
        commit = f"+{git(folder, 'rev-parse', 'HEAD')[:12]}"
    expected = f"niso {importlib.metadata.version('niso')}{commit}\n"
    assert said(capsys, *words) == (0, expected, "")


def git(folder: pathlib.Path, *words: str) -> str:
    settings = ("user.name=a", "user.email=a@b", "safe.directory=*")
    command = (
        "git",
        "-C",
        str(folder),
        *(word for one in settings for word in ("-c", one)),
        *words,
    )
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_found_in_every_form_of_a_checkout(tmp_path, monkeypatch) -> None:
    root, tree = tmp_path / "one", tmp_path / "two"
    (root / "src/niso/base").mkdir(parents=True)

    def version(folder: pathlib.Path = root) -> str:
        monkeypatch.setattr(paths, "__file__", str(folder / "src/niso/base/paths.py"))
        return paths.version()

    assert version() == niso.__version__
    git(root, "init", "-q")
    assert version() == niso.__version__  # it has no commit yet
    (root / "src/niso/base/a").write_text("")
    git(root, "add", ".")
    git(root, "commit", "-qm", "a")
    right = f"{niso.__version__}+{git(root, 'rev-parse', 'HEAD')[:12]}"
    assert version() == right
    git(root, "worktree", "add", "-q", str(tree))
    assert version(tree) == right
    git(root, "pack-refs", "--all")
    assert version() == version(tree) == right
    git(root, "checkout", "-q", "--detach")
    assert version() == right
    for text in ("ref: refs/../../x", "ref: refs/heads/none", "\0\xff" * 9000, "a" * 39):
        (root / ".git/HEAD").write_text(text)
        assert version() == niso.__version__
    (root / "src/niso/commit").write_text("b" * 40 + "\n")  # as packages have it
    assert version() == f"{niso.__version__}+{'b' * 12}"
    (root / "src/niso/commit").unlink()
    (root / ".git/HEAD").unlink()
    os.mkfifo(root / ".git/HEAD")
    assert version() == niso.__version__


def test_the_commands_that_need_no_root(capsys) -> None:
    free = {command.name for command in COMMANDS.values() if not command.root}
    free.remove("lab")  # of an ordinary user: user namespaces
    assert free == {"help", "version", "validate", "schema", "completion", "complete", "import"}
    assert said(capsys, "ps") == (1, "", "niso: needs root\n  hint: sudo niso ps\n")
    assert said(capsys, "logs", "a b")[2] == "niso: needs root\n  hint: run it with sudo\n"


def test_every_habit_is_answered_and_names_a_real_command() -> None:
    from niso.cli.catalogue.general import HABITS
    from niso.cli.parse import unknown_command

    typed = [command for theirs in HABITS for command in theirs.split(", ")]
    assert len(typed) == len(set(typed))
    for theirs, hint in HABITS.items():
        for command in theirs.split(", "):
            error = unknown_command([*command.split(), "-q", "web"])
            assert error.hint == hint != ""
        if hint.startswith("niso "):
            words = hint.partition(": ")[0].split()[1:]
            groups = ("net", "stack", "volume")
            command = " ".join(words[:2]) if words[0] in groups else words[0]
            assert command in COMMANDS, theirs
            assert not any(command in COMMANDS for command in theirs.split(", ")), theirs
    for typed_, like in (
        ("docker run -d web", "run"),
        ("docker compose up -d", "compose up"),
        ("compose rm web", "rm"),
        ("systemctl stop web", "stop"),
        ("compose top", "compose"),
    ):
        hints = [unknown_command(words.split()).hint for words in (typed_, like)]
        assert hints[0] == hints[1], typed_
    assert unknown_command(["docker", "ps"]).hint == "niso help lists them"


def test_up_without_a_stack_names_what_the_folder_has(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, hint in (
        ("", "there is no ./stack.toml: niso stack up FOLDER"),
        ("compose.yml", "niso import compose.yml: writes a stack.toml"),
        ("manifest.toml", "niso activate .: starts the service of ./manifest.toml"),
    ):
        if file:
            (tmp_path / file).touch()
        assert f"\n  hint: {hint}" in said(capsys, "up", "-d")[2]


def test_check_prints_one_line_for_many_objects_of_a_kind() -> None:
    """As after `nft flush table inet niso`; -v and --json have all of them."""
    chains = [niso.Finding("different", f"nftables chain inet niso c{n}") for n in range(60)]
    rest = [
        niso.Finding("missing", "nftables set inet niso own"),
        niso.Finding("missing", "bridge niso-a", "why"),
        *(niso.Finding("foreign", f"nftables chain ip x c{n}", "do this") for n in range(12)),
    ]
    short = list(_lines([*chains, *rest], every=False))
    assert short[0] == (
        "different: 60 objects such as nftables chain inet niso c0, nftables chain inet niso c1,"
        " nftables chain inet niso c2 (niso net check -v lists them)"
    )
    assert short[1:] == [one.text for one in rest]
    assert list(_lines([*chains, *rest], every=True)) == [one.text for one in (*chains, *rest)]
    assert list(_lines(chains[:10], every=False)) == [one.text for one in chains[:10]]


def test_options_that_commands_cannot_use(world: World) -> None:
    for name in ("host", "none"):
        world.activate(world.package(f"in-{name}", network={"mode": name}))
    for words in (
        ("metrics", "--listen", "db:1"),
        ("metrics", "--inetd"),
        ("metrics", "--flows", "-1"),
        ("metrics", "--inetd", "--listen", "1"),
        ("net", "trace", "nobody", "db:80"),
        ("net", "trace", "in-host", "db:x"),
        ("net", "trace", "in-host", "db:80", "--for", "soon"),
        ("top", "nobody"),
        ("top", "-n", "0"),
        ("web", "--port", "65536"),
        ("web", "--for", "x"),
        ("web", "--socket", "/gone/x"),
        ("web", "--socket", "/tmp/x", "--port", "0"),
        ("net", "graph", "--format", "gif"),
        ("net", "graph", "-o", "/gone/x"),
        ("net", "graph", "--declared", "--since", "1h"),
        ("net", "flows", "nobody"),
        ("net", "flows", "--since", "yesterday"),
        ("net", "flows", "in-host"),
        ("net", "flows", "-f", "in-none"),
    ):
        done = world.niso(*words, check=False)
        assert done.returncode in (1, 2) and not done.stdout, (words, done)
        assert "\n  hint: " in done.stderr, (words, done)
        assert "in-" not in words[-1] or "has mode" in done.stderr
    declared = world.niso("net", "graph", "--declared").stdout
    assert 'n_in_host["in-host"]' in declared and 'n_in_none["in-none"]' in declared


def test_path_of_the_host_that_is_not_there_is_told_before_anything_changes(
    world: World, tmp_path: pathlib.Path
) -> None:
    host = tmp_path / "nowhere"
    folder = world.package("api", volumes={"data": {"mount": "/data", "host": str(host)}})
    said = world.refused("activate", folder)
    assert said == (
        f"niso: {folder}: volumes.data.host: '{host}' does not exist on the host\n"
        f"  hint: mkdir -p {host}\n"
    )
    host.mkdir()
    world.niso("activate", folder)
    host.rmdir()
    said = world.refused("restart", "api")
    assert f"niso: api: volumes.data.host: {host} is gone, it was the folder" in said


def test_errors_are_an_object_a_line_on_stderr(world: World) -> None:
    bad = world.package("bad", network={"ports": ["x"]}, package={"name": "Bad"})
    for words, status, keys in (
        (("ps", "--json", "--colour"), 2, {None}),
        (("inspect", "x", "--json"), 1, {None}),
        (("activate", "--json", "/tmp/none"), 1, {None}),
        (("net", "explain", "x", "y", "--json"), 2, {None}),
        (
            ("activate", "--json", bad),
            1,
            {"package.name", "package.version", "network.ports[0]"},
        ),
    ):
        done = world.niso(*words, check=False)
        assert done.returncode == status and done.stdout == "", (words, done)
        errors = [json.loads(line) for line in done.stderr.splitlines()]
        for error in errors:
            assert set(error) == {"error"} and set(error["error"]) == {"message", "hint", "key"}
            assert error["error"]["message"]
        assert {error["error"]["key"] for error in errors} == keys, words
        assert len(errors) == len(keys)
