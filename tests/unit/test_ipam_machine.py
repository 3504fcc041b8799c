"""Test leases with a state machine against the real store."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from samples import samples
from stored import TemporaryStore, add_network, dump, put

from niso.base.errors import Conflict, InvalidInput
from niso.plan.records import NetworkRecord, SubnetRecord

SERVICES = st.sampled_from([f"s{number}" for number in range(9)])
SUBNETS = ("10.1.0.0/30", "10.1.1.0/29", "10.1.2.0/28", "10.1.4.0/24", "10.1.5.0/29")


class Leases(RuleBasedStateMachine):
    networks = Bundle("networks")

    def __init__(self) -> None:
        super().__init__()
        self.world = TemporaryStore()
        self.store = self.world.__enter__()
        self.subnet: dict[str, SubnetRecord] = {}
        self.second: dict[str, SubnetRecord] = {}
        self.held: dict[str, dict[str, tuple[str, ...]]] = {}  # service -> network -> addresses
        self.active: set[str] = set()

    def teardown(self) -> None:
        self.world.__exit__(None, None, None)

    @initialize(
        target=networks,
        gateways=st.lists(st.integers(1, 2), min_size=5, max_size=5),
        dual=st.booleans(),
    )
    def make_networks(self, gateways, dual):
        for number, cidr in enumerate(SUBNETS):
            name = f"n{number}"
            net = ip_network(cidr)
            gateway = (
                net.network_address + gateways[number]
                if number % 2
                else net.broadcast_address - gateways[number]
            )
            self.subnet[name] = SubnetRecord(4, cidr, str(gateway))
            subnets = [self.subnet[name]]
            if dual and number == 1:
                self.second[name] = SubnetRecord(6, "fd00::/125", "fd00::1")
                subnets.append(self.second[name])
            with self.store.transaction():
                add_network(self.store, NetworkRecord(name, "", 1500, tuple(subnets), False))
        return multiple(*self.subnet)

    # --- the model ---

    def taken(self, network: str) -> set[str]:
        return {address for on in self.held.values() for address in on.get(network, ())}

    def lowest(self, network: str, subnet: SubnetRecord) -> str | None:
        free = (str(a) for a in ip_network(subnet.cidr).hosts() if str(a) != subnet.gateway)
        taken = self.taken(network)
        return next((address for address in free if address not in taken), None)

    def expected(self, service: str, network: str) -> tuple[str, ...] | None:
        """What the service gets without a static address; None where the network is full."""
        held = self.held.get(service, {}).get(network)
        if held is not None:
            return held
        found = [self.lowest(network, self.subnet[network])]
        if network in self.second:
            found.append(self.lowest(network, self.second[network]))
        return None if None in found else tuple(found)  # type: ignore[arg-type]

    # --- rules ---

    @rule(service=SERVICES, on=st.lists(networks, min_size=1, max_size=2, unique=True))
    def comes(self, service, on):
        """As in an activation: all networks or none; what it has it keeps, what it leaves is freed."""
        expected = {network: self.expected(service, network) for network in on}
        before = dump(self.store)
        full = [network for network in on if expected[network] is None]
        if full:
            with pytest.raises(Conflict) as refused, self.store.transaction():
                put(self.store, service, tuple(on))
            assert dump(self.store) == before
            assert repr(full[0]) in refused.value.message
            # names, at most five, those whose removal would help
            idle = {
                name
                for name in self.held
                if full[0] in self.held[name] and name not in self.active | {service}
            }
            named = {
                name
                for name in self.held
                if f" {name}" in (refused.value.hint or "").replace(",", " ")
            }
            if full[0] not in self.second:
                assert named <= idle
                assert len(named) == min(len(idle), 5)
            return
        with self.store.transaction():
            put(self.store, service, tuple(on))
        self.held[service] = expected
        self.active.add(service)

    @rule(service=SERVICES, network=networks, number=st.integers(0, 16))
    def comes_with_static(self, service, network, number):
        subnet = self.subnet[network]
        net = ip_network(subnet.cidr)
        wanted = net.network_address + number
        others = {
            a for name, on in self.held.items() if name != service for a in on.get(network, ())
        }
        sixth = self.held.get(service, {}).get(network, ())[1:]
        if network in self.second and not sixth:
            free = self.lowest(network, self.second[network])
            if free is None:
                return
            sixth = (free,)
        impossible = wanted not in net or wanted in (
            net.network_address,
            net.broadcast_address,
            ip_address(subnet.gateway),
        )
        before = dump(self.store)
        if impossible or str(wanted) in others:
            with (
                pytest.raises(InvalidInput if impossible else Conflict) as refused,
                self.store.transaction(),
            ):
                put(self.store, service, (network,), static={network: str(wanted)})
            assert refused.value.key == "network.ip"
            assert str(wanted) in refused.value.message
            if not impossible:
                (holder,) = [n for n, on in self.held.items() if str(wanted) in on.get(network, ())]
                assert repr(holder) in refused.value.message
            assert dump(self.store) == before
            return
        with self.store.transaction():
            put(self.store, service, (network,), static={network: str(wanted)})
        self.held[service] = {
            network: (str(wanted), *sixth) if network in self.second else (str(wanted),)
        }
        self.active.add(service)

    @rule(service=SERVICES)
    def goes_inactive(self, service):
        with self.store.transaction():
            self.store.set_inactive(service)
        self.active.discard(service)

    @rule(service=SERVICES)
    def is_removed(self, service):
        with self.store.transaction():
            self.store.forget(service)
        self.held.pop(service, None)
        self.active.discard(service)

    @rule(service=SERVICES, on=st.lists(networks, min_size=1, max_size=2, unique=True))
    def tries_and_is_undone(self, service, on):
        before = dump(self.store)
        with self.store.transaction():
            self.store.begin_intent(service, "activate", 3.0)
        try:
            with self.store.transaction():
                put(self.store, service, tuple(on))
        except Conflict:
            pass
        with self.store.transaction():
            intent = self.store.intent(service)
            assert intent
            self.store.undo([intent])
            self.store.end_intent(service)
        assert dump(self.store) == before

    # --- what must hold ---

    @invariant()
    def store_and_model_agree(self) -> None:
        for service, on in self.held.items():
            assert dict(self.by_network(service)) == on

    def by_network(self, service: str) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for network, address in self.store.addresses(service):
            found[network] = (*found.get(network, ()), address)
        return found

    @invariant()
    def no_address_twice_and_none_that_is_not_a_services(self) -> None:
        all_of_them = [
            a
            for name in self.subnet
            for family in (4, 6)
            for a, _, _ in self.store.leases(name, family)
        ]
        assert (
            len(all_of_them)
            == len(set(all_of_them))
            == sum(len(a) for on in self.held.values() for a in on.values())
        )
        for name in self.subnet:
            for subnet in (
                self.subnet[name],
                *([self.second[name]] if name in self.second else ()),
            ):
                net = ip_network(subnet.cidr)
                for address, _, _ in self.store.leases(name, subnet.family):
                    assert ip_address(address) in net
                    assert address not in (str(net.network_address), subnet.gateway)
                    assert subnet.family == 6 or address != str(net.broadcast_address)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=samples(15, 60), stateful_step_count=40, deadline=None)
