"""Test the names of services of stacks: each stack has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_world import World
from names_seen import address, allowed, on, seen
from refusals import refuses

from niso.base import paths
from niso.base.errors import Conflict, ErrorGroup
from niso.change import stacks
from niso.change.deactivate import remove
from niso.look import stack_members
from niso.look.learn import WrittenNames
from niso.manifest import load
from niso.manifest import stack as manifest_stack


def test_policies_are_written_with_the_names_of_the_stacks_own_file(world: World) -> None:
    """Also for a service on another network; so a copy of the file means its own services."""
    shop, blog = (project(world, name, name, "prefix = true", api="") for name in ("shop", "blog"))
    for folder in (shop, blog):
        world.up(folder)
    assert world.store.networks_of("shop-api") == ("shop-default",)
    names_ = WrittenNames(world.store, "shop-db")
    assert [names_.service(other) for other in ("shop-api", "blog-api")] == ["api", "blog-api"]
    assert names_.network("shop-backend") == "backend"
    assert names_.network("blog-backend") == "blog-backend"
    assert WrittenNames(world.store, "shop-api").service("shop-db") == "db"
    world.activate(world.package("api", network=on("other")))  # the file means its own
    assert names_.service("api") is None
    file = Path(shop, "stack.toml")
    text = file.read_text()
    file.write_text(text.replace('name = "api"', 'name = "web"'))  # it left the file
    assert WrittenNames(world.store, "shop-db").service("shop-api") is None
    file.write_text(f"{text}]")
    assert WrittenNames(world.store, "shop-db").service("shop-api") == "api"


def test_networks_in_policies_and_addresses_are_the_stacks_own(world: World) -> None:
    keys = """
    networks = ["backend", "outside"]
    ip = { backend = "10.99.7.9" }
    policy = { allow_from = ["network:backend", "network:outside", "db", "other"] }
    """
    folder = project(world, "shop", "shop", "prefix = true", api=keys)
    shop = stack_members.named(world.store, stack_members.load(folder))
    (spec,) = [one.loaded.spec for one in shop.members if one.name == "shop-api"]
    assert spec.network.networks == (
        "shop-backend",
        "outside",
    )  # one that is not of the file is as it is
    assert dict(spec.network.addresses) == {"shop-backend": "10.99.7.9"}
    peers = [entry.peer.name for entry in spec.network.policy.allow_from or ()]
    assert peers == ["shop-backend", "outside", "shop-db", "other"]


def test_package_copy_of_a_prefixed_stack_has_the_names_of_its_service(world: World) -> None:
    """Activated from the copy after a loss of the store, a service must not allow a namesake of another stack."""
    keys = """
    networks = ["backend", "outside"]
    ip = { backend = "10.99.7.9" }
    policy.allow_from = ["network:backend", "db:80"]
    policy.egress = { allow = ["db/tcp", "network:backend:80"], deny = ["metadata", "10.0.0.1"] }
    """
    head = "prefix = true\n[networks]\nbackend = {subnet = '10.99.7.0/24'}\n"
    folder = project(world, "shop", "shop", head, api=keys)
    file = Path(folder, "stack.toml")
    file.write_text(file.read_text().replace("[networks]\nbackend = {}\n", "", 1))
    world.up(folder)
    world.assert_whole()
    copy = load.load(f"{world.store.require_active('shop-api').package}/manifest.toml").spec
    assert [entry.text for entry in copy.network.policy.entries()[:3]] == [
        "network:shop-backend",
        "shop-db:80",
        "shop-db/tcp",
    ]
    assert dict(copy.network.addresses) == {"shop-backend": "10.99.7.9"}
    assert copy.network.hostname == "api"


def project(world: World, below: str, name: str, head: str = "", **services: str) -> str:
    """Write a stack of db and api like everybody's; return its folder."""
    text = f'[stack]\nname = "{name}"\n{head}\n[networks]\nbackend = {{}}\n'
    for service in ("db", "api"):
        world.package(service, below)
        text += f'[[service]]\nname = "{service}"\npackage = "./{service}"\n'
        text += services.get(service, 'networks = ["backend"]') + "\n"
    (world.folder / below / "stack.toml").write_text(text)
    return str(world.folder / below)


