"""Test completion without a store: splitting of the line, and candidates."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from niso.cli import command, complete, main


@pytest.fixture(autouse=True)
def nobody(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.parametrize(
    ("line", "words", "current"),
    [
        ("niso ", ["niso"], ""),
        ("niso net  li", ["niso", "net"], "li"),
        ("niso\tps ", ["niso", "ps"], ""),
        ("niso activate 'a b' \"c d\" e\\ f/", ["niso", "activate", "a b", "c d"], "e f/"),
        ("niso activate 'a b", ["niso", "activate"], "a b"),
        ('niso activate "a\\"b\' c', ["niso", "activate"], "a\"b' c"),
        ("niso activate '' x", ["niso", "activate", ""], "x"),
        ("niso a\\", ["niso"], "a"),
        ("", [], ""),
    ],
)
def test_line_is_split_as_a_shell_does(line, words, current) -> None:
    assert complete.split(line) == (words, current)


def names(words: str, current: str = "") -> list[str]:
    return [word for word, _ in complete.candidates(words.split(), current)]


@pytest.mark.parametrize(
    ("words", "current", "offered"),
    [
        (
            "net create x",
            "-",
            "--subnet --ipv6 --gateway --internal --mtu --allow-public --no-observe --span --multicast --dry-run --verbose --json --help",
        ),
        (
            "net create x --ipv6 --mtu 9",
            "-",
            "--subnet --gateway --internal --allow-public --no-observe --span --multicast --dry-run --verbose --json --help",
        ),
        (
            "net create x --subnet a -v",
            "-",
            "--subnet --ipv6 --gateway --internal --mtu --allow-public --no-observe --span --multicast --dry-run --json --help",
        ),
        (
            "net create x",
            "",
            "--subnet --ipv6 --gateway --internal --mtu --allow-public --no-observe --span --multicast --dry-run --verbose --json --help",
        ),
        ("net create x --mtu", "", ""),
        ("net create x --mtu", "-", ""),
        ("net create", "", ""),
        ("port-forward api 1:1 --remove", "-", "--verbose --json --help"),
        ("net explain a b -4", "-", "--prove --json --help"),
        ("net explain", "", "host"),
        ("completion", "", "bash zsh"),
        ("net names", "", "on off"),
        ("firewall", "", "enable disable"),
        ("kubernetes", "", "run enable disable"),
        ("check", "", "\tmanifests"),
        ("completion bash", "", "--help"),
        (
            "net",
            "",
            "create list inspect remove attach detach gc ports rules ping explain stats flows graph capture learn refresh policy trace drops names check repair",
        ),
        ("net policy", "", "show test"),
        ("net policy show x", "-", "--unused --json --help"),
        ("help net policy", "", "show test"),
        ("stack", "", "up down ps restart logs"),
        ("help stack", "", "up down ps restart logs"),
        ("help ps", "", ""),
        ("help stack up", "", ""),
        ("exec api", "", "--"),
        ("exec api --", "", ""),
        ("exec api -- sh", "-", ""),
        ("lab", "", "--"),
        ("lab --", "", "\tprograms"),
        ("stack up", "", "\tfolders"),
        ("activate", "", "\tmanifests"),
        ("deactivate", "", ""),
        ("deactivate --", "-", ""),
        ("frobnicate", "", ""),
        ("net frobnicate", "", ""),
        ("complete", "", ""),
        ("--version", "", "--help"),
    ],
)
def test_what_can_follow(words, current, offered) -> None:
    assert names(words, current) == offered.split(" ") * bool(offered)


def test_first_word_is_a_command() -> None:
    assert names("") == [name for name in command.COMMANDS if name not in command.HIDDEN]
    assert names("help") == names("")


@pytest.mark.parametrize(
    ("line", "breaks", "said"),
    [
        (
            "niso net exp",
            " :=",
            "explain\tshow whether a packet passes, and which manifest entry decides\n",
        ),
        ("niso net explain hos", " ", "host\tthis machine\n"),
        ("niso net explain x y:", " :", ""),
    ],
)
def test_words_for_bash(capsys, line, breaks, said) -> None:
    assert main.run(["complete", "bash", "--", line, breaks]) == 0
    assert capsys.readouterr() == (said, "")


def test_bash_gets_what_follows_its_last_break(capsys, monkeypatch) -> None:
    offered = [("db:80/tcp", ""), ("db", ""), ("other", "")]
    monkeypatch.setattr(complete, "candidates", lambda words, current: offered)
    main.run(["complete", "bash", "--", "niso net explain x db:8", ' \t"=:'])
    assert capsys.readouterr().out == "80/tcp\t\n"
    main.run(["complete", "bash", "--", "niso net explain x db:8", " \t"])
    assert capsys.readouterr().out == "db:80/tcp\t\n"


@pytest.mark.parametrize(
    "words", [[], ["bash"], ["zsh"], ["bash", "--"], ["zsh", "--"], ["zsh", "--", ""]]
)
def test_call_that_no_shell_makes_is_no_defect(capsys, words) -> None:
    assert main.run(["complete", *words]) in (0, 2)
    assert "bug in niso" not in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_script_names_the_niso_that_printed_it_and_is_right(capsys, shell, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/it's/niso"])
    assert main.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "niso='/opt/it'\\''s/niso'" in script and "@NISO@" not in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, as for ./dev test-quick")
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "bash":
        done = subprocess.run(
            ["shellcheck", "-s", "bash", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == ""
