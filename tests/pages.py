"""Extract runnable commands and expected output from the documentation.

That is: blocks of the pages, and a shell session made of them.

How a page is read (the tests are tests/unit/test_docs_text.py and tests/netns/test_docs.py):

- All commands of a page run in its order, in one shell and one lab, as root on the lab's host, in a folder that has the clone's
  ``dev``, ``examples`` and ``.venv``. ``sudo`` does nothing there. 192.0.2.1 is the host, as the pages say.
- A ``sh`` block is run as it stands. Each of its commands must succeed; what it prints is not looked at.
- In a ``console`` block a line that starts with ``$ `` is a command, one with ``client$ `` a command on another machine
  (192.0.2.2). The lines below it are what it prints, stdout and stderr; where there are none it must succeed. Blanks count as
  one, ``...`` stands for any text within a line, alone for any number of lines; times and durations are not compared, nor is there anything said
  of progress (``niso: stop api (1s)``), which shows on a slow machine only.
- A block whose first line is a comment with a file's name (``# hello/manifest.toml``) is written to that file.
- ``<!-- setup`` starts commands that make what the page takes for given (another program's firewall), up to ``-->``.
- On a page about several hosts, ``a$ `` and ``b$ `` are commands on these hosts, in labs on one network (198.51.100.1 and .2),
  each in a shell of its own. ``a$ X | ssh b Y`` gives Y on host b what X has printed. All other blocks are for host a.
- A block whose first line is ``# not run here: needs X`` is not run. Every other block whose kind is not run must have no
  command: `unmarked` finds those that have.
- A ``toml`` block is a manifest, a stack, or a part of one, and niso must accept it.
- `NOT_RUN` lists lines that other tests run, each with the reason. Blocks of any other kind (``text``, ``nft``, none) are prose.
- ``python`` blocks, in docs/guide/python.md alone: tests/netns/test_python_guide.py.
"""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent

NOT_RUN = {
    "./dev demo": "installs Debian packages on the machine; it is itself a lab",
    "./dev demo-cluster": "the same, with three labs",
    "./dev setup": "installs Debian packages on the machine",
    "./dev examples": "installs Debian packages on the machine; what starts the tests has done it",
    "./dev test": "the run that this is part of",
    "sudo apt install pipx libnftables1 nftables iproute2 crun conmon catatonit": "./dev fresh does, in a new Debian",
    "sudo pipx install --global .": "./dev fresh does, in a new Debian",
}
"""A line of a page -> why it is not run."""

NOT_HERE = "# not run here: needs "
CLIENT = "ip netns exec client bash -c "
_FENCE = re.compile(r"^( *)```(.*)$")
_COMMAND = re.compile(
    r"[a-z]*\$ |[a-z]+# |(?:# )?(?:sudo )?(?:niso|apt|apt-get|systemctl|journalctl|docker|podman|crictl|kubectl|skopeo|umoci"
    r"|git|ssh|pip|pipx|ip|nft|curl|wget|cp|mv|rm|ln|echo|mkdir|sed|openssl|etcdctl|ctr|sysctl|make|\./dev) "
)
"""The start of a line that is a command."""
_HOST = re.compile(r"([a-c])\$ ")
_NAMED = re.compile(r"^# ([\w./-]+\.\w+)$")
_PROGRESS = re.compile(r"niso: .* \(\d+s\)$")
_TIMES = re.compile(
    r"\b\d{4}-\d\d-\d\dT[\d:.]+Z|\b\d+(?:d\d+h|h\d+m|m\d+s)\b|\b\d+(?:\.\d+)?m?s\b",
)


class Block(NamedTuple):
    """A fenced block, or a setup comment (kind ``setup``). ``line`` is that of its first line in the page."""

    page: pathlib.Path
    line: int
    kind: str
    lines: tuple[str, ...]

    @property
    def file(self) -> str:
        """The file that it is to be written to, or ''."""
        named = (
            _NAMED.match(self.lines[0])
            if self.lines and self.kind not in ("sh", "console")
            else None
        )
        return named.group(1) if named else ""


class Command(NamedTuple):
    """Something to run, and what it must print; ``expected`` None: anything, but it must succeed.

    ``host`` is that of the prompt, on a page about several.
    """

    page: pathlib.Path
    line: int
    text: str
    expected: tuple[str, ...] | None
    host: str = ""


def pages() -> list[pathlib.Path]:
    """All pages of the documentation."""
    examples = ROOT / "examples"
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        examples / "README.md",
        *sorted(examples.glob("*/README.md")),
    ]


def run_pages() -> list[pathlib.Path]:
    """Those whose commands are run: what is written by hand and has any."""
    ours = [
        page for page in pages() if page.relative_to(ROOT).parent.name not in ("bench", "reference")
    ]
    return [
        page
        for page in ours
        if any(command.expected is not None or command.text for command in commands(page))
    ]


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """The fenced blocks and setup comments of a page, in its order, without their indentation."""
    kind, indent, start, found = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if kind == "setup":
            if line == "-->":
                yield Block(page, start, kind, tuple(found))
                kind = ""
            else:
                found.append(line)
        elif kind:
            if fence and not fence.group(2):
                yield Block(page, start, kind, tuple(found))
                kind = ""
            else:
                found.append(line.removeprefix(indent))
        elif fence:
            kind, indent, start, found = fence.group(2) or "none", fence.group(1), number + 1, []
        elif line == "<!-- setup":
            kind, start, found = "setup", number + 1, []
    assert not kind, f"{page}: the block of line {start} has no end"