ALLOW_API = 'networks = ["backend"]\npolicy = { allow_from = ["api:80"] }'


def test_two_projects_of_one_form_are_side_by_side(world: World) -> None:
    shop, blog = (project(world, name, name, db=ALLOW_API) for name in ("shop", "blog"))
    done = world.up(shop)
    assert [one.service for one in done.services] == ["db", "api"]
    done = world.up(blog)
    assert [one.service for one in done.services] == ["blog-db", "blog-api"]
    assert done.networks == ("blog-backend",)
    assert seen(world, "backend")["db"] == address(world, "db")
    assert seen(world, "blog-backend")["db"] == address(world, "blog-db")
    assert set(seen(world, "blog-backend")) == {"db", "api", "blog-db", "blog-api"}
    assert allowed(world, "blog-api", "blog-db", 80) and not allowed(world, "api", "blog-db", 80)
    assert allowed(world, "api", "db", 80) and not allowed(world, "blog-api", "db", 80)
    world.assert_whole()
    for folder in (shop, blog):  # each keeps its names, whatever comes after it
        assert not any(one.changed for one in world.up(folder).services)
    outline = stack_members.outlined(world.store, blog)
    assert set(outline.after) == {"blog-db", "blog-api"}
    down = stacks.down(world.machine, blog, False, False)
    assert {name for name, _ in down.services} == {"blog-db", "blog-api"}
    assert world.store.active_services() == ["api", "db"]
    remove(world.machine, ["api", "db"])
    assert [one.service for one in world.up(blog).services] == ["blog-db", "blog-api"]
    assert [one.service for one in world.up(shop).services] == ["db", "api"]
    world.assert_whole()


def test_prefix_stays_in_every_order_that_leaves_a_trace(world: World) -> None:
    shop, blog = (project(world, name, name) for name in ("shop", "blog"))
    world.up(shop)
    world.up(blog)
    # all services of the file are others: they do not move to the network of shop
    for each in ("one", "two"):
        world.package(each, "blog")
    file = Path(blog, "stack.toml")
    text = file.read_text()
    file.write_text(text.replace('"db"', '"one"').replace('"api"', '"two"'))
    assert [one.service for one in world.up(blog).services] == ["blog-one", "blog-two"]
    assert world.store.networks_of("blog-two") == ("blog-backend",)
    # removed, and the first to come back: its volumes are still there
    Path(paths.volume_dir("blog-db"), "data").mkdir(parents=True)
    Path(paths.volume_dir("db"), "data").mkdir(parents=True)
    left = ["blog-db", "blog-api"]
    remove(world.machine, ["api", "db", *left, *world.store.stack_members("blog")])
    file.write_text(text)
    assert [one.service for one in world.up(blog).services] == ["blog-db", "blog-api"]
    assert [one.service for one in world.up(shop).services] == ["db", "api"]
    world.assert_whole()
    # what a service of its own has is no trace of the stack
    remove(world.machine, ["api", "db", *world.store.stack_members("blog")])
    world.activate(world.package("blog-db", network=on("other")))
    assert [one.service for one in world.up(blog).services] == ["db", "api"]


def test_name_beside_another_hostname_is_found_in_the_second_stack_too(world: World) -> None:
    """But not where others are, since two stacks of the form could then not be there."""
    shared = 'networks = ["backend", "proxy"]\nhostname = "{}-front"'
    for name in ("shop", "blog"):
        keys = {
            "db": 'networks = ["backend"]\nhostname = "primary"\naliases = ["sql"]',
            "api": shared.format(name),
        }
        world.up(project(world, name, name, **keys))
    assert set(seen(world, "backend")) == {"primary", "db", "sql", "shop-front", "api"}
    assert set(seen(world, "blog-backend")) == {
        *("primary", "db", "blog-db", "sql"),
        *("blog-front", "blog-api"),
    }
    world.assert_whole()


