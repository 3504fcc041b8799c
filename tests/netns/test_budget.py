"""What activate and port-forward load; tests/unit/test_imports.py has the commands without a kernel."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import Lab
from services import idle

import niso

LOADED = """\
import sys
sys.path[:0] = [{source!r}]
before = set(sys.modules)
from niso.cli.main import run
status = run(sys.argv[1:])
import json
print(json.dumps([status, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""


def loaded(lab: Lab, *arguments: str) -> set[str]:
    """Modules that a command of niso loads over a bare interpreter."""
    code = LOADED.format(source=niso.__path__[0].rpartition("/")[0])
    done = lab.run(sys.executable, "-S", "-I", "-c", code, *arguments)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


SYSTEM = set(
    [
        "__future__",
        "_bisect",
        "_collections",
        "_collections_abc",
        "_ctypes",
        "_datetime",
        "_functools",
        "_heapq",
        "_json",
        "_operator",
        "_sha2",
        "_socket",
        "_sqlite3",
        "_sre",
        "_stat",
        "_struct",
        "array",
        "bisect",
        "collections",
        "collections.abc",
        "contextlib",
        "copyreg",
        "ctypes",
        "ctypes._endian",
        "datetime",
        "encodings.ascii",
        "enum",
        "errno",
        "fcntl",
        "functools",
        "gc",
        "genericpath",
        "heapq",
        "importlib",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "ipaddress",
        "itertools",
        "json",
        "json.decoder",
        "json.encoder",
        "json.scanner",
        "keyword",
        "math",
        "operator",
        "os",
        "os.path",
        "posixpath",
        "re",
        "re._casefix",
        "re._compiler",
        "re._constants",
        "re._parser",
        "reprlib",
        "resource",
        "select",
        "selectors",
        "signal",
        "socket",
        "sqlite3",
        "sqlite3.dbapi2",
        "stat",
        "struct",
        "types",
        "warnings",
    ]
)
"""Modules of Python that both commands need."""


BOTH = set(
    [
        "api",
        "api.events",
        "api.guard",
        "api.host",
        "api.published",
        "api.host_services",
        "api.session",
        "base",
        "base.digest",
        "base.errors",
        "base.failpoint",
        "base.files",
        "base.lite_typing",
        "base.names",
        "base.paths",
        "base.signals",
        "base.waits",
        "cli",
        "cli.catalogue",
        "cli.catalogue.service",
        "cli.command",
        "cli.failures",
        "cli.interrupts",
        "cli.main",
        "cli.output",
        "cli.parse",
        "cli.progress",
        "cli.registry",
        "kernel",
        "kernel.announce",
        "kernel.bridge_flags",
        "kernel.conntrack",
        "kernel.host_facts",
        "kernel.modules",
        "kernel.neighbours",
        "kernel.netlink",
        "kernel.netns",
        "kernel.nft_elements",
        "kernel.read",
        "kernel.rtnetlink",
        "kernel.rtnl_sockets",
        "kernel.sockdiag",
        "kernel.sysctl",
        "kernel.write",
        "manifest",
        "manifest.parse_ports",
        "manifest.parse_volumes",
        "manifest.values",
        "plan",
        "plan.desired",
        "plan.diff",
        "plan.hosts_text",
        "plan.nft",
        "plan.policy_maps",
        "plan.records",
        "plan.state",
        "plan.subnets",
        "reconcile",
        "reconcile.converge",
        "reconcile.forwarding",
        "reconcile.policy_flows",
        "runtime",
        "runtime.cgroup",
        "runtime.hosts_mount",
        "runtime.launch",
        "runtime.logs",
        "runtime.oci",
        "runtime.package",
        "runtime.process",
        "runtime.resolve",
        "runtime.root",
        "runtime.service_lock",
        "runtime.spec",
        "runtime.unit",
        "runtime.volumes",
        "services",
        "services.journal",
        "services.ports",
        "services.stop",
        "services.undo",
        "store",
        "store.disk_reserve",
        "store.policy_rows",
        "store.port_rows",
        "store.reboot",
        "store.sharer_rows",
        "store.snapshots",
        "store.sqlite",
        "store.stack_rows",
        "store.store",
        "store.tables",
    ]
)
"""Modules of niso that both commands need."""

OURS = {
    "activate api": """
    api.handover cli.service commands commands.activate explain explain.exposure
    explain.foreign_firewalls kernel.foreign_chains manifest.convert manifest.load
    manifest.parse_health manifest.parse_policy manifest.parse_resources manifest.toml
    runtime.health runtime.settled services.admit services.sharing services.start
    services.targets store.leases
    """,
    "port-forward api 8080:80": """
    cli.forward
    """,
}
"""By command, those that it alone needs."""

MORE = {"activate api": {"_typing", "shlex", "typing"}, "port-forward api 8080:80": set[str]()}


@pytest.mark.parametrize("command", OURS)
def test_command_loads_these_modules_and_no_more(lab: Lab, command: str) -> None:
    lab.niso("activate", idle(lab, "api"))
    if command.startswith("activate"):
        lab.niso("deactivate", "api")
    modules = loaded(lab, *command.split())
    ours = {name.removeprefix("niso.") for name in modules if name.startswith("niso.")}
    system = modules - {"niso", *(f"niso.{name}" for name in ours)}
    assert system == SYSTEM | MORE[command]
    assert ours == BOTH | set(OURS[command].split())
