"""Test stack.toml: content, overrides of manifests, and every error with file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from niso.base.errors import Error, ErrorGroup, InvalidInput, NotFound
from niso.look import stack_members
from niso.manifest import load as manifest_load
from niso.manifest import stack as manifest_stack
from niso.plan.records import PortMapping
from niso.plan.specs import ServiceSpec
from niso.plan.subnets import NetworkRequest

HEAD = '[stack]\nname = "shop"\n'
MANIFEST = """\
[package]
name = "{name}"
version = "1"
[binary]
entrypoint = "/usr/bin/sleep"
args = ["1"]
"""


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """Writes the stack's file and packages; gives the folder."""

    def write(text: str, head: str = HEAD, **packages: str) -> str:
        for name, more in {"db": "", "api": "", **packages}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "manifest.toml").write_text(MANIFEST.format(name=name) + more)
        (tmp_path / "stack.toml").write_text(head + text)
        return str(tmp_path)

    return write


def errors_of(folder: str) -> dict[str, str]:
    """Key -> message of all that is wrong."""
    with pytest.raises(Error) as caught:
        stack_members.load(folder)
    errors = caught.value.errors if isinstance(caught.value, ErrorGroup) else [caught.value]
    assert all(error.message.startswith(folder) for error in errors), errors
    return {str(error.key): error.message for error in errors}


def service(name: str, text: str = "", package: str = "") -> str:
    return f'[[service]]\nname = "{name}"\npackage = "./{package or name}"\n{text}\n'


def spec(folder: str, name: str) -> ServiceSpec:
    return next(
        member for member in stack_members.load(folder).members if member.name == name
    ).loaded.spec


def test_services_come_after_those_that_they_depend_on(shop: Any) -> None:
    text = service("a", 'depends_on = ["b", "c"]', "api") + service(
        "b", 'depends_on = { c = "started" }', "api"
    )
    stack = stack_members.load(shop(text + service("c", "", "db") + service("d", "", "db")))
    order = [member.name for member in stack.members]
    assert sorted(order) == ["a", "b", "c", "d"] and order.index("c") < order.index(
        "b"
    ) < order.index("a")
    assert {member.name: member.after for member in stack.members} == {
        "a": {"b": "started", "c": "started"},
        "b": {"c": "started"},
        "c": {},
        "d": {},
    }


def test_keys_of_the_stack_lie_over_those_of_the_manifest(shop: Any) -> None:
    folder = shop(
        service(
            "web",
            'ports = ["8081:80"]\nnetworks = ["front", "back"]\naliases = ["www"]\npolicy = { deny_from = ["db"] }\n'
            '[service.environment]\nLEVEL = "debug"\nNEW = "x"\n[service.binary]\nargs = ["2"]\n'
            '[service.service]\nrestart = "no"\n[service.healthcheck]\nhttp = "http://127.0.0.1:80/"\n'
            '[service.volumes]\ndata = { mount = "/data", tmpfs = true }\n',
            "api",
        ),
        api='[environment]\nLEVEL = "info"\nKEPT = "y"\n[service]\nstop_timeout = "1s"\n[healthcheck]\ntcp = 80\nretries = 7\n'
        '[volumes]\ndata = { mount = "/d", host = "/srv", mode = "ro" }\nmore = { mount = "/more" }\n'
        '[network]\nnetwork = "back"\nports = ["80:80", "81:81"]\nhostname = "shop"\n'
        '[network.policy]\nallow_from = ["web"]\n',
    )
    found = spec(folder, "web")
    assert found.name == "web"
    assert found.program.environment == {"LEVEL": "debug", "KEPT": "y", "NEW": "x"}
    assert (found.program.entrypoint, found.program.args) == ("/usr/bin/sleep", ("2",))
    assert (found.program.restart, found.program.stop_timeout_s) == ("no", 1.0)
    assert found.network.networks == ("front", "back")
    assert (
        [port for port, _ in found.network.ports],
        found.network.hostname,
        found.network.aliases,
    ) == (
        [PortMapping("", 8081, 80, "tcp")],
        "shop",
        ("www",),
    )
    allow, deny = found.network.policy.allow_from or (), found.network.policy.deny_from
    assert [each.text for each in allow] == ["web"] and [each.text for each in deny] == ["db"]
    assert found.program.healthcheck is not None
    assert (found.program.healthcheck.target, found.program.healthcheck.retries) == (
        "http://127.0.0.1:80/",
        7,
    )
    volumes = {volume.name: volume for volume in found.program.volumes}
    assert volumes["data"].host is None and volumes["data"].tmpfs
    assert volumes["more"].mount == "/more"


def test_one_package_can_be_several_services(shop: Any) -> None:
    stack = stack_members.load(shop(service("one", "", "api") + service("two", "", "api")))
    assert [member.name for member in stack.members] == ["one", "two"]
    assert len({member.loaded.path for member in stack.members}) == 1


