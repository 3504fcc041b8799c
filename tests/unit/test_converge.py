"""Test converge, plan, compare and repair on a kernel in memory, including failed steps."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest
from fake_world import unguarded
from fakes.kernel import Fake
from refusals import refuses
from stored import TemporaryStore, add_network, put

from niso.base import names
from niso.base.errors import Conflict, ErrorGroup, KernelError
from niso.base.named_tuples import NamedTuple
from niso.kernel import ruleset
from niso.kernel.kinds import kind
from niso.kernel.kinds.kind import Kind, State, Step, diff
from niso.kernel.kinds.links import Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.plan import desired
from niso.plan.desired import findings
from niso.plan.records import NetworkRecord, PortMapping, SubnetRecord
from niso.reconcile import change as reconcile_change
from niso.reconcile.change import change
from niso.store.snapshots import ALL, Scope
from niso.store.store import Store

ONE = NetworkRecord("one", "", 1500, (SubnetRecord(4, "10.99.1.0/24", "10.99.1.1"),))
WEB = PortMapping("", 8080, 80, "tcp")


@pytest.fixture
def store() -> Iterator[Store]:
    with TemporaryStore() as opened:
        with opened.transaction():
            add_network(opened, ONE)
        yield opened


@pytest.fixture
def kernel() -> Fake:
    return Fake(strict=True)


def activate(
    kernel: Fake, store: Store, *services: str, ports: tuple[PortMapping, ...] = ()
) -> list:
    """What activate does to rows and kernel."""
    scope = Scope(tuple(services), ("one",))
    with change(kernel, store, scope, rows_first=True) as made:
        for service in services:
            put(store, service, ("one",), ports=ports)
    return made.steps


def deactivate(kernel: Fake, store: Store, service: str, detached: list[str] | None = None) -> list:
    scope = Scope((service,), ("one",))
    with change(kernel, store, scope, teardown=True, rows_first=True, detached=detached) as made:
        store.forget(service)
    return made.steps


def is_as_wanted(kernel: Fake, store: Store) -> bool:
    want, have, _ = reconcile_change.compare(kernel, store)
    return diff(want, have) == [] and not unguarded(kernel)


def test_second_service_costs_its_own_steps_and_nothing_of_the_first(
    kernel: Fake, store: Store
) -> None:
    activate(kernel, store, "api")
    assert is_as_wanted(kernel, store)
    first = dict(kernel.veths)
    activate(kernel, store, "db")
    assert is_as_wanted(kernel, store)
    assert first.items() <= kernel.veths.items()
    scope = Scope(("db",), ("one",))
    with change(kernel, store, scope) as made:
        pass
    assert made.steps == []


def test_what_was_detached_goes_when_the_lock_is_released(kernel: Fake, store: Store) -> None:
    activate(kernel, store, "api", "db")
    (link,) = [veth.name for veth in kernel.veths.values() if veth.netns == names.netns("api")]
    ending: list[str] = []
    deactivate(kernel, store, "api", ending)
    assert ending == [link]
    assert kernel.veths[link].bridge == ""
    kernel.delete_detached(ending)
    assert link not in kernel.veths
    assert is_as_wanted(kernel, store)


@pytest.mark.parametrize("number", range(1, 14))
def test_activation_that_fails_at_any_step_is_undone(
    kernel: Fake, store: Store, number: int
) -> None:
    activate(kernel, store, "api")
    there = kernel.everything(State())
    scope, count = Scope(("db",), ("one",)), 0

    def fail(_: object) -> int:
        nonlocal count
        count += 1
        return errno.ENOMEM if count == number else 0

    kernel.fail = fail
    try:
        activate(kernel, store, "db", ports=(WEB,))
    except KernelError as error:
        assert error.errno == errno.ENOMEM
        assert not unguarded(kernel)
    else:
        assert count < number
        return
    with change(kernel, store, scope, teardown=True):
        store.forget("db")
    assert kernel.everything(State()) == there


def test_teardown_goes_on_after_a_failure_and_keeps_the_rules(kernel: Fake, store: Store) -> None:
    activate(kernel, store, "api", "db")
    kernel.fail = lambda step: errno.EBUSY if isinstance(getattr(step, "obj", None), Veth) else 0
    with pytest.raises(ErrorGroup) as raised:
        deactivate(kernel, store, "api")
    assert [error.errno for error in raised.value.errors] == [errno.EBUSY]
    assert names.netns("api") not in kernel.netns
    assert not unguarded(kernel)
    kernel.fail = lambda step: 0
    reconcile_change.repair(kernel, store)
    assert is_as_wanted(kernel, store)


def test_element_that_has_another_value_is_found_by_the_kernels_word(
    kernel: Fake, store: Store
) -> None:
    """An element that is new by the store is not looked for: the kernel refuses it, and the plan is made again."""
    activate(kernel, store, "api")
    scope = Scope(("api",), ("one",), (WEB,))
    with store.transaction() as tried:
        tried.cancel()
        put(store, "api", ("one",), ports=(WEB,))
        want = reconcile_change.desired_now(kernel, store, scope)
    (element,) = [e for e in converge_elements(want) if e.container == "publish_any4"]
    kernel.elements[element.key()] = element._replace(value=("10.99.1.77", 1))
    with change(kernel, store, scope, rows_first=True) as made:
        put(store, "api", ("one",), ports=(WEB,))
    assert any("delete element" in s for s in made.steps[0].statements)
    assert kernel.elements[element.key()] == element
    assert is_as_wanted(kernel, store)


def converge_elements(state: State) -> list:
    from niso.kernel.nft_elements import Element

    return list(state[Element])


def test_lost_tables_widen_a_scope_to_everything(kernel: Fake, store: Store) -> None:
    activate(kernel, store, "api")
    kernel.ruleset, kernel.elements = None, {}
    steps = activate(kernel, store, "db")
    assert isinstance(steps[0], NftTransaction)
    assert ruleset.TABLES in steps[0].edits
    assert is_as_wanted(kernel, store)


@pytest.mark.parametrize("number", range(2, 20))
def test_change_by_the_rules_of_another_version_that_dies_is_finished_by_the_next_command(
    kernel: Fake, store: Store, number: int
) -> None:
    """It changes services outside its own scope, which no intent names: here api loses its routes."""
    activate(kernel, store, "api")
    kernel.ruleset = "0ld"
    for key in [key for key, route in kernel.routes.items() if route.netns == "niso-api"]:
        del kernel.routes[key]
    count = 0

    def fail(_: object) -> int:
        nonlocal count
        count += 1
        return errno.ENOMEM if count == number else 0

    kernel.fail = fail
    with contextlib.suppress(KernelError):
        activate(kernel, store, "db")
    kernel.fail = lambda _: 0
    assert not unguarded(kernel)
    with change(kernel, store, Scope(("db",), ("one",)), teardown=True):
        store.forget("db")
    assert is_as_wanted(kernel, store)


def test_lost_hosts_file_that_others_read_widens_a_scope_to_everything(
    kernel: Fake, store: Store
) -> None:
    activate(kernel, store, "api")
    lines = {folder: set(some) for folder, some in kernel.hosts.items()}
    kernel.hosts.clear()
    activate(kernel, store, "db")
    assert all(some < kernel.hosts[folder] for folder, some in lines.items())
    assert is_as_wanted(kernel, store)


def test_change_that_the_kernel_does_not_keep_is_an_error(kernel: Fake, store: Store) -> None:
    take = kernel.write

    def forgetful(*arguments: object, **more: object) -> object:
        refused = take(*arguments, **more)  # type: ignore[arg-type]
        for name, bridge in list(kernel.bridges.items()):
            kernel.bridges[name] = bridge._replace(mtu=1400)
        return refused

    kernel.write = forgetful  # type: ignore[method-assign, assignment]
    with refuses(
        KernelError, hint="another program may be changing niso's objects: niso net check"
    ):
        activate(kernel, store, "api")


def test_name_that_somebody_else_has_is_a_conflict_and_nothing_changes(
    kernel: Fake, store: Store
) -> None:
    kernel.foreign_links[names.bridge("one")] = ""
    with pytest.raises(Conflict):
        activate(kernel, store, "api")
    assert kernel.done == []
    with pytest.raises(ErrorGroup):
        reconcile_change.repair(kernel, store)
    assert not kernel.veths
    assert kernel.ruleset == ruleset.DIGEST


def test_repair_makes_again_what_is_lost_and_nothing_else(kernel: Fake, store: Store) -> None:
    activate(kernel, store, "api", "db")
    kernel.lose_netns(names.netns("api"))
    words: list[str] = []
    reconcile_change.repair(kernel, store, lambda event: words.append(event.describe()))
    assert words[0] == f"ip netns add {names.netns('api')}"
    assert not any(names.netns("db") in line for line in words)
    assert reconcile_change.repair(kernel, store) == []


# --- a kind that somebody adds ---------------------------------------------------------------------------------------


class Lamp(NamedTuple):
    """A made-up thing that lies in a namespace."""

    netns: str
    name: str
    colour: str = "green"

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.name)


class _Lamps(Kind[Lamp]):
    def space(self, obj: Lamp) -> str:
        return obj.netns

    def parents(self, obj: Lamp) -> tuple[str, ...]:
        return (f"netns {obj.netns}",)

    def describe(self, step: Step[Lamp]) -> str:
        return f"lamp {step.action} {step.obj.name} {step.obj.colour}"


def test_made_up_kind_is_planned_written_checked_and_repaired(
    kernel: Fake, store: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """One `Kind`, and one line in the order."""
    at = kind.ORDER.index("HostsFile")
    monkeypatch.setattr(kind, "ORDER", (*kind.ORDER[:at], "Lamp", *kind.ORDER[at:]))
    kinds = [*kind.KINDS]
    _Lamps(Lamp)
    request.addfinalizer(lambda: kind.KINDS.__setitem__(slice(None), kinds))
    real = desired.desired

    def with_lamps(snapshot: object) -> State:
        want = real(snapshot)  # type: ignore[arg-type]
        return want | State(Lamp(netns.name, "front") for netns in want[Netns])

    monkeypatch.setattr(reconcile_change, "desired", with_lamps)
    planned = reconcile_change.plan(kernel, store, ALL, State())
    assert not planned.want[Lamp]
    steps = activate(kernel, store, "api")
    space = names.netns("api")
    lamp = Lamp(space, "front")
    done = [step.describe() for step in steps]
    assert "lamp add front green" in done
    assert done.index(f"ip netns add {space}") < done.index("lamp add front green")
    assert is_as_wanted(kernel, store)

    kernel.others[Lamp][lamp.key()] = lamp._replace(colour="red")
    kernel.others[Lamp][space, "back"] = Lamp(space, "back")
    want, have, _ = reconcile_change.compare(kernel, store)
    assert [finding.text for finding in findings(want, have)] == [
        f"different: lamp {space} front (colour is 'red', should be 'green')",
        f"foreign: lamp {space} back",
    ]
    assert [step.describe() for step in reconcile_change.repair(kernel, store)] == [
        "lamp change front green",
        "lamp delete back green",
    ]
    assert is_as_wanted(kernel, store)

    kernel.lose_netns(space)
    want, have, _ = reconcile_change.compare(kernel, store)
    assert not any("lamp" in finding.text for finding in findings(want, have))
    reconcile_change.repair(kernel, store)
    assert is_as_wanted(kernel, store)
    steps = deactivate(kernel, store, "api")
    assert not any("lamp" in step.describe() for step in steps)  # it goes with its namespace
    assert not kernel.others[Lamp]


def test_states_of_the_fake_have_the_tables(kernel: Fake, store: Store) -> None:
    activate(kernel, store, "api")
    assert kernel.everything(State())[Ruleset] == {Ruleset(ruleset.DIGEST)}
