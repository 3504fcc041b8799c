"""Networks of systemd's units and drop-ins of firewalls, on a kernel and units in memory."""

from __future__ import annotations

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.base.report import WarningEvent
from niso.change import boot, unit_network
from niso.change.attach import AttachmentNetwork, Request, current
from niso.runtime import units as runtime_units

WORDS = ("net", "attach", "web", "--new")
NETWORK = "/etc/systemd/system/niso-net@web.service"
DROP_IN = runtime_units.drop_in("web.service")


@pytest.fixture
def world(world: World) -> World:
    world.processes.units.is_init = True
    world.processes.units.others = {"web.service": True, "api.service": False}
    world.make("backend", "10.99.1.0/24")
    return world


def attach(
    world: World,
    name: str = "web",
    unit: str = "web.service",
    said: list[object] | None = None,
    **more: object,
) -> bool:
    request = Request(name, "", (AttachmentNetwork("backend"),), owner="systemd", id=unit, **more)  # type: ignore[arg-type]
    report = (lambda event: None) if said is None else said.append
    return unit_network.attach(world.machine._replace(report=report), request, unit, WORDS).changed


@pytest.mark.parametrize(
    "what",
    [f"write {NETWORK}", "reload-units", "start niso-net@web.service", f"write {DROP_IN}"],
)
def test_refusal_of_systemd_leaves_what_was(world: World, what: str) -> None:
    units, once = world.processes.units, [True]
    world.processes.fail = lambda done: done == what and bool(once) and once.pop()
    with pytest.raises(Error):
        attach(world)
    assert units.files == units.known == {} and current(world.store, "web") is None
    assert attach(world) and not attach(world)
    before, files = current(world.store, "web"), dict(units.files)
    once.append(True)
    if not what.startswith("start"):
        units.files[DROP_IN] += "# by hand\n"
        files = dict(units.files)
    if what != f"write {NETWORK}":
        with pytest.raises(Error):
            attach(world, aliases=("www",))
        assert units.files == files and current(world.store, "web") == before
    world.assert_whole()


def test_one_network_for_one_unit_and_files_of_others_stay(world: World) -> None:
    units = world.processes.units
    said: list[object] = []
    assert attach(world, said=said)
    assert [event.text for event in said if isinstance(event, WarningEvent)] == [
        "web.service is in this network only from its next start on"
    ]
    with refuses(Conflict, "web.service", hint="attach it by the name there"):
        attach(world, "second")
    with refuses(Conflict, "web", "web.service", key="NAME", hint="choose another name"):
        attach(world, "web", "api.service")
    with pytest.raises(NotFound):
        attach(world, "none", "none.service")
    units.files[runtime_units.drop_in("api.service")] = "[Service]\n"
    with refuses(Conflict, hint="move it away"):
        attach(world, "api", "api.service")
    assert unit_network.unit_of(world.machine, "web") == "web.service"
    assert unit_network.unit_of(world.machine, "api") is None
    unit_network.detach(world.machine, "web", "web.service")
    assert list(units.files) == [runtime_units.drop_in("api.service")]
    assert units.others["web.service"] and current(world.store, "web") is None
    units.is_init = False
    with refuses(Error, key="--unit"):
        attach(world)
    world.assert_whole()


@pytest.mark.parametrize("text", ["", "web@", "a b", "web/x", "niso-api", "x" * 250, "ä", "a\n"])
def test_names_that_no_unit_has(text: str) -> None:
    with pytest.raises(InvalidInput):
        unit_network.unit_name(text)


def test_names_of_units() -> None:
    for text in ("web", "web.service", "web@1", r"dev\x2d1", "my.timer"):
        assert unit_network.unit_name(text).removesuffix(".service") in (text, text[:-8])


def test_drop_ins_of_firewalls(world: World) -> None:
    units, theirs = world.processes.units, "/etc/systemd/system/nftables.service.d/niso.conf"
    units.files[theirs] = "[Service]\n"
    with pytest.raises(Conflict):
        boot.enable_firewall(world.machine)
    assert not any(each.changed for each in boot.disable_firewall(world.machine))
    assert units.files == {theirs: "[Service]\n"}
    del units.files[theirs]
    assert all(each.changed for each in boot.enable_firewall(world.machine))
    assert units.known == units.files
    assert not any(each.changed for each in boot.enable_firewall(world.machine))
    assert all(each.changed for each in boot.disable_firewall(world.machine))
    assert units.known == units.files == {}
    units.is_init = False
    with refuses(
        Error,
        hint="let the script that loads the firewall run niso net repair --kernel",
    ):
        boot.enable_firewall(world.machine)
