"""Complete command lines for bash and zsh.

A short shell script passes the command line to ``niso complete``, which prints one candidate on
each line, followed by a tab and a description. A line that starts with a tab makes the shell script
complete file names: manifests, folders or programs (`MANIFESTS`, `FOLDERS`, `PROGRAMS`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import bracketed, span
from niso.cli.command import ALIASES, COMMANDS, HIDDEN, Command, Option, find, present
from niso.cli.parse import HELP, Args, unknown

if TYPE_CHECKING:
    import niso


SHELLS = {"bash": "completion.bash", "zsh": "completion.zsh"}
MANIFESTS, FOLDERS, PROGRAMS = ("\tmanifests", ""), ("\tfolders", ""), ("\tprograms", "")

Candidates = list[tuple[str, str]]
"""Pairs of a word and its description."""


def run(name: str, args: Args) -> int:
    if name == "completion":
        return _script(args.shell)
    if args.shell == "bash":
        line, breaks = (*args.words, "", "")[:2]
        words, current = split(line)
        # bash replaces only what follows the last of these characters
        cut = max((current.rfind(mark) + 1 for mark in ":=" if mark in breaks), default=0)
    else:
        *words, current = args.words or [""]
        cut = 0
    for word, meaning in candidates(words[1:], current):
        if word.startswith("\t"):
            print(word)
        elif word.startswith(current):
            print(f"{word[cut:]}\t{meaning}")
    return 0


def _script(shell: str) -> int:
    if shell not in SHELLS:
        raise unknown("shell", shell, dict.fromkeys(SHELLS, False), "bash or zsh")
    here = os.path.dirname(__file__)
    with open(os.path.join(here, SHELLS[shell]), encoding="utf-8") as file:
        text = file.read()
    # an absolute path works outside PATH, and never runs a program of the current folder
    own = os.path.abspath(sys.argv[0])
    quoted = "'" + own.replace("'", "'\\''") + "'"
    print(text.replace("@NISO@", quoted), end="")
    return 0


def split(line: str) -> tuple[list[str], str]:
    """Split the command line before the cursor into complete words and the unfinished word."""
    words: list[str] = []
    word, quote, begun, escaped = "", "", False, False
    for letter in line:
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\" and quote != "'":
            escaped, begun = True, True
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "'\"":
            quote, begun = letter, True
        elif letter in " \t":
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            word, begun = word + letter, True
    return words, word


def candidates(words: list[str], current: str) -> Candidates:
    """Return (word, description) for each word that can follow ``words``, the complete words.
    ``current`` is the unfinished word. Candidates may begin differently: the shell filters them.
    """
    if not words:
        return _commands()
    # complete a former command, or one of another tool, as the present one
    words = present([*words, "x"])[0][:-1]
    name = ALIASES.get(words[0], words[0])
    if name not in COMMANDS or name in HIDDEN:
        return []
    if name == "help":
        topic = find(words[1], "") if len(words) > 1 and words[1] in COMMANDS else None
        return _commands() if len(words) == 1 else _actions(topic, words[2:])
    command = find(name, " ".join(words[1:3]))
    if command.actions:
        return _actions(command, words[1:])
    return _of_command(command, words[1 + command.name.count(" ") :], current)


def _commands() -> Candidates:
    return [(name, find(name, "").does) for name in COMMANDS if name not in HIDDEN]


def _actions(group: Command | None, words: Sequence[str]) -> Candidates:
    """Return (name, description) for each of a group's actions that can follow ``words``."""
    following: dict[str, str] = {}
    for action in group.actions if group is not None else ():
        own = action.name.split()[1:]
        if own[: len(words)] == [*words] and len(own) > len(words):
            following.setdefault(own[len(words)], action.does)
    return list(following.items())


def _of_command(command: Command, words: list[str], current: str) -> Candidates:
    flags = {flag: option for option in command.options for flag in option.flags}
    given: list[str] = []
    placed: list[str] = []
    value_of: Option | None = None
    ended = False
    single = sum(argument.times != "..." for argument in command.arguments)
    repeats = any(argument.times in ("*", "+") for argument in command.arguments)
    for word in words:
        if value_of is not None:
            value_of = None
        elif ended or not word.startswith("-"):
            placed.append(word)
            ended = ended or (len(placed) > single and not repeats)
        elif word == "--":
            ended = True
        elif word in flags:
            given.append(word)
            takes = flags[word].metavar and not flags[word].implied
            value_of = flags[word] if takes else None
    if value_of is not None:
        return []
    if current.startswith("-") and not ended:
        return _options(command, given)
    result: Candidates = []
    if repeats and ended and command.arguments[-1].times == "...":
        return result
    left = len(placed)
    for argument in command.arguments:
        if argument.times in ("", "?") and left:
            left -= 1
            continue
        if argument.times == "..." and not ended:
            return [("--", argument.help)]
        if argument.times != "..." or not left:
            kind = _KINDS[argument.completes]
            result = [pair for pair in kind(placed, given) if pair[0] not in placed]
        break
    else:
        return _options(command, given)
    return result