def test_networks_are_as_net_create_knows_them(shop: Any) -> None:
    text = '[networks]\na = { subnet = "10.99.1.0/24", gateway = "10.99.1.9", mtu = 1400 }\nb = { ipv6 = true, internal = true }\n'
    text += 'c = { subnet = ["10.99.2.0/24", "fd00:2::/64"], gateway = ["fd00:2::9"] }\nd = {}\n'
    networks = stack_members.load(shop(text + service("db"))).networks
    assert networks["a"] == NetworkRequest(
        "a", ("10.99.1.0/24",), gateways=("10.99.1.9",), mtu=1400
    )
    assert (networks["a"].subnets, networks["a"].gateways) == (("10.99.1.0/24",), ("10.99.1.9",))
    assert (
        networks["b"] == NetworkRequest("b", ipv6=True, internal=True)
        and networks["b"].subnets == ()
    )
    assert networks["c"].subnets == ("10.99.2.0/24", "fd00:2::/64") and networks["c"].gateways == (
        "fd00:2::9",
    )


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            service("db", 'depends_on = ["dbb"]') + service("x", "", "db"),
            "service[0].depends_on[0]",
            '"dbb" is not a service of the stack',
        ),
        (
            service("db", 'depends_on = { ap = "started" }') + service("api"),
            "service[0].depends_on.ap",
            "api",
        ),
        (
            service("db", 'depends_on = { api = "ready" }') + service("api"),
            "service[0].depends_on.api",
            '"healthy"',
        ),
        (
            service("db", 'depends_on = { api = "healthy" }') + service("api"),
            "service[0].depends_on.api",
            "no healthcheck",
        ),
        (service("db", 'depends_on = ["db"]'), "service[0].depends_on", "db -> db"),
        (
            service("db") + service("db", "", "api"),
            "service[1].name",
            "is already the name of service[0]",
        ),
        (service("Db", "", "db"), "service[0].name", '"D"'),
        (service("db", "", "nowhere"), "service[0].package", "no such file"),
        (service("db", 'prots = ["80:80"]'), "service[0].prots", "service[0].ports"),
        (service("db", 'ports = ["80:x"]'), "service[0].ports[0]", '"x" is not a valid port'),
        (service("db", 'mode = "share"'), "service[0]", "network.share"),
        (
            service("db", 'ip = "10.99.1.300"'),
            "service[0].ip",
            "is not a valid IPv4 or IPv6 address",
        ),
        (service("db", "[service.environment]\nA = 1"), "service[0].environment.A", "number"),
        (
            service("db", '[service.environment]\n"A B" = "x"'),
            'service[0].environment."A B"',
            "variable",
        ),
        (
            service("db", '[service.binary]\nentry = "x"'),
            "service[0].binary.entry",
            "service[0].binary.entrypoint",
        ),
        (
            service("db", "policy = { allow_form = [] }"),
            "service[0].policy.allow_form",
            "service[0].policy.allow_from",
        ),
        (
            service("db", 'policy = { allow_from = ["x y"] }'),
            "service[0].policy.allow_from[0]",
            "x y",
        ),
        (service("db", "[service.network]\nports = []"), "service[0].network", "a table"),
        ("[networks]\nA = {}\n" + service("db"), "networks.A", '"A"'),
        (
            '[networks]\nx = { subnet = "10.0.0.1/24" }\n' + service("db"),
            "networks.x.subnet",
            "host bits",
        ),
        (
            '[networks]\nx = { subnet = ["10.1.0.0/24", "10.2.0.0/24"] }\n' + service("db"),
            "networks.x.subnet",
            "one IPv4",
        ),
        ("[networks]\nx = { mtu = 12 }\n" + service("db"), "networks.x.mtu", "576"),
        ("[networks]\nx = { vlan = 12 }\n" + service("db"), "networks.x.vlan", "= 12: unknown key"),
        ("", "service", "missing table [[service]]"),
        ("service = []\n", "service", "empty"),
        ("[[services]]\n", "services", "service"),
    ],
)
def test_wrong_value_is_told_with_file_key_and_what_is_right(
    shop: Any, text: str, key: str, words: str
) -> None:
    head = f"{text}{HEAD}" if text.startswith("service =") else HEAD + text
    found = errors_of(shop("", head))
    assert key in found and words in found[key], found


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[service]\nname = "db"\n', "[[service]] with name and package, or [services.NAME]"),
        ('[[services]]\nname = "db"\n', "[[service]] with name and package, or [services.NAME]"),
        (service("db", "[service.network]\nports = []"), "keys of [network] into [[service]]"),
        (service("db", "allow_from = ['x']"), "move it to service[0].policy.allow_from"),
        (service("db", "restart = 'no'"), "move it to service[0].service.restart"),
        ("[services.db]\nimage = 'x'\n", "remove services.db.image"),
        ("[services.db]\nports = []\n", "move it to services.db.network.ports"),
        ("[services.db.service]\nenvironment = {}\n", "move it to [services.db.environment]"),
    ],
)
def test_hint_says_where_a_key_belongs(shop: Any, text: str, hint: str) -> None:
    with pytest.raises(ErrorGroup) as caught:
        stack_members.load(shop("", HEAD + text))
    assert hint in (caught.value.errors[0].hint or "")


