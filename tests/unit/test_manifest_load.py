"""Test manifest files: their content, and every kind of error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manifests import HEAD, error, errors, loaded, write

from niso.manifest.load import load
from niso.plan.records import Entry, Healthcheck, Peer, Policy, PortMapping
from niso.plan.specs import ProcessUser, Published, Volume

ROOT = Path(__file__).resolve().parents[2]
FULL = """
[package]
name = "api"
version = "1.0.0"
rootfs = "rootfs"

[binary]
entrypoint = "bin/api"
args = ["--port", "8080"]
working_dir = "/srv"

[environment]
LOG_LEVEL = "info"

[service]
user = "1000:1000"
restart = "always"
restart_delay = "200ms"
stop_timeout = "2m"

[isolation]
capabilities = ["NET_BIND_SERVICE"]
read_only = false

[network]
mode = "bridge"
networks = ["backend", "frontend"]
ports = ["8080:8080", "8080:8080/tcp", "0.0.0.0:443:443", "8080:8080", "[::]:53:5353/udp"]
hostname = "shop"
aliases = ["web", "www"]
ip = { backend = "10.99.1.10" }
"""


def test_every_key_is_read_into_its_place(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec = loaded(tmp_path, FULL)
    assert (spec.name, spec.program.rootfs) == ("api", "rootfs")
    assert (spec.program.entrypoint, spec.program.args, spec.program.working_dir) == (
        "bin/api",
        ("--port", "8080"),
        "/srv",
    )
    assert spec.program.environment == {"LOG_LEVEL": "info"}
    assert (spec.program.restart, spec.program.restart_delay_s, spec.program.stop_timeout_s) == (
        "always",
        0.2,
        120.0,
    )
    assert (spec.program.capabilities, spec.program.read_only) == (("NET_BIND_SERVICE",), False)
    assert spec.program.user == ProcessUser(None, 1000, 1000)
    assert (spec.network.mode, spec.network.networks) == ("bridge", ("backend", "frontend"))
    assert spec.network.hostname == "shop"
    assert spec.names == ("shop", "api", "web", "www")
    assert spec.network.ports == (
        Published(PortMapping("", 8080, 8080, "tcp"), "network.ports[0]"),
        Published(PortMapping("0.0.0.0", 443, 443, "tcp"), "network.ports[2]"),
        Published(PortMapping("::", 53, 5353, "udp"), "network.ports[4]"),
    )
    assert spec.network.addresses == {"backend": "10.99.1.10"}


def test_smallest_manifest_has_the_defaults(tmp_path: Path) -> None:
    spec = loaded(tmp_path, HEAD)
    assert (spec.program.entrypoint, spec.program.args, spec.program.working_dir) == (
        "bin/api",
        (),
        "/app",
    )
    assert (spec.program.restart, spec.program.restart_delay_s, spec.program.stop_timeout_s) == (
        "on-failure",
        1,
        10,
    )
    assert (spec.program.capabilities, spec.program.read_only) == ((), True)
    assert (spec.program.memory_max, spec.program.cpu_max, spec.program.pids_limit) == (
        None,
        None,
        2048,
    )
    assert (spec.program.shm_size, spec.program.tmp_size, spec.program.restrict_suid_sgid) == (
        64 << 20,
        256 << 20,
        True,
    )
    assert (spec.program.rootfs, spec.program.user, spec.program.environment) == (None, None, {})
    assert (spec.network.networks, spec.names) == (("niso-default",), ("api",))
    assert (spec.network.ports, spec.network.addresses, spec.network.policy) == ((), {}, Policy())
    assert (spec.program.healthcheck, spec.program.volumes) == (None, ())


def test_texts_are_data_and_kept_as_they_are_written(tmp_path: Path) -> None:
    text = """
