"""Test the documentation where its claims can be checked without running it.

That is: links, anchors, TOML, figures, and the words of commands in the text.

That the commands of their blocks do what they say is tests/netns/test_docs.py.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import pathlib
import re
import tomllib
from functools import cache
from typing import Any

import images
import pages
import pytest

from niso.base.errors import Error
from niso.cli import command as cli_command
from niso.cli import main
from niso.cli.command import Command
from niso.kernel import ruleset
from niso.manifest import keys, load, stack
from niso.plan.specs import UNLIMITED
from niso.runtime import oci

ROOT = pages.ROOT
PAGES = pages.pages()
TOML = [block for page in PAGES for block in pages.blocks(page) if block.kind == "toml"]
_LINK = re.compile(
    r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\""
)
_CODE = re.compile(r"``[^`]+``|`([^`\n]+)`")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: pathlib.Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them: the second of one name ends in -1."""
    found: list[str] = []
    for title in re.findall(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        taken = sum(
            each == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", each) is not None
            for each in found
        )
        found.append(f"{anchor}-{taken}" if taken else anchor)
    return set(found)


def leads_somewhere(page: pathlib.Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


def test_each_link_leads_somewhere() -> None:
    links = [
        (page, next(filter(None, groups)))
        for page in PAGES
        for groups in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))
    ]
    wrong = [
        (name(page), link)
        for page, link in links
        if not re.match(r"[a-z]+:", link) and not leads_somewhere(page, link)
    ]
    assert wrong == []


def test_headings_of_a_page_skip_no_level() -> None:
    """As the site's builder demands."""
    wrong = []
    for page in PAGES:
        levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", prose(page), re.MULTILINE)]
        if any(below > above + 1 for above, below in itertools.pairwise(levels)):
            wrong.append(name(page))
    assert wrong == []


_FILE = re.compile(r"[\w.*/-]+\.(?:py|sh|js|svg|md)|[a-z_]+(?:/[\w.-]+)*/")
"""What names a file or a folder of the project; a capitalised part stands for any name."""
_FOLDERS = (ROOT, ROOT / "src/niso", ROOT / "tests", ROOT / "src")


def names_nothing(path: str) -> bool:
    """Return whether no file of the project has this path, which may have placeholders."""
    pattern = re.sub(r"\b[A-Z]{3,}\b", "*", path.removeprefix("./"))
    if "/" not in pattern:  # a bare name: the page says which folder it means
        pattern = f"**/{pattern}"
    return not any(next(folder.glob(pattern), None) for folder in _FOLDERS)


def test_each_file_that_a_design_page_names_exists() -> None:
    reviewed = [page for page in PAGES if name(page).startswith(("docs/design/", "CONTRIBUTING"))]
    assert reviewed
    named = {
        (name(page), code)
        for page in reviewed
        for code in _CODE.findall(prose(page))
        if _FILE.fullmatch(code)
    }
    named -= {("docs/design/packet.md", "bridge/")}  # of the names of chains
    assert len(named) > 200
    assert sorted(each for each in named if names_nothing(each[1])) == []
    assert names_nothing("kernel/nothing.py") and names_nothing("services/")


def test_each_file_that_a_docstring_or_comment_names_exists() -> None:
    files = [*(ROOT / "src/niso").rglob("*.py")]
    places = (*_FOLDERS, ROOT / "src/niso/kernel")
    wrong = []
    for file in files:
        text = file.read_text()
        paths = re.findall(r"(?<![\w/.<>-])((?:[a-z_]+/)+[a-z_]+\.py)\b", text)
        wrong += [
            (name(file), path)
            for path in paths
            if not any((place / path).exists() for place in places)
        ]
        modules = re.findall(r"`niso\.((?:[a-z_]+\.)+[a-z_]\w*)", text)
        wrong += [(name(file), module) for module in modules if not is_of_niso(module)]
    assert wrong == []