def _options(command: Command, given: list[str]) -> Candidates:
    had = [option for option in command.options if set(option.flags) & set(given)]
    groups = {option.group for option in had if option.group}
    free = [
        (option.flags[-1], option.help)
        for option in command.options
        if (option.many or option not in had) and option.group not in groups
    ]
    return [*free, (HELP[-1], "print this help")]


# --- names, which only root can read --------------------------------------------------------------


def _from_host(read: Callable[[niso.Host], Candidates]) -> Candidates:
    from niso.api.host import connect

    if os.geteuid() != 0:
        return []

    try:
        return read(connect())
    except Error:
        return []  # completion prints no errors


def _services(wanted: Callable[[bool, bool], bool] = lambda active, enabled: True) -> Candidates:
    return _from_host(
        lambda host: [
            (name, "active" if active else "inactive")
            for name, active, enabled in host.services.names()
            if wanted(active, enabled)
        ]
    )


def _networks() -> Candidates:
    return _from_host(lambda host: [(name, "network") for name in host.networks.names()])


def _words(ports: Iterable[niso.Port]) -> list[str]:
    words = []
    for port in ports:
        host = "" if port.anywhere else f"{bracketed(port.host_ip)}:"
        ends = f"{span(port.host_port, port.range)}:{span(port.container_port, port.range)}"
        words.append(host + ends + ("" if port.proto == "tcp" else f"/{port.proto}"))
    return list(dict.fromkeys(words))


def _forwards(placed: list[str], given: list[str]) -> Candidates:
    """Return the ports that port-forward published for a service, or with --take-over the ports of
    other services. ``placed`` are the arguments before the cursor, and ``given`` all words.
    """

    def read(host: niso.Host) -> Candidates:
        if "--take-over" not in given:
            return [(word, "forwarded") for word in _words(host.services.forwards(placed[0]))]
        name = host.services.resolve(placed[0])
        others = [line for line in host.networks.ports() if line.service != name]
        words = ((one, word) for one in others for word in _words([one.mapping]))
        return list(dict.fromkeys((word, f"port of {one.service}") for one, word in words))

    return _from_host(read)


def _targets(placed: list[str], given: list[str]) -> Candidates:
    """Return the destinations of explain and ping: services, their published ports, ``host``."""

    def read(host: niso.Host) -> Candidates:
        ports = host.networks.ports()
        words = (f"{line.service}:{line.container}/{line.mapping.proto}" for line in ports)
        return [(word, "port") for word in dict.fromkeys(words)]

    return [*_services(), ("host", "this machine"), *_from_host(read)]


_KINDS: dict[str, Callable[[list[str], list[str]], Iterable[tuple[str, str]]]] = {
    "": lambda placed, given: [],
    "package": lambda placed, given: [*_services(), MANIFESTS],
    "file": lambda placed, given: [MANIFESTS],
    "service": lambda placed, given: _services(),
    "active": lambda placed, given: _services(lambda active, enabled: active),
    "enabled": lambda placed, given: _services(lambda active, enabled: enabled),
    "disabled": lambda placed, given: _services(lambda active, enabled: not enabled),
    "network": lambda placed, given: _networks(),
    "known": lambda placed, given: [*_services(), *_networks()],
    "end": lambda placed, given: [*_services(), ("host", "this machine")],
    "target": _targets,
    "forward": _forwards,
    "folder": lambda placed, given: [FOLDERS],
    "command": lambda placed, given: [PROGRAMS],
    "schema": lambda placed, given: [("manifest", "manifest.toml"), ("stack", "stack.toml")],
    "switch": lambda placed, given: [("on", ""), ("off", "")],
    "shell": lambda placed, given: [(shell, "") for shell in SHELLS],
}
"""The function that returns the candidates, for each value of `Argument.completes`.

The function takes the arguments and the options before the current word.
"""