[isolation.resources]
memory_max = "64M"
cpu_max = "50%"
[healthcheck]
http = "http://web/x"
interval = "1m"
[volumes]
conf = { mount = "/conf", host = "/srv", mode = "ro" }
tmp = { mount = "/scratch", tmpfs = true, size = "1K" }
[network]
hostname = "web"
ports = ["80"]
[network.policy]
allow_from = ["db:5432/tcp"]
"""
    spec = loaded(tmp_path, HEAD + text)
    assert (spec.program.memory_max, spec.program.cpu_max) == (64 << 20, 50)
    assert spec.program.healthcheck == Healthcheck("", 80, "web", "/x", 60.0, 2.0, 3, 10.0)
    assert spec.program.volumes == (
        Volume("conf", "/conf", "/srv", False, True, None),
        Volume("tmp", "/scratch", None, True, False, 1024),
    )
    key = "network.policy.allow_from[0]"
    entry = Entry(key, "db:5432/tcp", Peer("service", "db"), 5432, 5432, "tcp")
    assert spec.network.policy == Policy(allow_from=(entry,))
    network, limits = (spec.manifest[name] for name in ("network", "isolation"))
    assert isinstance(network, dict) and network["ports"] == ["80"]
    assert isinstance(limits, dict) and limits["resources"]["memory_max"] == "64M"


def test_static_ip_as_text_is_that_of_the_only_network(tmp_path: Path) -> None:
    for networks in ('network = "backend"', 'networks = ["backend"]'):
        spec = loaded(tmp_path, HEAD + f'[network]\n{networks}\nip = "10.99.1.10"\n')
        assert spec.network.addresses == {"backend": "10.99.1.10"}


def test_alias_that_repeats_the_name_is_one_name(tmp_path: Path) -> None:
    text = HEAD + '[network]\nhostname = "web"\naliases = ["api", "web"]'
    assert loaded(tmp_path, text).names == ("web", "api")


def test_folder_and_file_and_relative_path_load_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, HEAD)
    monkeypatch.chdir(tmp_path)
    for argument in (path, str(tmp_path), ".", "manifest.toml", f"{tmp_path}/"):
        found = load(argument)
        assert (found.path, found.folder) == (path, str(tmp_path))


def test_all_errors_come_at_once_with_their_keys(tmp_path: Path) -> None:
    text = """
    [package]
    name = "Api"
    [binary]
    entrypoint = ""
    args = ["ok", 8080, "a\\u0000"]
    [environment]
    "A B" = "x"
    DEBUG = true
    [service]
    restart = "sometimes"
    restart_delay = "2m"
    [isolation]
    capabilities = ["CAP_NET_ADMINS"]
    read_only = "yes"
    [network]
    prots = ["80:80"]
    ports = ["80:80", "x", 5, "80:81"]
    networks = ["default", "backend", "backend"]
    aliases = ["localhost", "web", "web"]
    ip = { other = "10.99.1.1", backend = 5 }
    [volumes]
    data = { mount = "data", host = "/data", tmpfs = true }
    more = {}
    [isolation.resources]
    memory_max = "1"
    pids_limit = "5"
    [healthcheck]
    http = "ftp://localhost"
    interval = 5
    """
    assert set(errors(tmp_path, text)) == {
        *(
            "package.name",
            "package.version",
            "binary.entrypoint",
            "binary.args[1]",
            "binary.args[2]",
        ),
        *('environment."A B"', "environment.DEBUG", "service.restart", "service.restart_delay"),
        *(
            "isolation.capabilities[0]",
            "isolation.read_only",
            "network.prots",
            "network.ports[1]",
            "network.ports[2]",
        ),
        *(
            "network.ports[3]",
            "network.networks[0]",
            "network.networks[2]",
            "network.aliases[0]",
            "network.aliases[2]",
        ),
        *("network.ip.other", "network.ip.backend", "volumes.data.mount", "volumes.data.host"),
        *("volumes.more.mount", "isolation.resources.memory_max", "isolation.resources.pids_limit"),
        *("healthcheck.http", "healthcheck.interval"),
    }


def test_wrong_values_are_found_also_when_every_type_is_right(tmp_path: Path) -> None:
    found = errors(
        tmp_path, HEAD + '[service]\nuser = "a b"\n[network]\nports = ["80:80", "53:53/icmp"]\n'
    )
    assert set(found) == {"service.user", "network.ports[1]"}


def test_message_names_file_key_value_reason_and_what_is_right(tmp_path: Path) -> None:
    only = error(tmp_path, HEAD + '[network]\nports = ["8080:8080", "eighty:80"]\n')
    assert only.message == (
        f'{tmp_path}/manifest.toml: network.ports[1]: "eighty:80" is not a valid port mapping: '
        '"eighty" is not a valid port '
        "([ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp], ports 1 to 65535 or equally long ranges)"
    )
    assert only.hint == 'for example "8080:8080"'


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[network]\nhostnam = 'x'", "network.hostnam", "network.hostname"),
        ("[network]\nPORTS = []", "network.PORTS", "network.ports"),
        ("[enviroment]\nA = 'b'", "enviroment", "environment"),
        ("[env]\nA = 'b'", "env", "environment"),
        ("[network]\nport = ['80:80']", "network.port", "network.ports"),
    ],
)
def test_unknown_key_suggests_the_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    only = error(tmp_path, HEAD + text)
    assert (only.key, only.hint) == (key, None)
    assert only.message.endswith(f": unknown key (did you mean {near}?)")
    # a table is not shown: its values may be secrets
    shown = f"{key}: unknown" if text.startswith(f"[{key}]") else f"{key} = {only.value}"
    assert shown in only.message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[policy]\nallow_from = []", "[network.policy]"),
        ("env = { A = 'b' }", "[environment]"),  # after [binary]
        ("user = 'www'", "service.user"),
        ("ports = ['80:80']", "network.ports"),  # after [binary]
        ("[isolation]\nmemory_max = '1G'", "isolation.resources.memory_max"),
        ("[service]\ncommand = 'x'", None),  # that of the health check is an array
        ("timeout = '1s'", None),  # several have one
    ],
)
def test_key_of_another_table_is_named(tmp_path: Path, text: str, place: str | None) -> None:
    only = error(tmp_path, HEAD + text)
    assert f"; elsewhere: {place})" in only.message or place is None
    assert only.hint == (f"move it to {place}, or remove it" if place else f"remove {only.key}")


def test_unknown_key_without_a_near_one_lists_what_there_is(tmp_path: Path) -> None:
    only = error(tmp_path, HEAD + "[isolation]\nzzz = 1")
    assert "isolation.zzz = 1: unknown key (known keys: capabilities, read_only" in only.message


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            "[network]\nnetwork = 'a'\nnetworks = ['b']",
            "network.networks",
            "conflicts with network.network",
        ),
        ("[network]\nnetworks = []", "network.networks", "[] is empty"),
        (
            "[network]\nnetworks = ['a', 'a']",
            "network.networks[1]",
            "is the same as network.networks[0]",
        ),
        (
            "[network]\naliases = ['a', 'b', 'a']",
            "network.aliases[2]",
            "is the same as network.aliases[0]",
        ),
        ("[network]\nnetworks = ['a', 'b']\nip = '10.1.1.1'", "network.ip", "several networks"),
        (
            "[network]\nnetwork = 'a'\nip = { b = '10.1.1.1' }",
            "network.ip.b",
            '(one of ["a"])',
        ),
        ("[network]\nip = { a = '10.1.1.1' }", "network.ip.a", '"niso-default"'),
        (
            "[network]\nports = ['80:80', '0.0.0.0:80:81']",
            "network.ports[1]",
            'conflicts with network.ports[0], "80:80": same host port',
        ),
        (
            "[network]\nports = ['[::1]:80:80']",
            "network.ports[0]",
            "the kernel accepts no packets for ::1 from a bridge",
        ),
        ("[network]\nip = 'fe80::2'", "network.ip", "is a link-local address"),
        ("[network]\nip = []", "network.ip", "is empty"),
        (
            "[network]\nip = ['10.1.1.1', 'fd00::2', '10.1.1.2']",
            "network.ip[2]",
            "is a second IPv4 address beside network.ip[0]",
        ),
        (
            "[network]\nip = { niso-default = ['fd00::2', 'fd00::3'] }",
            "network.ip.niso-default[1]",
            "is a second IPv6 address beside network.ip.niso-default[0]",
        ),
        (
            "[network]\nip = { niso-default = ['10.1.1.1', '::1'] }",
            "network.ip.niso-default[1]",
            "is an address of the machine itself",
        ),
        ("[network]\nnetworks = ['a', 'b']\nip = ['10.1.1.1']", "network.ip", "names no network"),
        ("[network]\ndns = []", "network.dns", "is empty"),
        ("[network]\ndns = ['dns.example']", "network.dns[0]", "is not a valid address"),
        (
            "[network]\ndns = ['1.1.1.1', '1.1.1.2', '1.1.1.3', '1.1.1.4']",
            "network.dns",
            "has 4 name servers, of which resolvers use 3",
        ),
        ("[network]\ndns_search = ['a b']", "network.dns_search[0]", "is not a valid domain"),
        (
            "[network]\nextra_hosts = { 'a b' = '1.1.1.1' }",
            'network.extra_hosts."a b"',
            "is not a valid name",
        ),
        (
            "[network]\nextra_hosts = { localhost = '1.1.1.1' }",
            "network.extra_hosts.localhost",
            "is reserved",
        ),
        (
            "[network]\nextra_hosts = { db = 'gateway' }",
            "network.extra_hosts.db",
            '(an IPv4 or IPv6 address, or "host-gateway")',
        ),
        ("[network]\nmode = 'none'\ndns = ['1.1.1.1']", "network.dns", "is not allowed"),
        (
            "[network]\nmode = 'bridged'",
            "network.mode",
            '"bridged" must be one of "bridge", "host", "none" or "share"',
        ),
        (
            "[service]\nrestart = 'never'",
            "service.restart",
            'must be one of "on-failure", "no" or "always"',
        ),
        ("[service]\nuser = 1000", "service.user", "1000 is a number (must be a string)"),
        ("[service]\nrestart_delay = 1", "service.restart_delay", "(must be a string)"),
        ("[network]\nports = '80:80'", "network.ports", "is a string (must be an array)"),
        ("[network]\nip = 7", "network.ip", "(must be a string, an array or a table)"),
        ("[[network]]\n", "network", "is an array (must be a table)"),
        ("[environment]\nA = 1979-05-27", "environment.A", "is a date or time"),
        ("[environment]\nA = 0x" + "f" * 9000, "environment.A", "a very large number"),
        ("[environment]\nA" + ".a" * 14 + " = 1", "environment.A", "is a table"),
    ],
)
def test_wrong_part_is_named(tmp_path: Path, text: str, key: str, words: str) -> None:
    only = error(tmp_path, HEAD + text)
    assert only.key == key
    assert words in only.message


def test_contradictions_of_ports_come_all_at_once(tmp_path: Path) -> None:
    ports = [
        "80:80",
        "80:81",
        "53:53/udp",
        "[::]:53:54/udp",
        "8000-8010:8000-8010",
        "8005:8005",
        "9000:9000",
    ]
    found = errors(tmp_path, HEAD + f"[network]\nports = {ports}\n")
    assert set(found) == {"network.ports[1]", "network.ports[3]", "network.ports[5]"}


@pytest.mark.parametrize(
    "ip", ["['10.1.1.1', 'FD00::0002']", "{ niso-default = ['fd00::2', '10.1.1.1'] }"]
)
def test_one_static_address_of_each_family(tmp_path: Path, ip: str) -> None:
    spec = loaded(tmp_path, HEAD + f"[network]\nip = {ip}")
    assert spec.network.statics("niso-default") == ("10.1.1.1", "fd00::2")
    spec = loaded(tmp_path, HEAD + "[network]\nip = 'fd00::2'")
    assert (spec.network.statics("niso-default"), spec.network.statics("other")) == (
        ("fd00::2",),
        (),
    )


def test_number_where_text_belongs_is_shown_in_quotes(tmp_path: Path) -> None:
    assert error(tmp_path, HEAD + "[environment]\nPORT = 8080").hint == 'for example "8080"'


def test_what_is_none_of_the_choices_is_no_example_of_them(tmp_path: Path) -> None:
    assert error(tmp_path, HEAD + "[network]\nmode = false").hint is None
    assert error(tmp_path, HEAD + "[service]\nrestart = 3").hint is None


@pytest.mark.parametrize(
    ("table", "line", "example"),
    [
        ("service", "stop_timeout = 10", '"10s"'),
        ("service", "stop_timeout = 9999", '"10s"'),
        ("service", "restart_delay = true", '"10s"'),
        ("service", "user = 1000", '"1000"'),
        ("isolation.resources", "memory_max = 256", '"256M"'),
        ("isolation.resources", "memory_max = 1073741824", '"512M"'),
        ("isolation.resources", "cpu_max = 150", '"150%"'),
        ("healthcheck", "tcp = 80\ninterval = 3", '"3s"'),
        ("healthcheck", "http = 80", '"http://127.0.0.1:8080/health"'),
        ("volumes.data", 'mount = "/data"\ntmpfs = true\nsize = 64', '"64M"'),
        ("network", "ports = [8080]", '"8080"'),
        ("network", 'ports = "8080:80"', '["8080:80"]'),
        ("network", 'ports = "8080:x"', '["8080:8080"]'),
        ("network", "ip = 10", '"10.99.1.10"'),
        ("network", "ip = {niso-default = 10}", '"10.99.1.10"'),
        ("network", "network = 1", '"backend"'),
        ("network.policy", "allow_from = [80]", '"frontend:8080/tcp"'),
    ],
)
def test_example_of_a_hint_is_one_that_the_key_takes(
    tmp_path: Path, table: str, line: str, example: str
) -> None:
    assert error(tmp_path, HEAD + f"[{table}]\n{line}").hint == f"for example {example}"
    right = HEAD + f"[{table}]\n{line.rpartition('= ')[0]}= {example}"
    if line.startswith("ports = ["):
        right = HEAD + f"[{table}]\nports = [{example}]"
    elif line.startswith("allow_from"):
        right = HEAD + f"[{table}]\nallow_from = [{example}]"
    elif line.startswith("ip = {"):
        right = HEAD + f"[{table}]\nip = {{niso-default = {example}}}"
    loaded(tmp_path, right)


def test_missing_table_and_key_say_what_to_add(tmp_path: Path) -> None:
    found = errors(tmp_path, '[package]\nname = "api"')
    assert {key: found[key].hint for key in found} == {
        "package.version": "add version to [package]",
        "binary": "add [binary]",
    }


def test_table_header_forgotten_is_an_error_of_the_key(tmp_path: Path) -> None:
    only = error(tmp_path, 'network = "backend"\n' + HEAD)
    assert only.key == "network"
    assert "is a string (must be a table)" in only.message


# --- one declaration -------------------------------------------------------------------------------------------------

ENTRY = """
    Key("service.nice", int, 5, _number(-20, 19, "-20 to 19", "10"), "nice").described(
        "Scheduling priority."
    ),
    Key(
        "network.labels", dict[str, str], {}, _HOST_LABEL, names=_NETWORK_NAME, modes=("bridge",)
    ).described("Labels."),