@cache
def is_of_niso(dotted: str) -> bool:
    """Return whether ``kernel.real`` is a module, or a name in one (``runtime.on_exit.main``)."""
    path = (ROOT / "src/niso").joinpath(*dotted.split("."))
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    above = path.parent.with_suffix(".py")
    return above.exists() and re.search(rf"\b{path.name}\b", above.read_text()) is not None


def test_the_architecture_lists_each_module_once() -> None:
    page = (ROOT / "docs/design/shape.md").read_text().partition("## All modules")[2]
    listed = re.findall(r"^\| `([\w/]+\.py)` \| \S", page, re.MULTILINE)
    source = ROOT / "src/niso"
    modules = [
        str(file.relative_to(source)) for file in source.rglob("*.py") if file.read_text().strip()
    ]
    assert sorted(listed) == sorted(modules)


def test_every_page_can_be_found_from_the_readme() -> None:
    reached, new = set[pathlib.Path](), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = (
            next(filter(None, groups)).partition("#")[0] for groups in _LINK.findall(prose(page))
        )
        targets = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        new |= {target for target in targets if target.exists()} - reached
    assert set(PAGES) - reached == set()


def test_niso_accepts_each_toml_block(tmp_path: pathlib.Path) -> None:
    wrong = []
    for number, block in enumerate(TOML):
        (folder := tmp_path / str(number)).mkdir()
        try:
            check(tomllib.loads("\n".join(block.lines)), folder)
        except (Error, tomllib.TOMLDecodeError) as error:
            wrong.append(f"{name(block.page)}:{block.line}: {error}")
    assert wrong == []


def check(data: dict[str, Any], folder: pathlib.Path) -> None:
    """Have niso read a manifest or a stack of which the block may show a part only."""
    if {"stack", "networks", "service"} & data.keys() and not isinstance(data.get("service"), dict):
        services = data.setdefault("service", [{}])
        data.setdefault("stack", {"name": "shown"})
        for number, service in enumerate(services):
            service.setdefault("name", f"service{number}")
            package = folder / service.setdefault("package", "./shown")
            package.mkdir(exist_ok=True)
            minimal = {
                "package": {"name": "shown", "version": "1"},
                "binary": {"entrypoint": "true"},
            }
            asked = {"healthcheck": {"tcp": 80}}  # what depends_on "healthy" needs
            (package / "manifest.toml").write_text(toml(minimal | asked))
        (folder / "stack.toml").write_text(toml(data))
        stack.load(str(folder), None)
        return
    data.setdefault("package", {"name": "shown", "version": "1"})
    data.setdefault("binary", {"entrypoint": "true"})
    if "rootfs" in data["package"]:
        (folder / data["package"]["rootfs"]).mkdir(parents=True)
    if "oci" in data["package"]:
        place, _, tag = data["package"]["oci"].partition(":")
        made = images.image(folder / place, {"Cmd": ["x"]}, annotations={images.REF: tag})
        images.index(folder / place, made)
    (folder / "manifest.toml").write_text(toml(data))
    load.load(str(folder))


def toml(value: Any, top: bool = True) -> str:
    if isinstance(value, dict) and top:
        return "".join(f"{quoted(key)} = {toml(each, False)}\n" for key, each in value.items())
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{quoted(key)} = {toml(each, False)}" for key, each in value.items())
            + " }"
        )
    if isinstance(value, list):
        return "[" + ", ".join(toml(each, False) for each in value) + "]"
    return str(value).lower() if isinstance(value, (bool, int)) else quoted(value)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_a_toml_block_that_niso_does_not_accept_is_seen(tmp_path: pathlib.Path) -> None:
    for number, wrong in enumerate(
        (
            {"network": {"ports": ["0:80"]}},
            {"network": {"prots": []}},
            {"service": [{"network": "backend", "ports": [80]}]},
        )
    ):
        (folder := tmp_path / str(number)).mkdir()
        with pytest.raises(Exception, match=r"ports|prots"):
            check(dict(wrong), folder)


