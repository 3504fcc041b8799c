"""Test the import contract: layers, purity, and the modules that short commands load."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "niso"

ORDER = (
    "base",
    "kernel",
    "plan",
    "manifest",
    "store",
    "runtime",
    "reconcile",
    "cluster",
    "look",
    "change",
    "engines",
    "compose",
    "lab",
    "web",
    "api",
    "cli",
)
"""The folders of src/niso, from the ground up: each may import those before it."""

CLI_MAY = {
    # makes a machine, where `niso.connect` is of one; is conmon's, with no user
    # the third is a type that is not public
    "cli.general_commands": {
        "niso.lab.supervisor.run",
        "niso.runtime.on_exit",
        "niso.runtime.units.Following",
    },
    # what it serves needs no host
    "cli.browser": {"niso.web.page_server"},
}
"""What modules of cli/ import besides cli, the API, and base (errors, terminal and signals)."""

PURE_MAY = {
    "": {"__future__", "typing", "collections.abc"},
    "plan.subnets": {"hashlib", "ipaddress", "itertools"},
    "plan.dns_answers": {"ipaddress"},
    "plan.records": {"ipaddress"},  # for types alone
    "plan.verdict": {"functools", "ipaddress"},
    "plan.desired": {"functools"},
    "plan.elements": {"functools", "hashlib"},
    "plan.policy_elements": {
        "bisect",
        "ipaddress",
        "itertools",
        "re",
        "socket",
    },  # socket for inet_pton alone, see below
}

HEAVY = {
    "_hashlib",
    "argparse",
    "asyncio",
    "bz2",
    "contextlib",
    "ctypes",
    "dataclasses",
    "difflib",
    "enum",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "lzma",
    "pathlib",
    "queue",
    "random",
    "re",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "tomllib",
    "traceback",
    "typing",
    "unittest",
    "urllib",
    "zlib",
}
CHANGES_OR_SERVES = {
    "kernel",
    "manifest",
    "reconcile",
    "cluster",
    "change",
    "engines",
    "compose",
    "lab",
    "web",
}
"""Folders of which a command that only prints rows of the store loads nothing."""
MOST = {"net list": 36, "net ports": 37, "ps": 44, "version": 17, "complete": 38}
"""How many modules of niso each short command loads at most: each costs 0.2 ms or more."""
MOST_OF_PLUGINS = {"cni": 60, "netavark": 60}
"""How many modules of niso the plugins load at most before a call."""


def modules() -> dict[str, Path]:
    """Dotted name below niso -> file: ``kernel.read``; packages by their own name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    """Return the parsed source of a module."""
    return ast.parse(MODULES[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """Return absolute names of all that a module imports, in functions too.

    ``from niso import x`` counts as niso.x.
    """
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            of_niso = str(node.module).split(".")[0] == "niso"
            found |= {"a relative import"} if node.level else set()
            found |= below if of_niso else {str(node.module)}
    return frozenset(found)


def imports_of_niso(module: str) -> set[str]:
    return {name for name in imports(module) if name.startswith("niso.")}


def layer(module: str) -> str:
    """``kernel`` of ``niso.kernel.reading.read``; ``errors`` of ``niso.base.errors.Error``."""
    return module.removeprefix("niso.").partition(".")[0]


MODULES = modules()


def test_modules_import_only_what_lies_below_them() -> None:
    wrong = {}
    for module in filter(None, MODULES):
        own = layer(module)
        assert own in ORDER, f"{module}: a new folder needs a place in ORDER"
        below = {*ORDER[: ORDER.index(own) + 1], "__version__"}
        upward = {name for name in imports_of_niso(module) if layer(name) not in below}
        upward |= imports(module) & {"a relative import"}
        if upward:
            wrong[module] = upward
    assert wrong == {}


def test_the_command_line_imports_the_api_alone() -> None:
    wrong = {}
    for module in MODULES:
        if layer(module) != "cli":
            continue
        below = {
            name
            for name in imports_of_niso(module)
            if layer(name) not in ("cli", "api", "look", "base", "__version__")
        }
        if below != CLI_MAY.get(module, set()):
            wrong[module] = below
    assert wrong == {}


def test_no_two_modules_have_one_name() -> None:
    """But a command's: its words (cli/catalogue), its command line (cli) and what it means (commands)."""
    places: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if not path.stem.startswith("__"):
            places.setdefault(path.stem, set()).add(str(path.parent.relative_to(SOURCE)))
    assert {
        name: folders
        for name, folders in places.items()
        if len(folders) > 1 and not folders <= {"cli", "cli/catalogue", "change"}
    } == {}


def test_modules_need_nothing_but_niso_and_the_standard_library() -> None:
    """Six parts need PyYAML, tomlkit, dnspython, prometheus_client, Textual and Starlette, in few modules."""
    own = {
        "manifest.yaml_file": {"yaml"},
        "manifest.toml": {"tomlkit"},
        "change.outside_names_refresh": {"dns"},
        "cli.prometheus": {"prometheus_client"},
        "cli.top_screen": {"textual", "rich"},
        "web.page_server": {"starlette", "uvicorn"},
    }
    wrong = {}
    for module in filter(None, MODULES):
        may = {"niso"} | own.get(module, set())
        used = {name.partition(".")[0] for name in imports(module)}
        if more := used - may - sys.stdlib_module_names:
            wrong[module] = more
    assert wrong == {}


def test_text_of_a_manifest_is_parsed_in_manifest_alone() -> None:
    """Elsewhere it is a ServiceSpec. The API, the command line and engines have texts of their own."""
    every = {"load", "stack", "policy"}
    own = {
        "runtime.package": {"toml"},  # it writes the manifest of a copy
        "change.boot": {"process_keys"},  # it converts a parsed schedule to cron's form
        "change.save_load": {"toml", "values"},  # it writes the manifests of loaded services
        "change.warnings": {"process_keys"},
        "look.learn": {"toml"},
        "look.other_hosts": {"addresses_and_ports"},
        "look.session": {"values"},
        "cluster.config": {"toml", "validate", "values"},
        "cluster.invitation": {"values"},
        "cluster.key_values": {"values"},
    }
    wrong = {}
    for module in MODULES:
        if layer(module) in ("manifest", "cli", "api", "compose", "engines"):
            continue
        used = {name.split(".")[2] for name in imports(module) if name.startswith("niso.manifest.")}
        if more := used - every - own.get(module, set()):
            wrong[module] = more
    assert wrong == {}


def test_json_of_the_store_is_decoded_in_the_store_alone() -> None:
    wrong = {}
    for module, path in MODULES.items():
        layers = ("reconcile", "look", "change")
        if layer(module) not in layers:
            continue
        found = imports(module) & {"json", "niso.store.sqlite.decoded", "niso.store.sqlite"}
        text = path.read_text()
        found |= {call for call in ("specs.service(", "specs.process(") if call in text}
        found -= {"look.session": {"niso.store.sqlite"}, "look.learn": {"json"}}.get(module, set())
        if found:
            wrong[module] = found
    assert wrong == {}


def impure(module: str) -> set[str]:
    """Return what a module of plan/ imports or calls that could do I/O or know time or chance."""
    used = {name for name in imports(module) if not name.startswith("niso.")}
    found = used - PURE_MAY[""] - PURE_MAY.get(module, set())
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name):
            found |= {node.id} & {"open", "print", "input", "exec", "eval", "__import__"}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "socket":
            found |= {node.attr} - {"inet_pton", "inet_ntop", "AF_INET", "AF_INET6"}
    return found


def test_pure_modules_do_no_io_and_know_no_time_or_chance() -> None:
    found = {module: impure(module) for module in MODULES if layer(module) == "plan"}
    assert {module: names for module, names in found.items() if names} == {}


def test_init_files_are_empty() -> None:
    found = [path for path in SOURCE.rglob("*/__init__.py") if path.read_text() != ""]
    assert found == []


def test_importing_niso_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import niso; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-I",
            "-c",
            f"import sys; sys.path[:0] = {[str(SOURCE.parent)]!r}; {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {"niso", "__future__"}


def test_interfaces_are_imported_for_types_alone() -> None:
    """They hold no code that runs, and a command that loads them waits for it."""
    interfaces = {"niso.runtime.processes"}
    wrong = [
        module
        for module in MODULES
        for node in tree(module).body
        if isinstance(node, ast.ImportFrom) and node.module in interfaces
    ]
    assert wrong == []


def test_every_name_of_niso_is_one_for_type_checkers_too() -> None:
    import niso

    block = next(node for node in tree("").body if isinstance(node, ast.If))
    typed = {
        (str(node.module), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {
        (f"niso.{module}", name)
        for module, names in niso._MODULES.items()
        for name in names.split()
    }
    assert typed == lazy
    for _, name in lazy:
        assert getattr(niso, name)
    assert dir(niso) == sorted(name for _, name in lazy)
    with pytest.raises(AttributeError, match="nothing"):
        _ = niso.nothing


def test_only_the_command_line_ends_the_process_or_prints() -> None:
    may = {"runtime.on_exit", "runtime.logs", "change.health_agent"}
    wrong = {}
    for module in MODULES:
        if layer(module) in ("cli", "lab") or module in may:
            continue
        calls = [
            ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)
        ]
        if found := {"print", "exit", "sys.exit"} & set(calls):
            wrong[module] = found
    assert wrong == {}


ZSH = ("zsh", "--", "niso", "net", "explain", "")
"""What a shell asks for to complete the name of a service."""


def loaded(*arguments: str) -> set[str]:
    """Modules that a niso command loads over a bare interpreter, in a process of its own."""
    code = (
        "import sys, os\n"
        "before = set(sys.modules)\n"
        "os.geteuid = lambda: 0\n"
        "from niso.cli.main import run\n"
        "status = run(sys.argv[1:])\n"
        "found = sorted(set(sys.modules) - before)\n"
        "import json\n"
        "print(json.dumps([status, found]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        # -S -I: no site, so that no .pth of the virtual environment counts
        [
            sys.executable,
            "-S",
            "-I",
            "-c",
            f"import sys; sys.path[:0] = {[str(SOURCE.parent)]!r}\n{code}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key.startswith("NISO_")},
    )
    status, found = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    assert done.stdout
    return set(found)


@pytest.mark.parametrize(
    "words",
    [["net", "list"], ["net", "ports"], ["ps"], ["version"], ["complete", *ZSH]],
    ids=lambda words: " ".join(words[:2]),
)
def test_short_command_loads_few_modules(words: list[str]) -> None:
    """And none that changes the host, and none of the expensive ones of the standard library."""
    from niso.store.store import Store

    Store.open().close()  # without one, the machine is asked whether it has been lost
    found = loaded(*words)
    ours = sorted(name for name in found if name.partition(".")[0] == "niso")
    assert not [name for name in ours if layer(name) in CHANGES_OR_SERVES]
    assert not {name.partition(".")[0] for name in found} & HEAVY
    most = MOST["complete" if words[0] == "complete" else " ".join(words)]
    assert len(ours) <= most, f"{len(ours)} modules of niso, {most} at most: {ours}"


@pytest.mark.parametrize("plugin", MOST_OF_PLUGINS)
def test_plugin_loads_few_modules(plugin: str) -> None:
    """An engine waits for its plugin: it loads no parser of manifests, and no thread."""
    code = f"import sys; sys.path.append({str(SOURCE.parent)!r}); import niso.engines.{plugin}"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", f"{code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(done.stdout.split())
    assert not {name.partition(".")[0] for name in found} & (HEAVY - {"contextlib", "ipaddress"})
    ours = sorted(name for name in found if name.partition(".")[0] == "niso")
    assert {name for name in ours if layer(name) == "manifest"} <= {
        "niso.manifest",
        "niso.manifest.values",
    }
    assert len(ours) <= MOST_OF_PLUGINS[plugin], ours


def test_folders_that_short_commands_do_not_load_exist() -> None:
    assert set(ORDER) > CHANGES_OR_SERVES


def test_modules_that_tests_load_early_exist() -> None:
    from lab_agent import LOADED

    assert set(LOADED) <= set(MODULES)


def test_local_networks_load_nothing_of_the_cluster() -> None:
    """Only it, `niso cluster`, and what is about networks that span import it at their top."""
    about = {
        "api.host_cluster",
        "change.cluster_claims",
        "change.span_networks",
        "look.other_hosts",
    }
    wrong = {}
    for module in MODULES:
        if layer(module) == "cluster" or module.startswith("change.cluster") or module in about:
            continue
        tops = {
            f"{node.module}.{alias.name}".removeprefix("niso.")
            for node in tree(module).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        if found := {top for top in tops if top.startswith("cluster.") or top in about}:
            wrong[module] = found
    assert wrong == {}


def _lazies(module: str) -> dict[str, str]:
    """Return {name: module} of the names that ``module`` binds to `niso.base.native.lazy`."""
    found = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Assign) and "lazy(" in ast.unparse(node.value):
            target, value = node.targets[0], node.value
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            calls = value.elts if isinstance(value, ast.Tuple) else [value]
            for name, call in zip(names, calls, strict=True):
                if isinstance(call, ast.Call):
                    found[ast.unparse(name)] = ast.literal_eval(call.args[0])
    return found


def test_lazy_modules_are_imported_for_type_checkers() -> None:
    """``x = lazy("niso.a.x")`` and, under TYPE_CHECKING, the import that gives ``x`` its types."""
    wrong = {}
    for module in MODULES:
        typed = set()
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for given in ast.walk(ast.Module(node.body, [])):
                    if isinstance(given, ast.ImportFrom):
                        typed |= {
                            (alias.asname or alias.name, f"{given.module}.{alias.name}")
                            for alias in given.names
                        }
                    elif isinstance(given, ast.Import):
                        typed |= {(alias.name, alias.name) for alias in given.names}
        if missing := {*_lazies(module).items()} - typed:
            wrong[module] = missing
    assert wrong == {}


def test_only_functions_of_lazy_modules_are_used() -> None:
    """The stand-in of a module has no constants, and no class for ``isinstance`` or ``except``."""
    wrong = []
    for module in MODULES:
        if not (lazies := _lazies(module)):
            continue
        called, bound = set(), set()
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called.add(id(node.func))
                if ast.unparse(node.func) == "staticmethod":
                    called.add(id(node.args[0]))
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                called |= {id(part) for part in ast.walk(ast.Module(node.body, []))}
            for words in ("annotation", "returns"):
                if (annotation := getattr(node, words, None)) is not None:
                    called |= {id(part) for part in ast.walk(annotation)}
            if isinstance(node, ast.FunctionDef | ast.Lambda):  # a local variable of the same name
                local = {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
                for part in ast.walk(node):
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        local.add(part.id)
                    elif isinstance(part, ast.ImportFrom):
                        local |= {alias.asname or alias.name for alias in part.names}
                bound |= {
                    id(part)
                    for part in ast.walk(node)
                    if isinstance(part, ast.Name) and part.id in local
                }
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.Attribute) or id(node) in called or id(node.value) in bound:
                continue
            if ast.unparse(node.value) in lazies:
                wrong.append(f"{module}: {ast.unparse(node)} (line {node.lineno})")
    assert wrong == []


def test_lazy_module_is_imported_by_its_first_use() -> None:
    code = (
        "import sys; from niso.base.native import lazy; text = lazy('niso.base.text');"
        "before = 'niso.base.text' in sys.modules; print(before, text.shown('a'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False "a"\n'
