"""Test services that are written in a stack.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from fake_world import World
from jsonschema import Draft202012Validator
from refusals import refuses

from niso.api import without_host
from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.change import repair, stacks
from niso.look import stack_members
from niso.manifest import stack
from niso.manifest.json_schema import stack_schema

STACK = """
[stack]
name = "shop"

[networks]
backend = { subnet = "10.99.7.0/24" }

[services.db.package]
folder = "./pkg"
[services.db.binary]
entrypoint = "run"
[services.db.healthcheck]
tcp = 5432
[services.db.network]
network = "backend"

[services.migrate]
depends_on = { db = "healthy" }
binary = { entrypoint = "sh", args = ["-c", "true"] }
service = { kind = "job" }

[[service]]
name = "api"
package = "./api"
depends_on = { migrate = "completed", db = "started" }
ports = ["8080:80"]
"""


@pytest.fixture
def world(world: World) -> World:
    world.package("api")
    world.package("pkg")
    world.processes.dies["migrate"] = 0
    return world


def write(world: World, text: str) -> str:
    path = world.folder / "stack.toml"
    path.write_text(text)
    return str(path)


def is_valid(text: str) -> bool:
    return Draft202012Validator(stack_schema()).is_valid(tomllib.loads(text))


def errors(world: World, text: str) -> list[str]:
    with pytest.raises(ErrorGroup) as caught:
        stack_members.load(write(world, text))
    found = [error.message for error in caught.value.errors]
    assert all(error.startswith(str(world.folder / "stack.toml")) for error in found), found
    return [error.partition("stack.toml: ")[2] for error in found]


def test_inline_services_run_beside_others(world: World) -> None:
    path = write(world, STACK)
    assert is_valid(STACK)
    assert without_host.validate(path)[0].services == ("db", "migrate", "api")
    up = world.up(path)
    assert [outcome.service for outcome in up.services] == ["db", "migrate", "api"]
    world.assert_whole()
    rows = {name: world.store.service(name) for name in ("db", "migrate", "api")}
    assert {name: row.folder for name, row in rows.items() if row} == {
        "db": str(world.folder / "pkg"),
        "migrate": "",
        "api": str(world.folder / "api"),
    }
    assert rows["db"] is not None
    assert (rows["db"].networks, rows["db"].activation_command) == (
        ("backend",),
        f"niso stack up {path}",
    )
    copy = Path(rows["db"].package)
    assert (copy / "run").exists()
    for file in (*copy.iterdir(), copy):
        file.unlink() if file.is_file() else file.rmdir()
    assert repair.repair_all(world.machine) == 1
    assert (copy / "run").exists()
    assert not any(outcome.changed for outcome in world.up(path).services if not outcome.completed)
    assert list(stack.outline(path).after.items()) == [
        ("api", ("migrate", "db")),
        ("db", ()),
        ("migrate", ("db",)),
    ]
    stacks.down(world.machine, path, False, False)
    assert world.store.active_services() == []


HEAD = '[stack]\nname = "shop"\n[services.api]\n'
RUN = 'binary = { entrypoint = "sh" }\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + RUN, []),
        (HEAD, ["missing table [services.api.binary]"]),
        (HEAD + "binary = {}\n", ["missing key services.api.binary.entrypoint (a string)"]),
        (
            HEAD + RUN + 'ports = ["80:80"]\n',
            ['services.api.ports = ["80:80"]: unknown key'],
        ),
        (
            HEAD + RUN + 'network = { ports = ["80:80", "80:81"], share = "db" }\n',
            [
                'services.api.network.ports[1]: "80:81" conflicts with'
                ' services.api.network.ports[0], "80:80": same host port',
                'services.api.network.share: "db" is not allowed: mode is "bridge"',
            ],
        ),
        (
            HEAD + RUN + 'package = { name = "web", rootfs = "." }\n',
            [
                'services.api.package.name: "web" is not the name of its table (leave it out)',
                'services.api.package.rootfs: "." is the package\'s own folder',
            ],
        ),
        (
            HEAD + RUN + 'package = { folder = "./nowhere" }\ndepends_on = { db = "well" }\n',
            [
                'services.api.depends_on.db: "well" must be one of',
                'services.api.package.folder: "./nowhere" does not exist',
            ],
        ),
        (
            HEAD + RUN + 'depends_on = ["dp"]\n[services.db]\n' + RUN,
            ['services.api.depends_on[0]: "dp" is not a service of the stack'],
        ),
        (
            HEAD + RUN + '[[service]]\nname = "api"\npackage = "./api"\n',
            ['services.api: "api" is already the name of service[0]'],
        ),
        (HEAD.replace("api", "Api") + RUN, ['services.Api: "Api" is not a valid name']),
        ('[stack]\nname = "shop"\n', ["missing table [[service]]"]),
        ('[stack]\nname = "shop"\n[services]\n', ["missing table [[service]]"]),
    ],
)
def test_errors_name_the_key_in_the_stack(world: World, text: str, expected: list[str]) -> None:
    if not expected:
        stack_members.load(write(world, text))
        return
    found = errors(world, text)
    assert [error[: len(start)] for error, start in zip(found, expected, strict=True)] == expected
    # what a schema can know
    assert is_valid(text) == any(
        word in found[0] for word in ("already", "exist", "of the stack", "its table")
    )


def test_errors_of_the_machine_name_the_key_too(world: World) -> None:
    world.activate(world.package("web", network={"ports": ["80:80"]}))
    text = HEAD + RUN + 'network = { ports = ["80:80"] }\n'
    with refuses(
        Error,
        "stack.toml",
        "services.api.network.ports",
        key="services.api.network.ports[0]",
        hint="choose another host port, or release it from web",
        file="stack.toml",
    ):
        world.up(write(world, text))
    with pytest.raises(Exception, match=r"stack\.toml: services\.api\.binary\.entrypoint"):
        world.up(write(world, HEAD + RUN.replace("sh", "nowhere")))
    world.assert_whole()


def test_refusals_of_a_service_address_name_file_key_and_value(world: World) -> None:
    web = world.package("web")
    text = f"""[stack]
name = "shop"
[[service]]
name = "web"
package = "{web}"
mode = "host"
[service.service]
replicas = 3
[service.volumes]
data = {{ mount = "/data" }}
[services.api]
{RUN}service = {{ replicas = 20 }}
deploy = {{ monitor = "3s", on_failure = "no" }}
[services.db]
{RUN}deploy = {{ monitor = "3s" }}
[services.job]
{RUN}service = {{ update = "start-first", kind = "job" }}
network = {{ ports = ["100-120:100-120"] }}
"""
    expected = [
        'service[0].mode: "host" is not possible with service.replicas',
        "service[0]: with",
        "service[0].volumes.data: is writable",
        "services.api.service.replicas: 20 is out of range (1 to 16)",
        'services.api.deploy.on_failure: "no" must be one of',
        "missing table [services.api.healthcheck]",
        "services.db.deploy: is not allowed",
        'services.job.service.update: "start-first" is not allowed for a job',
        'services.job.network.ports[0]: "100-120:100-120" has 21 ports',
    ]
    found = errors(world, text)
    for start in expected:
        assert any(error.startswith(start) for error in found), (start, found)
    assert [e for e in found if not e.startswith(tuple(expected))] == []
    # a sharer in the same file
    text = HEAD + RUN + "service = { replicas = 2 }\nhealthcheck = { tcp = 80 }\n"
    text += f'[services.side]\n{RUN}network = {{ mode = "share", share = "api" }}\n'
    with refuses(InvalidInput, "'api' has instances", key="services.side.network.share"):
        world.up(write(world, text))