def test_file_of_another_form_in_the_folder_is_named(tmp_path: Path) -> None:
    for load, name, command in (
        (
            stack_members.load,
            "docker-compose.yml",
            "niso import {0}/docker-compose.yml --output {0}",
        ),
        (manifest_load.load, "stack.toml", "niso stack up {0}"),
        (stack_members.load, "manifest.toml", "niso activate {0}"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("services:\n  a: {}\n")
        with pytest.raises(NotFound) as caught:
            load(str(folder))
        assert caught.value.hint == f"there is a {name}: {command.format(folder)}"
    with pytest.raises(NotFound) as wrong:
        stack_members.load(str(tmp_path / "docker-compose.yml" / "docker-compose.yml"))
    assert "niso import" in (wrong.value.hint or "")


def test_unknown_key_suggests_the_nearest_once(shop: Any) -> None:
    folder = shop(service("db", 'port = ["80:80"]'))
    with pytest.raises(Error) as caught:
        stack_members.load(folder)
    assert caught.value.message.endswith("unknown key (did you mean service[0].ports?)")
    assert caught.value.hint is None


def test_all_errors_come_at_once(shop: Any) -> None:
    text = "[networks]\nx = { mtu = 1 }\n" + service(
        "db", 'depends_on = ["y"]\nports = ["x"]\nfoo = 1'
    )
    found = errors_of(
        shop(
            text + service("b", 'ports = ["y"]', "api") + service("c", "", "nowhere"),
            '[stack]\nname = "S"\n',
        )
    )
    wanted = {
        "stack.name",
        "networks.x.mtu",
        "service[0].depends_on[0]",
        "service[0].ports[0]",
        "service[0].foo",
    }
    assert wanted | {"service[1].ports[0]", "service[2].package"} <= set(found)


def test_errors_of_a_manifest_by_itself_name_the_manifest(shop: Any) -> None:
    folder = shop(service("db") + service("api"), db='[network]\nports = ["0:1"]\n')
    found = errors_of(folder)
    assert list(found) == ["network.ports[0]"]
    assert found["network.ports[0]"].startswith(f"{folder}/db/manifest.toml: ")


def test_manifest_that_does_not_go_with_the_stack_names_both(shop: Any) -> None:
    folder = shop(service("db", 'networks = ["a", "b"]'), db='[network]\nip = "10.99.0.9"\n')
    found = errors_of(folder)
    assert found["service[0]"].startswith(
        f"{folder}/stack.toml: service[0]: with {folder}/db/manifest.toml: network.ip"
    )


def test_circle_is_named_in_its_order(shop: Any) -> None:
    text = "".join(
        service(a, f'depends_on = ["{b}"]', "api")
        for a, b in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"))
    )
    (words,) = errors_of(shop(text)).values()
    assert any(
        f"{way} (remove" in words
        for way in ("a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c")
    ), words


def test_a_thousand_services_in_a_row_are_put_in_order(shop: Any) -> None:
    after = {f"s{n}": [f"s{n + 1}"] for n in range(3000)} | {"s3000": []}
    assert manifest_stack.ordered(after)[0] == "s3000"


def test_outline_needs_the_name_alone(shop: Any) -> None:
    text = service("db", "foo = 1", "nowhere") + service("api", 'depends_on = { db = "healthy" }')
    outline = manifest_stack.outline(shop(text + "[networks]\nx = 3\n"))
    assert (outline.name, outline.after) == ("shop", {"db": (), "api": ("db",)})
    for head, key in (
        ("", "stack"),
        ("[stack]\n", "stack.name"),
        ("[stack]\nname = 3\n", "stack.name"),
    ):
        with refuses(Error, key, file="stack.toml"):
            manifest_stack.outline(shop(text, head))
    with refuses(
        InvalidInput, "line 1", hint="see https://toml.io for the syntax", file="stack.toml"
    ):
        manifest_stack.outline(shop("", "[stack"))
    with refuses(
        NotFound,
        "stack.toml",
        hint="pass the path of a stack.toml or of its folder",
        file="stack.toml",
    ):
        manifest_stack.outline("/nowhere")


@pytest.mark.parametrize("path", ["", "stack.toml"])
def test_argument_is_the_folder_or_the_file(shop: Any, path: str) -> None:
    folder = shop(service("db"))
    assert stack_members.load(f"{folder}/{path}").path == f"{folder}/stack.toml"
