"""Test the import contract: layers, purity, and the modules that short commands load."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "niso"

ORDER = (
    "base",
    "kernel",
    "plan",
    "manifest",
    "importers",
    "store",
    "runtime",
    "reconcile",
    "explain",
    "see",
    "cluster",
    "services",
    "kubernetes",
    "commands",
    "engines",
    "web",
    "api",
    "cli",
)
"""The folders of src/niso, from the ground up: each may import those before it."""

CLI_MAY = {
    # makes a machine, where `niso.connect` is of one; is conmon's, with no user
    "cli.meta": {"niso.commands.lab.supervisor.run", "niso.runtime.on_exit"},
    # what it serves needs no host
    "cli.web": {"niso.web.page_server"},
}
"""What modules of cli/ import besides cli, the API, and base (errors, terminal and signals)."""

PURE_MAY = {
    "": {"__future__", "typing", "collections.abc"},
    "plan.subnets": {"hashlib", "ipaddress"},
    "plan.answers": {"ipaddress"},
    "plan.known_world": {"functools", "ipaddress"},
    "plan.verdict": {"ipaddress"},
    "plan.nft": {"ipaddress", "re"},
    "plan.policy_maps": {
        "bisect",
        "ipaddress",
        "itertools",
        "re",
        "socket",
    },  # socket for inet_pton alone, see below
}

HEAVY = {
    "argparse",
    "asyncio",
    "bz2",
    "contextlib",
    "ctypes",
    "dataclasses",
    "difflib",
    "inspect",
    "ipaddress",
    "logging",
    "lzma",
    "pathlib",
    "random",
    "shutil",
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
COMMON = {
    "niso",
    "niso.api",
    "niso.api.guard",
    "niso.api.host",
    "niso.api.session",
    "niso.base",
    "niso.cli",
    "niso.cli.catalogue",
    "niso.cli.command",
    "niso.cli.interrupts",
    "niso.cli.main",
    "niso.cli.output",
    "niso.cli.parse",
    "niso.cli.registry",
    "niso.base.errors",
    "niso.base.addresses",
    "niso.base.failpoint",
    "niso.base.paths",
    "niso.plan",
    "niso.plan.records",
    "niso.store",
    "niso.store.name_rows",
    "niso.store.policy_rows",
    "niso.store.port_rows",
    "niso.store.snapshots",
    "niso.store.service_rows",
    "niso.store.sqlite",
    "niso.store.store",
    "niso.store.reboot",
    "niso.base.lite_typing",
}


def modules() -> dict[str, Path]:
    """Dotted name below niso -> file: ``kernel.read``; packages by their own name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Absolute names of all that a file imports, anywhere in it; ``from niso import x`` counts as niso.x."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below if str(node.module).split(".")[0] == "niso" else {str(node.module)}
    return found


def layer(module: str) -> str:
    """``kernel`` of ``niso.kernel.reading.read``; ``errors`` of ``niso.base.errors.Error``."""
    return module.removeprefix("niso.").partition(".")[0]


MODULES = modules()


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_only_what_lies_below_it(module) -> None:
    own = layer(module)
    assert own in ORDER, f"{module}: a new folder needs a place in ORDER"
    used = {layer(name) for name in imports(MODULES[module]) if name.startswith("niso.")}
    used.discard("__version__")
    assert used <= set(ORDER[: ORDER.index(own) + 1]), f"{module} imports upward"


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) == "cli"])
def test_the_command_stands_on_the_api(module) -> None:
    used = {name for name in imports(MODULES[module]) if name.startswith("niso.")}
    below = {name for name in used if layer(name) not in ("cli", "api", "base", "__version__")}
    assert below == CLI_MAY.get(module, set())


def test_no_two_modules_have_one_name() -> None:
    """But a command's: its words (cli/catalogue), its command line (cli) and what it means (commands)."""
    places: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if not path.stem.startswith("__"):
            places.setdefault(path.stem, set()).add(str(path.parent.relative_to(SOURCE)))
    assert {
        name: folders
        for name, folders in places.items()
        if len(folders) > 1 and not folders <= {"cli", "cli/catalogue", "commands"}
    } == {}


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_needs_nothing_but_niso_and_the_standard_library(module) -> None:
    """Six parts need PyYAML, tomlkit, dnspython, prometheus_client, Textual and Starlette, in few modules."""
    own = {
        "importers.yaml_file": {"yaml"},
        "manifest.toml_edit": {"tomlkit"},
        "services.resolver": {"dns"},
        "cli.metrics": {"prometheus_client"},
        "cli.top_output": {"textual"},
        "cli.top_rows": {"textual", "rich"},
        "cli.top_screen": {"textual", "rich"},
        "web.page_server": {"starlette", "uvicorn"},
    }
    may = {"niso"} | own.get(module, set())
    used = {name.partition(".")[0] for name in imports(MODULES[module])}
    assert used - may <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) != "manifest"])
def test_text_of_a_manifest_is_parsed_in_manifest_alone(module) -> None:
    """Elsewhere it is a ServiceSpec. The API, the command line and engines have texts of their own, and old stores have manifests as written."""
    used = {
        name.split(".")[2] for name in imports(MODULES[module]) if name.startswith("niso.manifest.")
    }
    if layer(module) not in ("cli", "api", "importers", "engines"):
        assert used <= {"load", "stack_file", "stack_order", "stack_prefix", "policy_files"} | (
            {
                "store.written_rows": {"build"},
                "cluster.config": {"toml", "validate", "values"},
                "cluster.invitation": {"values"},
                "cluster.value_checks": {"values"},
            }.get(module, set())
        )


