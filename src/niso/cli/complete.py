"""completion: what stands at the end of a line that is being typed.

The shell's part is a short script that gives the line to ``niso complete`` and shows what that prints: a line for each word that can
stand there, with a tab and what it is. A line that begins with a tab has the shell add files (`MANIFESTS`, `FOLDERS`, `PROGRAMS`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import registry
from niso.cli.command import Command, Group, Option
from niso.cli.parse import HELP, Args, unknown

if TYPE_CHECKING:
    from niso.api.host import Host
    from niso.api.published import Port

SHELLS = {"bash": "completion.bash", "zsh": "completion.zsh"}
MANIFESTS, FOLDERS, PROGRAMS = ("\tmanifests", ""), ("\tfolders", ""), ("\tprograms", "")

Found = list[tuple[str, str]]
"""Words that can stand there, each with what it is."""


def run(name: str, args: Args) -> int:
    if name == "completion":
        return _script(args.shell)
    if args.shell == "bash":
        line, breaks = (*args.words, "", "")[:2]
        words, current = split(line)
        # bash puts the answer in place of what follows the last of these alone
        cut = max((current.rfind(each) + 1 for each in ":=" if each in breaks), default=0)
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
        raise unknown("shell", shell, list(SHELLS), "bash or zsh")
    here = os.path.dirname(__file__)
    with open(os.path.join(here, SHELLS[shell]), encoding="utf-8") as file:
        text = file.read()
    # a niso that is not on PATH is found, and no program of the current folder is ever run for it
    own = os.path.abspath(sys.argv[0])
    quoted = "'" + own.replace("'", "'\\''") + "'"
    print(text.replace("@NISO@", quoted), end="")
    return 0


def split(line: str) -> tuple[list[str], str]:
    """The words of a line up to the cursor and the one that is being typed, quotes and backslashes taken away as a shell does."""
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


def candidates(words: list[str], current: str) -> Found:
    """What can follow ``words`` (without ``niso`` itself) where ``current`` has been typed; more than begins with it, too."""
    if not words:
        return _commands()
    name = registry.ALIASES.get(words[0], words[0])
    if name not in registry.COMMANDS or name == "complete":
        return []
    if name == "help":
        found = (
            registry.find(words[1], "")
            if len(words) > 1 and words[1] in registry.COMMANDS
            else None
        )
        return _commands() if len(words) == 1 else _actions(found) if len(words) == 2 else []
    found = registry.find(name, words[1] if words[1:] else "")
    if isinstance(found, Group):
        return _actions(found) if len(words) == 1 else []
    return _of_command(found, words[2 if " " in found.name else 1 :], current)


def _commands() -> Found:
    return [
        (name, registry.find(name, "").does) for name in registry.COMMANDS if name != "complete"
    ]


def _actions(group: Command | Group | None) -> Found:
    actions = group.actions if isinstance(group, Group) else ()
    return [(each.name.split()[1], each.does) for each in actions]


def _of_command(command: Command, words: list[str], current: str) -> Found:
    flags = {flag: option for option in command.options for flag in option.flags}
    given: list[str] = []
    placed: list[str] = []
    value_of: Option | None = None
    ended = False
    single = sum(argument.times != "..." for argument in command.arguments)
    for word in words:
        if value_of is not None:
            value_of = None
        elif ended or not word.startswith("-"):
            placed.append(word)
            ended = ended or len(placed) > single
        elif word == "--":
            ended = True
        elif word in flags:
            given.append(word)
            value_of = flags[word] if flags[word].metavar else None
    if value_of is not None:
        return []
    if current.startswith("-") and not ended:
        return _options(command, given)
    found: Found = []
    left = len(placed)
    for argument in command.arguments:
        if argument.times in ("", "?") and left:
            left -= 1
            continue
        if argument.times == "..." and not ended:
            return [("--", argument.help)]
        if argument.times != "..." or not left:
            found = [
                each for each in _KINDS[argument.completes](placed, given) if each[0] not in placed
            ]
        break
    else:
        return _options(command, given)
    return found


def _options(command: Command, given: list[str]) -> Found:
    """The options that may still be given, each by its long name."""
    had = [option for option in command.options if set(option.flags) & set(given)]
    groups = {option.group for option in had if option.group}
    free = [
        each
        for each in command.options
        if (each.many or each not in had) and each.group not in groups
    ]
    return [*((each.flags[-1], each.help) for each in free), (HELP[-1], "print help")]


# --- names, which root alone can read ----------------------------------------------------------------------------------


def _from_host(read: Callable[[Host], Found]) -> Found:
    if os.geteuid() != 0:
        return []
    from niso.api.host import connect

    try:
        return read(connect())
    except Error:
        return []  # nobody has asked for more than a word


def _services(wanted: Callable[[bool, bool], bool] = lambda active, enabled: True) -> Found:
    return _from_host(
        lambda host: [
            (each.service, "active" if each.active else "inactive")
            for each in host.services.names()
            if wanted(each.active, each.enabled)
        ]
    )


def _networks() -> Found:
    return _from_host(lambda host: [(name, "network") for name in host.networks.names()])


def _active() -> Found:
    return _services(lambda active, enabled: active)


def _words(ports: Iterable[Port]) -> list[str]:
    """Ports as a manifest has them; one at all addresses, which has a row for each family, is one."""
    from niso.cli import output

    words = []
    for port in ports:
        host = "" if port.anywhere else f"{output.bracketed(port.host_ip)}:"
        ends = (
            f"{output.span(port.host_port, port.range)}:"
            f"{output.span(port.container_port, port.range)}"
        )
        words.append(host + ends + ("" if port.proto == "tcp" else f"/{port.proto}"))
    return list(dict.fromkeys(words))


def _forwards(placed: list[str], given: list[str]) -> Found:
    """What port-forward has published; with --replace what other services have."""

    def read(host: Host) -> Found:
        if "--replace" not in given:
            return [(word, "forwarded") for word in _words(host.services.forwards(placed[0]))]
        name = host.services.resolve(placed[0])
        return list(
            dict.fromkeys(
                (word, f"of {line.service}")
                for line in host.networks.ports()
                if line.service != name
                for word in _words([line.mapping])
            )
        )

    return _from_host(read)


def _targets(placed: list[str], given: list[str]) -> Found:
    """Services, and the ports of those that publish some, as they are inside."""

    def read(host: Host) -> Found:
        return list(
            dict.fromkeys(
                (f"{line.service}:{line.container}/{line.mapping.proto}", "port")
                for line in host.networks.ports()
            )
        )

    return [*_services(), ("host", "this machine"), *_from_host(read)]


_KINDS: dict[str, Callable[[list[str], list[str]], Iterable[tuple[str, str]]]] = {
    "nothing": lambda placed, given: [],
    "package": lambda placed, given: [*_services(), MANIFESTS],
    "service": lambda placed, given: _services(),
    "active": lambda placed, given: _active(),
    "enabled": lambda placed, given: _services(lambda active, enabled: enabled),
    "disabled": lambda placed, given: _services(lambda active, enabled: not enabled),
    "network": lambda placed, given: _networks(),
    "known": lambda placed, given: [*_services(), *_networks()],
    "end": lambda placed, given: [*_services(), ("host", "this machine")],
    "target": _targets,
    "forward": _forwards,
    "folder": lambda placed, given: [FOLDERS],
    "command": lambda placed, given: [PROGRAMS],
    "shell": lambda placed, given: [(shell, "") for shell in SHELLS],
}
"""By `Argument.completes`: from the words before it and the options given."""