def unmarked(page: pathlib.Path) -> list[str]:
    """The first command of each block that is not run and does not say so."""
    return [
        f"{page.relative_to(ROOT)}:{block.line}: {line}"
        for block in blocks(page)
        if (line := unmarked_of(block))
    ]


def unmarked_of(block: Block) -> str:
    """The first command of a block that is not run and does not say so, or ''."""
    run = ("sh", "console", "setup", "toml", "python", "yaml")
    if block.kind in run or block.file or (block.lines and block.lines[0].startswith(NOT_HERE)):
        return ""
    return next(filter(_COMMAND.match, block.lines), "")


def commands(page: pathlib.Path) -> list[Command]:
    """What is run of a page, in its order."""
    return [command for block in blocks(page) for command in _of(block)]


def _of(block: Block) -> Iterator[Command]:
    if block.lines and block.lines[0].startswith(NOT_HERE):
        return
    if block.kind == "setup" and _HOST.match(block.lines[0]):
        yield from _console(block)
    elif block.kind in ("sh", "setup"):
        text = "\n".join(line for line in block.lines if line.strip() not in NOT_RUN)
        if text.strip():
            yield Command(block.page, block.line, text, None)
    elif block.kind == "console":
        yield from _console(block)
    elif block.file:
        there = shlex.quote(block.file)
        content = shlex.quote("\n".join(block.lines) + "\n")
        yield Command(
            block.page,
            block.line,
            f'mkdir -p "$(dirname {there})"; printf %s {content} > {there}',
            None,
        )


def _console(block: Block) -> Iterator[Command]:
    number, lines = block.line, list(block.lines)
    while lines:
        prompt, blank, text = lines.pop(0).partition("$ ")
        where = f"{block.page.name}:{number}"
        host = prompt if _HOST.match(f"{prompt}$ ") else ""
        assert blank and (host or prompt in ("", "client")), f"{where}: no command"
        start, number = number, number + 1
        while text.endswith("\\"):
            text, number = f"{text[:-1]}{lines.pop(0).strip()}", number + 1
        said = []
        while lines and not (lines[0].startswith(("$ ", "client$ ")) or _HOST.match(lines[0])):
            said.append(lines.pop(0))
        number += len(said)
        if text.strip() in NOT_RUN:
            continue
        run = CLIENT + shlex.quote(text) if prompt == "client" else text
        yield Command(block.page, start, run, tuple(said) or None, host)


def script(wanted: list[Command]) -> str:
    """A bash script that runs them all in one shell. It prints ``\\n@@ N`` before and ``\\n@@ N: what failed`` after each."""
    lines = [
        "shopt -s expand_aliases",
        'sudo() { "$@"; }',
        "exec 2>&1",
        "trap 'failed+=\" [$BASH_COMMAND]\"' ERR",
    ]
    for number, command in enumerate(wanted):
        lines.append(f"printf '\\n@@ {number}\\n'; failed=")
        lines.append(f"eval {shlex.quote(command.text)} < /dev/null")
        lines.append(f"printf '\\n@@ {number}:%s\\n' \"${{failed//$'\\n'/ }}\"")
    return "\n".join(lines) + "\n"


def wrong(wanted: list[Command], printed: str) -> list[str]:
    """What did not go as the pages say, in words, given what the `script` printed."""
    found = []
    for number, command in enumerate(wanted):
        where = f"{command.page.relative_to(ROOT)}:{command.line}: {command.text}"
        head, tail = f"\n@@ {number}\n", f"\n@@ {number}:"
        if head not in printed or tail not in printed:
            found.append(
                f"{where}\n  the shell did not get through it; it printed:\n{printed[-2000:]}"
            )
            break
        output, _, rest = printed.partition(head)[2].partition(tail)
        failed = rest.partition("\n")[0]
        if command.expected is None and failed:
            found.append(f"{where}\n  failed:{failed}\n{output}")
        elif command.expected is not None and not matches(command.expected, output):
            expected = "\n".join(command.expected)
            found.append(f"{where}\n  prints, says the page:\n{expected}\n  but it was:\n{output}")
    return found


def matches(expected: tuple[str, ...], printed: str) -> bool:
    """Whether ``printed`` is what a page says: see the top of this file."""
    pattern = "".join(
        r"(?:[^\n]*\n)*?"
        if line.strip() == "..."
        else r"[^\n]*?".join(map(re.escape, _plain(line).split("..."))) + r"\n"
        for line in expected
        if line.strip()
    )
    lines = (_plain(line) for line in printed.splitlines() if not _PROGRESS.match(line))
    said = "".join(f"{line}\n" for line in lines if line)
    return re.fullmatch(pattern, said) is not None


def _plain(line: str) -> str:
    return _TIMES.sub("TIME", " ".join(line.split()))