"""
SCRIPT = """
import json, sys
from niso.base.errors import ErrorGroup
from niso.manifest import json_schema, load, stack
from niso.store import service_rows
from reference import toml_files
from reference.document import markdown

def loaded(text):
    with open(f"{sys.argv[1]}/manifest.toml", "w") as file:
        file.write(sys.argv[2] + text)
    try:
        spec = load.load(sys.argv[1]).spec
    except ErrorGroup as group:
        return [[e.key, e.value, e.right, e.hint, e.reason] for e in group.errors]
    kept = service_rows.service(service_rows.encode_service(spec) + " ")
    written = load.written(spec)
    return [spec.program.nice, kept == spec, written["service"], written["network"]]

print(json.dumps({
    "loaded": [loaded(text) for text in json.loads(sys.argv[3])],
    "schema": json_schema.manifest_schema()["$defs"],
    "stack": stack.load(sys.argv[1], None).members[0].loaded.spec.program.nice,
    "reference": str(list(toml_files.manifest_blocks())),
}))
"""


def test_key_is_one_entry_and_its_use(tmp_path: Path) -> None:
    """Two made-up keys, each added to `KEYS`; the use of one is a field of the ProgramSpec."""
    shutil.copytree(ROOT / "src/niso", tmp_path / "niso", ignore=shutil.ignore_patterns("*.pyc"))
    for file, before, entry in (
        ("manifest/keys.py", '    Key(\n        "network.mode"', ENTRY),
        ("plan/specs.py", "    folder: str | None = None", "    nice: int = 0\n"),
    ):
        text = (tmp_path / "niso" / file).read_text()
        assert text.count(before) == 1
        (tmp_path / "niso" / file).write_text(text.replace(before, entry + before))
    write(tmp_path, HEAD)
    (tmp_path / "stack.toml").write_text(
        '[stack]\nname = "shop"\n[[service]]\nname = "a"\npackage = "."\nservice = { nice = 7 }'
    )
    cases: list[tuple[str, list[Any]]] = [
        (
            "[service]\nnice = 19\n[network]\nlabels = { tier = 'front' }",
            [19, True, {"nice": 19}, {"labels": {"tier": "front"}}],
        ),
        (
            "[service]\nnice = 20",
            [["service.nice", "20", "-20 to 19", "for example 10", "is out of range"]],
        ),
        (
            "[service]\nnice = '5'",
            [["service.nice", '"5"', "must be a number", None, "is a string"]],
        ),
        (
            "[service]\nnic = 5",
            [["service.nic", "5", "did you mean service.nice?", None, "unknown key"]],
        ),
        (
            "[network]\nlabels = { tier = 'Front' }",
            [
                [
                    *("network.labels.tier", '"Front"', "a-z, 0-9, -", 'for example "web"'),
                    'is not a valid name: "F" is not allowed',
                ]
            ],
        ),
        (
            "[network]\nmode = 'none'\nlabels = {}",
            [
                [
                    *("network.labels", "{}", "remove it"),
                    'remove network.labels, or set mode = "bridge"',
                    'is not allowed: with mode = "none" the service has no network',
                ]
            ],
        ),
        ("", [5, True, {}, {}]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, HEAD, json.dumps([text for text, _ in cases])],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}/tools"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["loaded"] == [expected for _, expected in cases]
    service, network = (found["schema"][name] for name in ("Service", "Network"))
    assert service["properties"]["nice"] == {
        **{"type": "integer", "default": 5, "description": "Scheduling priority."},
        **{"minimum": -20, "maximum": 19},
    }
    assert set(network["properties"]["labels"]) == {
        *("type", "additionalProperties", "description", "propertyNames"),
    }
    assert "labels" in network["allOf"][0]["then"]["properties"]
    assert found["stack"] == 7
    assert "nice: integer from -20 to 19" in found["reference"]
    assert "Scheduling priority. Default: 5." in found["reference"]
    assert "labels: table of strings" in found["reference"]