def test_name_of_another_service_of_the_stack_is_no_alias(world: World) -> None:
    keys = {"db": "hostname = 'primary'", "api": "hostname = 'db'"}
    world.up(project(world, "shop", "shop", "prefix = true", **keys))
    assert seen(world, "shop-default")["db"] == address(world, "shop-api")
    world.assert_whole()


def test_key_decides_and_a_stack_without_it_keeps_its_names(world: World) -> None:
    shop = project(world, "shop", "shop", "prefix = true", db="", api="")
    done = world.up(shop)
    assert [one.service for one in done.services] == ["shop-db", "shop-api"]
    assert world.store.networks_of("shop-db") == ("shop-default",)
    assert seen(world, "shop-default")["db"] == address(world, "shop-db")
    project(world, "shop", "shop", db="", api="")
    assert not any(one.changed for one in world.up(shop).services)
    blog = project(world, "blog", "blog", "prefix = false")
    assert [one.service for one in world.up(blog).services] == ["db", "api"]
    project(world, "blog", "blog", "prefix = true")
    done = world.up(blog)
    assert [one.service for one in done.services] == ["blog-db", "blog-api"]
    assert sorted(done.left) == ["api", "db"]
    world.assert_whole()


@pytest.mark.parametrize(
    ("names", "members", "taken", "prefix"),
    [
        (["db"], [], False, False),
        (["db"], [], True, True),
        (["db", "api"], ["db"], True, False),
        (["db", "api"], ["shop-api"], False, True),
        (["db"], ["gone"], True, True),
        (["db"], ["shop-gone"], False, True),  # all services of its file are new
        (["db"], ["shop-gone", "gone"], False, False),
        (["db", "shop-db"], ["shop-db"], False, False),  # its own name, without the prefix
        (["db", "shop-db"], ["shop-db", "shop-shop-db"], False, True),
    ],
)
def test_known_stack_keeps_the_names_that_it_has(
    names: list[str], members: list[str], taken: bool, prefix: bool
) -> None:
    assert manifest_stack.applies(None, "shop", names, members, taken) is prefix
    assert manifest_stack.applies(True, "shop", names, members, taken) is True
    assert manifest_stack.applies(False, "shop", names, members, taken) is False


def test_stack_may_not_take_names_of_another_one(world: World) -> None:
    world.up(project(world, "shop", "shop"))
    before = world.picture()
    with pytest.raises(ErrorGroup, match="service 'db' belongs to stack 'shop'"):
        world.up(project(world, "blog", "blog", "prefix = false"))
    long = project(world, "long", "l" * 60, "prefix = true")
    with pytest.raises(ErrorGroup) as caught:
        world.up(long)
    assert [error.key for error in caught.value.errors] == ["service[1].name", "networks.backend"]
    assert world.picture() == before


def test_policy_of_a_stack_means_its_own_service_not_a_namesake(world: World) -> None:
    """A service of the stack that shares no network with the policy's is still the one that is meant."""
    world.activate(world.package("api", network=on("other")))
    blog = project(
        world,
        "blog",
        "blog",
        "prefix = true",
        db='networks = ["backend"]\npolicy = { allow_from = ["api"] }',
        api='networks = ["frontend"]',
    )
    world.up(blog)
    assert allowed(world, "blog-api", "blog-db", 80) and not allowed(world, "api", "blog-db", 80)
    world.assert_whole()


def test_networks_of_two_stacks_do_not_become_one(world: World) -> None:
    """``x-y`` of the stack shop is called as ``y`` of the stack shop-x."""
    first = world.folder / "first"
    first.mkdir()
    for stack, network, below in (("shop", "x-y", "a"), ("shop-x", "y", "b")):
        world.package("db", below)
        (world.folder / below / "stack.toml").write_text(
            f'[stack]\nname = "{stack}"\nprefix = true\n[networks]\n{network} = {{}}\n'
            f'[[service]]\nname = "db"\npackage = "./db"\nnetworks = ["{network}"]\n'
        )
    world.up(str(world.folder / "a"))
    before = world.picture()
    with refuses(
        Conflict,
        "shop-x-y",
        "shop",
        key="networks.y",
        hint="choose another name",
        file="stack.toml",
    ):
        world.up(str(world.folder / "b"))
    assert world.picture() == before