def test_each_row_of_the_comparison_names_its_tests() -> None:
    text = (ROOT / "README.md").read_text().partition("\n## How it compares\n")[2]
    table = [line for line in text.partition("<!--")[0].splitlines() if line.startswith("| ")]
    compared = [line.split(" | ")[0].strip("| ") for line in table]
    text = (ROOT / "docs/design/tests.md").read_text().partition("\n## The comparison\n")[2]
    proofs = [line.strip("| ").split(" | ") for line in text.partition("\n## ")[0].splitlines()]
    named = {row: tests for row, tests in (proof for proof in proofs if len(proof) == 2)}
    rows = [row for row in compared if row and row[0].islower()]
    assert len(rows) > 10 and set(rows) <= named.keys()
    for file, test in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", " ".join(named.values())):
        (found,) = (ROOT / "tests").rglob(file)
        assert f"def {test}" in found.read_text(), (file, test)


def test_each_figure_of_the_comparison_stands_in_the_page_that_its_row_names() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- figures:")[2].partition("<!-- end of figures -->")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "](" in row]
    assert rows
    for row in rows:
        *cells, source = row.strip("| ").split(" | ")
        link = _LINK.search(source)
        assert link, row
        known = set(_NUMBER.findall((ROOT / link.group(1)).read_text()))
        figures = [figure for cell in cells[1:] for figure in _NUMBER.findall(cell)]
        assert figures and set(figures) <= known, (
            f"{row}: not in {link.group(1)}: {set(figures) - known}"
        )


def test_the_picture_of_a_packets_way_has_chains_that_there_are() -> None:
    svg = (ROOT / "docs/design/packet.svg").read_text()
    drawn = {
        name
        for names in re.findall(r'class="chain"[^>]*>([^<]+)<', svg)
        for name in names.split(", ")
    }
    assert (
        {"raw", "publish", "forward"}
        <= drawn
        <= set(re.findall(r"^\tchain (\w+) {", ruleset.TABLES, re.MULTILINE))
    )


def test_the_chart_of_attacks_has_the_figures_of_its_table() -> None:
    """The bars of niso, Podman and Docker; the last attack's bar is the share that is lost."""
    page, svg = (ROOT / "docs/design" / file for file in ("attacks.md", "attacks.svg"))
    rows = re.findall(r"^\| .+ \| (?:nothing|NET_RAW) \| (.*) \|$", page.read_text(), re.MULTILINE)
    cells = [[cell.split(",")[0] for cell in row.split(" | ")] for row in rows]
    wanted = [cell for each in cells[:-1] for cell in (each[0], *each[2:])]
    wanted += [f"{100 - int(cell.removesuffix(' %'))} %" for cell in (cells[-1][0], *cells[-1][2:])]
    assert len(rows) == 8
    assert re.findall(r'class="value"[^>]*>([^<]+)<', svg.read_text()) == wanted


@cache
def help_of(*command: str) -> str:
    """What ``niso COMMAND --help`` prints; '' where there is no such command."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        main.run([*command, "--help"])
    return printed.getvalue()


ACTIONS_OF_THREE = [
    action
    for group in ("net", "cluster")
    for action in cli_command.find(group, "").actions
    if action.name.count(" ") == 2
]


def is_command(code: str) -> bool:
    """Return whether ``niso X --option`` is a command whose help names the options.

    Code that is no command of niso passes."""
    words = code.split()
    if (
        len(words) < 2
        or words[0] != "niso"
        or not re.fullmatch(r"[a-z-]+", words[1])
        or words[1].startswith("-")
        or "|" in code
    ):
        return True
    in_group = words[1] in ("net", "stack", "cluster") and len(words) > 2
    command = words[1:3] if in_group else words[1:2]
    if " ".join(words[1:4]) in (action.name for action in ACTIONS_OF_THREE):
        command = words[1:4]
    options = [word.rstrip("]") for word in words[len(command) + 1 :] if word.startswith("-")]
    own = options[: options.index("--")] if "--" in options else options
    text = help_of(*command)
    return text != "" and all(
        re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) for option in own
    )


def test_commands_in_the_text_are_commands_of_niso() -> None:
    """Not in open.md and limits.md, which say what does not exist yet."""
    wrong = [
        (name(page), code)
        for page in PAGES
        if page.name not in ("open.md", "limits.md")
        for code in _CODE.findall(prose(page))
        if not is_command(code)
    ]
    assert wrong == []


def test_verbs_of_dev_are_verbs() -> None:
    known = set(re.findall(r"^  ([a-z-]+)\)$", (ROOT / "dev").read_text(), re.MULTILINE))
    assert {"test", "demo"} <= known
    used = {
        (name(page), verb)
        for page in PAGES
        for verb in re.findall(r"\./dev ([a-z][a-z-]*)", page.read_text())
    }
    assert {(page, verb) for page, verb in used if verb not in known} == set()


def test_what_is_not_run_is_shown_somewhere() -> None:
    shown = {
        line.strip().removeprefix("$ ")
        for page in pages.run_pages()
        for b in pages.blocks(page)
        for line in b.lines
    }
    assert set(pages.NOT_RUN) <= shown


def test_each_command_is_run_or_its_block_says_why_not() -> None:
    by_hand = [page for page in PAGES if page.relative_to(ROOT).parent.name != "reference"]
    assert [each for page in by_hand for each in pages.unmarked(page)] == []
    page = ROOT / "README.md"
    for line in (
        "$ anything",
        "a# anything",
        "niso ps",
        "sudo apt install x",
        "# systemctl stop x",
    ):
        assert pages.unmarked_of(pages.Block(page, 1, "text", ("some", line)))
        assert not pages.unmarked_of(pages.Block(page, 1, "text", (pages.NOT_HERE + "X", line)))


def test_a_wrong_command_and_a_wrong_output_are_seen() -> None:
    """What tests/netns/test_docs.py trusts in, on a shell's own output."""
    page = ROOT / "README.md"
    ok, silent = (
        pages.Command(page, 1, "ps", ("NAME   UP", "api    3s", "...")),
        pages.Command(page, 2, "true", None),
    )
    printed = "\n@@ 0\nNAME  UP\napi  12m3s\ndb  1s\n\n@@ 0:\n\n@@ 1\n\n@@ 1:\n"
    assert pages.wrong([ok, silent], printed) == []
    for said in (
        ("NAME UP", "api 3s"),
        ("NAME UP", "web 3s", "..."),
        ("...", "db 1s", "more"),
        ("NAME UP api 3s db 1s",),
    ):
        assert len(pages.wrong([ok._replace(expected=said), silent], printed)) == 1
    assert (
        "failed: [false]" in pages.wrong([ok, silent], printed.replace("@@ 1:", "@@ 1: [false]"))[0]
    )
    assert "did not get through" in pages.wrong([ok, silent], printed.replace("@@ 1:", "@@"))[0]


def test_commands_that_need_no_root_are_all_named() -> None:
    free = {
        name
        for name in cli_command.COMMANDS
        if isinstance(found := cli_command.find(name, ""), Command) and not found.root
    } - {"complete"}
    for page in PAGES:
        for named in re.findall(
            r"[Aa]ll(?: commands)? but ([^.;]*?) need root", page.read_text(encoding="utf-8")
        ):
            assert set(re.findall(r"[a-z]+", named)) - {"niso", "and"} == free, page


_STATUS_CODE = {
    "look/services.py": ("_inactive", "_status", "_front_status", "fate"),
    "look/other_hosts.py": ("_claimed", "_mirrored"),
    "runtime/status.py": ("_read", "_read_running"),
}
_NO_STATUS = {
    *("none", "front", "pid", "run", "phase", "starter", "restarts", "error"),
    "nothing has recorded its end or restarted it",
}


def test_the_help_of_ps_lists_each_status() -> None:
    """The strings of the functions that compute a status, without keys of records."""
    found = {
        part.value.strip(" ()")
        for file, functions in _STATUS_CODE.items()
        for function in ast.walk(ast.parse((ROOT / "src/niso" / file).read_text()))
        if isinstance(function, ast.FunctionDef) and function.name in functions
        for part in ast.walk(ast.Module(function.body[1:], []))
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }
    statuses = {each for each in found - _NO_STATUS if re.fullmatch("[a-z]+( [a-z]+)*", each)}
    assert len(statuses) > 12
    text = " ".join(help_of("ps").split())
    assert {each for each in statuses if not re.search(rf"\b{each}\b", text)} == set()


def _default_of(path: str) -> str | None:
    """Return the default of a key as a page writes it, or None if it depends on other keys."""
    key = keys.key_at(path)
    assert key is not None, path
    if key.default is None or key.default is ...:
        return None
    return str(key.default).lower() if isinstance(key.default, bool) else str(key.default)


def _limit_numbers(text: str) -> set[int]:
    """Return the numbers in the first clause of a cell or comment; unlimited is `UNLIMITED`."""
    clause = re.split(r"[:;](?!\d)|, as |, no ", text)[0]
    found = {
        int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
        for number, unit in re.findall(r"(\d+)([KMG]?)\b", clause)
    }
    return found | ({UNLIMITED} if "unlimited" in clause else set())


def test_defaults_in_the_guides_are_those_of_the_code() -> None:
    """Comments ``# default: X`` in TOML, cells ``default `X```, and the table of [limits]."""
    wrong: list[tuple[str, str, str]] = []
    compared = 0

    def compare(page: pathlib.Path, key: str, written: str, right: object) -> None:
        nonlocal compared
        compared += 1
        if written != right:
            wrong.append((name(page), key, f"{written}, but the code has {right}"))

    def number_sets(page: pathlib.Path, key: str, text: str) -> None:
        for each in [each.strip("`") for each in key.split(", ")]:
            missing = set(oci.RLIMITS[each]) - _limit_numbers(text)
            compare(page, f"limits.{each}", str(missing), str(set()))

    for block in (block for block in TOML if "guide" in block.page.parts):
        table = ""
        for line in block.lines:
            if header := re.match(r"\[([\w.]+)\]", line):
                table = header[1].removeprefix("service.") or table
            found = re.match(r'(?:# )?"?(\w+)"? = .*# (?:.*; |.*, )?default: (.*)', line)
            if found is None or not table:
                continue
            key, text = found.groups()
            if table == "limits":
                number_sets(block.page, key, text)
                continue
            right = _default_of(f"{table}.{key}") if keys.key_at(f"{table}.{key}") else None
            if right is not None:
                written = re.split(r"[,;] | packets", text)[0].strip('"')
                compare(block.page, f"{table}.{key}", written, right)
    for page in PAGES:
        for key, table, text in re.findall(
            r"`(\w+)` in `\[(?:service\.)?([\w.]+)\]`[^|]*?default `\"?([^`\"]+)\"?`",
            page.read_text(),
        ):
            right = _default_of(f"{table}.{key}")
            if right is not None:
                compare(page, f"{table}.{key}", text, right)
    services = ROOT / "docs/guide/services.md"
    rows = services.read_text().split("| limit | default |\n| --- | --- |\n")[1].split("\n\n")[0]
    cells = [tuple(row.strip("| ").split(" | ")) for row in rows.splitlines()]
    for limits, default in cells:
        number_sets(services, limits, default)
    listed = {each.strip("`") for limits, _ in cells for each in limits.split(", ")}
    assert listed == set(oci.RLIMITS)
    assert wrong == []
    assert compared > 25