@pytest.mark.parametrize(
    "module", [m for m in MODULES if layer(m) in ("reconcile", "explain", "services", "commands")]
)
def test_json_of_the_store_is_decoded_in_the_store_alone(module) -> None:
    if not module.startswith("commands.lab"):
        used = imports(MODULES[module])
        assert not used & {"json", "niso.store.sqlite.decoded", "niso.store.sqlite"}
        text = MODULES[module].read_text()
        assert not [name for name in ("specs.service(", "specs.process(") if name in text]


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) == "plan"])
def test_pure_module_does_no_io_and_knows_no_time_or_chance(module) -> None:
    used = {name for name in imports(MODULES[module]) if not name.startswith("niso.")}
    assert used <= PURE_MAY[""] | PURE_MAY.get(module, set())
    tree = ast.parse(MODULES[module].read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "socket"
        ):
            assert node.attr in {"inet_pton", "inet_ntop", "AF_INET", "AF_INET6"}


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*/__init__.py")), ids=lambda path: path.parent.name
)
def test_init_files_are_empty(path) -> None:
    assert path.read_text() == ""


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


@pytest.mark.parametrize("module", MODULES)
def test_interfaces_are_imported_for_types_alone(module) -> None:
    """They hold no code that runs, and a command that loads them waits for it."""
    interfaces = {"niso.kernel.interface", "niso.runtime.processes"}
    tops = ast.parse(MODULES[module].read_text()).body
    assert not {node.module for node in tops if isinstance(node, ast.ImportFrom)} & interfaces


def test_every_name_of_niso_is_one_for_type_checkers_too() -> None:
    import niso

    tree = ast.parse(MODULES[""].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
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
    for module, path in MODULES.items():
        if (
            layer(module) == "cli"
            or module.startswith("commands.lab")
            or module in ("runtime.on_exit", "runtime.logs")
        ):
            continue
        calls = [
            node.func
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        ]
        assert not [
            call for call in calls if isinstance(call, ast.Name) and call.id in ("print", "exit")
        ], module
        assert not [
            call
            for call in calls
            if isinstance(call, ast.Attribute) and ast.unparse(call) == "sys.exit"
        ], module


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
    ("command", "own"),
    [
        (
            "net list",
            {
                "niso.api.host_networks",
                "niso.cli.net",
                "niso.cli.catalogue.net",
                "niso.cli.catalogue.net_attachments",
                "niso.cli.catalogue.net_policies",
            },
        ),
        (
            "net ports",
            {
                "niso.api.host_networks",
                "niso.api.published_ports",
                "niso.cli.net",
                "niso.cli.catalogue.net",
                "niso.cli.catalogue.net_attachments",
                "niso.cli.catalogue.net_policies",
            },
        ),
        (
            "ps",
            {
                "niso.api.host_services",
                "niso.api.outcomes",
                "niso.api.published_ports",
                "niso.api.service_views",
                "niso.api.time_texts",
                "niso.cli.inspect",
                "niso.cli.catalogue.service",
            },
        ),
        ("version", set()),
    ],
)
def test_short_command_loads_only_these_modules(command, own) -> None:
    from niso.store.store import Store

    Store.open().close()  # without one, the machine is asked whether it has been lost
    found = loaded(*command.split())
    ours = {name for name in found if name.partition(".")[0] == "niso"}
    if own:
        assert ours == COMMON | own
    else:
        assert ours == {
            "niso",
            "niso.base",
            "niso.cli",
            "niso.cli.catalogue",
            "niso.cli.catalogue.general",
            "niso.cli.command",
            "niso.cli.interrupts",
            "niso.cli.main",
            "niso.cli.registry",
            "niso.cli.parse",
            "niso.cli.meta",
            "niso.base.errors",
            "niso.base.lite_typing",
        }
    assert not {name.partition(".")[0] for name in found} & HEAVY


def test_completion_of_names_loads_the_words_of_one_command_and_the_store() -> None:
    from niso.store.store import Store

    Store.open().close()
    found = loaded("complete", "zsh", "--", "niso", "net", "explain", "")
    ours = {name for name in found if name.partition(".")[0] == "niso"}
    own = {
        "niso.api.host_services",
        "niso.api.outcomes",
        "niso.api.published_ports",
        "niso.cli.complete",
        "niso.cli.catalogue.general",
        "niso.cli.catalogue.net",
        "niso.cli.catalogue.net_attachments",
        "niso.cli.catalogue.net_policies",
    }
    assert ours == COMMON - {"niso.cli.output"} | own
    assert not {name.partition(".")[0] for name in found} & HEAVY


def test_modules_that_tests_load_early_exist() -> None:
    from lab_agent import LOADED

    assert set(LOADED) <= set(MODULES)


def test_local_networks_load_nothing_of_the_cluster() -> None:
    """Only it, `niso cluster`, and what is about networks that span import it at their top."""
    about = {"services.cluster_claims", "services.cluster_needs", "services.span_networks"}
    for module, path in MODULES.items():
        free = layer(module) == "cluster" or module.startswith("commands.cluster")
        if free or module in about:
            continue
        tops = [
            f"{node.module}.{alias.name}".removeprefix("niso.")
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        assert not [top for top in tops if top.startswith("cluster.") or top in about], module
