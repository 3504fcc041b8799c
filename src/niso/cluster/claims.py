"""Reserve addresses and names of services for a host in etcd, by compare-and-swap.

The claim of a service consists of etcd keys: one for the service, one for each address and one for
each name. One transaction changes all of them, so two hosts cannot reserve the same address or
name.

Each claim contains ``mark``, the random id of the request that wrote the claim. If etcd does not
answer a request, this host reads the claim. If the claim in etcd has this request's id, the request
was carried out. Otherwise etcd may still carry out the request later. This host therefore sends the
request again, with a condition that at most one of the two requests can meet. It repeats this until
the claim in etcd shows which host has reserved the service.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.base.named_tuples import TYPE_CHECKING, Any, NamedTuple
from niso.base.names import owner
from niso.cluster import key_values
from niso.cluster.engine import Compare, Delete, Keys, KeyValue, NoAnswer, Put, Txn, decode, encode
from niso.cluster.key_values import ClusterClaim, address_value, claim_of, spec_of
from niso.plan import records, subnets

if TYPE_CHECKING:
    from niso.cluster.etcd import Etcd

TRIES = 16
"""The maximum number of attempts of a change that fails or that etcd leaves unanswered."""
NEAR = 64
"""After a lost race, a free address is chosen at random from this many lowest free addresses."""
MOST_KEYS = key_values.MOST_NAMES
"""The maximum number of keys of a service: etcd accepts 128 operations in a transaction."""


class Wanted(NamedTuple):
    """The addresses and names that a host wants to reserve for a service.

    A preferred address that is not free is ignored. A requested address that is not free causes an
    error. Both are mappings of networks to addresses.
    """

    service: str
    networks: tuple[str, ...]
    names: tuple[str, ...]  # the hostname is first
    requested: dict[str, tuple[str, ...]]
    preferred: dict[str, tuple[str, ...]]
    front: bool = False  # whether it has a service address, so that several hosts can have it


class Claims:
    """A client that reads and changes claims in etcd for one host. Raises NoAnswer and Error."""

    def __init__(self, engine: Etcd, host: str, keys: Keys | None = None) -> None:
        self.engine = engine
        self.host = host
        self.keys = keys or Keys()

    def held(self, service: str) -> ClusterClaim | None:
        """Return the claim of a service by any host, or None if no host has reserved it. If several
        hosts have reserved the service, this host's claim is returned if it has one.
        """
        key = self.keys.service(service)
        items = self.engine.get(key, one=True).items
        return claim_of(items[0], self.keys, self.host) if items else None

    def is_alive(self, host: str) -> bool:
        """Return whether a host is alive: its lease in etcd has not expired."""
        return bool(self.engine.get(self.keys.live(host), one=True).items)

    def claim(
        self,
        wanted: Wanted,
        take: bool = False,
        keep: bool = False,
        since: int = 0,
        renew: bool = False,
    ) -> ClusterClaim:
        """Reserve a service's addresses and names for this host. Return the resulting claim.

        With ``keep``, former addresses and names stay reserved until `publish`: this host still
        uses them, and an undo may need them. With ``take``, this host takes over the claim of a
        dead host. ``since`` is the number ``gen`` of the claim that this host has recorded, or 0. A
        claim of another host with a lower ``gen`` comes from a backup of etcd, and is replaced.

        A service with a service address can be on several hosts. This host is added to them if one
        is alive, or if the ``gen`` of their claim is ``since``. With ``renew``, the claim is
        written even if nothing changes, so that etcd can no longer carry out an earlier request.

        Raises Conflict if another host has reserved the service, or if another service has reserved
        one of its addresses or names. Raises NotFound if etcd lacks a network.
        """
        mark, raced = os.urandom(16).hex(), False

        def attempt(_: bool) -> ClusterClaim | None:
            nonlocal raced
            have = self.held(wanted.service)
            if have is not None and have.mark == mark:
                return have  # the request without an answer was carried out
            joins = self._joins(wanted, have, since)
            if have is not None and have.host != self.host and have.gen >= since and not joins:
                self._require_lost(wanted, have, take)
            planned = self._planned(wanted, have, joins, mark, keep, since, renew, raced)
            if planned is None:
                return have
            claim, txn = planned
            revision = self.engine.commit(txn)
            raced = raced or not revision
            return claim._replace(revision=revision) if revision else None

        return _repeated(attempt, f"{wanted.service}: other hosts keep changing what it needs")

    def foreseen(self, wanted: Wanted, take: bool) -> ClusterClaim:
        """Return the claim that `claim` would return, without writing to etcd."""
        have = self.held(wanted.service)
        joins = self._joins(wanted, have)
        if have is not None and have.host != self.host and not joins:
            self._require_lost(wanted, have, take)
        planned = self._planned(wanted, have, joins)
        if planned is None:
            assert have is not None
            return have
        return planned[0]

    def publish(
        self, service: str, mark: str, up: bool, about: Mapping[str, Any] | None = None
    ) -> bool:
        """Write to etcd whether a service is up, and ``about``: the fields of `shown_values`.

        Former addresses and names are released. Returns False if this host no longer has the claim
        with the id ``mark``.
        """

        def change(claim: ClusterClaim, items: dict[str, KeyValue]) -> list[Put | Delete]:
            key = self.keys.service(service)
            value = key_values.turned(decode(items[key].value, key), self.host)
            if up:
                value.pop("former", None)
            value["kept"] = []
            values = {key: {**value, "up": up, **(about or {})}}
            for network, addresses in claim.networks.items():
                for address in addresses:
                    key = self.keys.address(network, address)
                    value = decode(items[key].value, key) if key in items else {}
                    any_up = claim._replace(up=up).any_up
                    values[key] = value | address_value(claim, any_up)
            texts = {key: encode(value) for key, value in values.items()}
            have = {key: items[key].value for key in texts.keys() & items.keys()}
            gone = [Delete(key) for key in claim.kept]
            same = texts == have and not gone
            return [] if same else [*(Put(key, text) for key, text in texts.items()), *gone]

        return self._changed(service, mark, change, gives_up=False)

    def release(self, service: str, mark: str) -> bool:
        """Delete this host's claim with the id ``mark``. Returns False if it does not exist.

        A service that was taken over from another host, and was never up here, returns to that
        host. Claims of the service by other hosts stay.
        """

        def change(claim: ClusterClaim, items: dict[str, KeyValue]) -> list[Put | Delete]:
            key = self.keys.service(service)
            if claim.others:
                return [*without(items, claim, self.keys, self.host)]
            if not claim.former:
                return [Delete(gone) for gone in sorted({key, *claim.keys(self.keys)})]
            value = decode(items[key].value, key)
            former = value.pop("former")
            gen = claim.gen + 1
            value |= {"host": claim.former, "gen": gen, "claim": str(former["claim"])}
            value["up"] = bool(former["up"])
            if "others" in former:
                value["others"] = former["others"]
            back = claim._replace(host=claim.former, gen=gen)
            puts: list[Put | Delete] = [Put(key, encode(value))]
            for network, addresses in claim.networks.items():
                for address in addresses:
                    key = self.keys.address(network, address)
                    kept = decode(items[key].value, key) if key in items else {}
                    puts.append(Put(key, encode(kept | address_value(back, bool(former["up"])))))
            return puts

        return self._changed(service, mark, change, gives_up=True)

    def _changed(self, service: str, mark: str, change: Any, gives_up: bool) -> bool:
        """Change the keys of this host's claim of a service, in one transaction.

        ``change(claim, {name: key})`` returns Put and Delete operations. ``gives_up`` is true if
        they delete the claim: after a request without an answer, an absent claim then shows that
        etcd has carried out the request. Returns False if this host does not have the claim with
        the id ``mark``.
        """
        own = self.keys.service(service)

        def attempt(is_unknown: bool) -> bool | None:
            claim = self.held(service)
            # no claim after a request without an answer: that request was carried out
            if claim is None or claim.host != self.host or claim.mark != mark:
                is_given_up = claim is None or (claim.front and self.host not in claim.hosts)
                return gives_up and is_unknown and is_given_up
            items: dict[str, KeyValue] = {}
            for key in (own, *claim.address_keys(self.keys)):
                items |= {item.key: item for item in self.engine.get(key, one=True).items}
            if own not in items or items[own].modified != claim.revision:
                return None
            changes = tuple(change(claim, items))
            held = Compare(own, claim.revision)
            return True if not changes or self.engine.commit(Txn((held,), changes)) else None

        return _repeated(attempt, f"{service}: other hosts keep changing it")

    def _joins(self, wanted: Wanted, have: ClusterClaim | None, since: int = 0) -> bool:
        if have is None or self.host in have.hosts or not (wanted.front and have.front):
            return False
        return have.gen == since or (have.gen > since and any(map(self.is_alive, have.hosts)))

    def _require_lost(self, wanted: Wanted, have: ClusterClaim, take: bool) -> None:
        """Raise Conflict, unless ``take`` is set and all hosts that have the service are dead."""
        if alive := next(filter(self.is_alive, have.hosts), None):
            if have.service != owner(have.service):
                raise Conflict(f"{alive} has just started an instance {have.service}", "try again")
            hint = f"it can be activated here once it is removed on {alive}"
            if have.front != wanted.front:
                hint += "; to run it on both, set service.replicas on both"
            raise Conflict(f"{have.service} is on {alive}, which is alive", hint)
        if not take:
            addresses = ", ".join(a for some in have.networks.values() for a in some)
            hosts, verb = ", ".join(have.hosts), "do" if have.others else "does"
            comes = (
                "each stops it when it comes back"
                if have.others
                else (f"{have.host} stops it when it comes back")
            )
            raise Conflict(
                f"{have.service} is on {hosts}, which {verb} not answer",
                f"--from-lost-host moves it here with {addresses}; {comes}",
            )

    def _require_alike(self, wanted: Wanted, claim: ClusterClaim, have: ClusterClaim) -> None:
        """Raise Conflict if a service would have different addresses or names on its hosts."""
        there = ", ".join(host for host in have.hosts if host != self.host)
        if have.kept or have.former:
            raise Conflict(f"{there} is changing {have.service}", "try again")
        where = f"{have.service} is on {there} too"
        if not wanted.front:
            reason = f"{where}, and only a service with a service address can be on several hosts"
            hint = f"service.replicas gives it one; without, it has to be removed on {there}"
            raise Conflict(reason, hint, key="service.replicas")
        alike = "networks, addresses and names are the same on all hosts"
        if claim.networks.keys() != have.networks.keys():
            raise Conflict(
                f"{where}, on {_listed(have.networks)} instead of {_listed(claim.networks)}",
                f"{alike}: they can be changed while it is active on one host",
                key="network.networks",
            )
        for network, addresses in claim.networks.items():
            if addresses != have.networks[network]:
                raise Conflict(
                    f"{where}, with {_listed(have.networks[network])} instead of"
                    f" {_listed(addresses)} on network {network!r}",
                    f"{alike}: they can be changed while it is active on one host",
                    key="network.ip",
                )
        if {*claim.names} != {*have.names}:
            raise Conflict(
                f"{where}, with the names {_listed(have.names)} instead of {_listed(claim.names)}",
                f"{alike}: they can be changed while it is active on one host",
                key="network.aliases",
            )

    def _planned(
        self,
        wanted: Wanted,
        have: ClusterClaim | None,
        joins: bool,
        mark: str = "",
        keep: bool = False,
        since: int = 0,
        renew: bool = False,
        raced: bool = False,
    ) -> tuple[ClusterClaim, Txn] | None:
        """Return (claim to request, transaction that writes it), or None if nothing changes.

        ``have`` is the service's present claim. ``joins`` is true if this host will have the
        service in addition to the hosts that have it. ``raced`` is true if another host has changed
        the keys during an earlier attempt. The other parameters are those of `claim`.
        """
        conditions = [Compare(self.keys.service(wanted.service), have.revision if have else 0)]
        takes = have is not None and have.host != self.host and have.gen >= since and not joins
        if have is not None and takes:
            # fails if one of these hosts is alive again: its key ``live`` then exists
            conditions += [Compare(self.keys.live(host)) for host in have.hosts]
        is_own = have is not None and have.host == self.host
        is_shared = have is not None and (joins or (is_own and bool(have.others)))
        networks: dict[str, tuple[str, ...]] = {}
        known: dict[str, KeyValue] = {}
        newest = base = 0
        for network in wanted.networks:
            answer = self.engine.get(self.keys.network(network))
            newest = max(newest, answer.revision)
            items = {item.key: item for item in answer.items}
            spec = items.get(self.keys.spec(network))
            if spec is None:
                raise NotFound(f"no network {network!r} in the cluster", "niso net list")
            # fails if the network has changed: the addresses may not fit it then
            conditions.append(Compare(spec.key, spec.modified))
            base = max(base, spec_of(network, spec).base)
            known |= items
            networks[network] = self._addresses(wanted, have, network, items, raced)
        # a revision is higher than ``gen`` of all earlier claims, even of deleted ones
        gen = max(have.gen + 1 if have else base + newest, since + 1)
        claim = ClusterClaim(
            wanted.service, self.host, gen, mark, networks, wanted.names, 0, front=wanted.front
        )
        if have is not None and is_shared:
            self._require_alike(wanted, claim, have)
            # with a higher ``gen``, this host would take the service over from the other hosts
            claim = claim._replace(gen=have.gen, names=have.names)
        same = () if renew else ("host", "networks", "names", "front")
        if have is not None and same and all(getattr(claim, f) == getattr(have, f) for f in same):
            return None
        self._require_free(claim, known)
        old = have.keys(self.keys) if have else set()
        # an undo of the command needs the former addresses and names
        if keep and have is not None and have.host == self.host:
            claim = claim._replace(kept=tuple(sorted(old - claim.keys(self.keys))))
        new = claim.keys(self.keys)
        if len(new | old) > MOST_KEYS:
            raise Error(f"{wanted.service} has too many names and networks for one claim")
        conditions += [Compare(key) for key in sorted(new - old)]
        key = self.keys.service(wanted.service)
        present = self.engine.get(key, one=True).items if have else ()
        before = decode(present[0].value, wanted.service) if present else {}
        if joins and before:
            before = key_values.added(before, self.host)
        elif is_own:
            before = key_values.turned(before, self.host)
        value: dict[str, Any] = {
            "host": self.host,
            "gen": claim.gen,
            "claim": mark,
            "networks": networks,
            "kept": list(claim.kept),
            "front": claim.front,
        }
        if have is not None and takes:
            held = have.address_keys(self.keys) & known.keys()
            up = any(decode(known[key].value, key).get("up") for key in held)
            value["up"] = False
            value["former"] = {"host": have.host, "claim": have.mark, "up": up}
            if "others" in before:
                value["former"]["others"] = before.pop("others")
            claim = claim._replace(former=have.host)
        elif have is not None and have.host == self.host:
            claim = claim._replace(former=have.former)
        else:
            before.pop("former", None)
            if not joins:
                before.pop("others", None)
        value = before | value | {"names": list(claim.names)}
        claim = claim._replace(others=key_values.others_of(value))
        changes: tuple[Put | Delete, ...] = (
            Put(key, encode(value)),
            # the entries of the other hosts stay valid until this host publishes the service
            *(self._entries(claim, known, is_own) if not joins else ()),
            *(Delete(key) for key in sorted(old - new)),
        )
        return claim, Txn(tuple(conditions), changes)

    def _entries(
        self, claim: ClusterClaim, known: Mapping[str, KeyValue], is_own: bool
    ) -> Iterator[Put]:
        """Yield Put operations for the address and name keys of a claim. ``known`` are the present
        keys by name. ``is_own`` is true if this host already has the claim: the field ``up`` of its
        address keys then does not change.
        """
        for network, addresses in claim.networks.items():
            for address in addresses:
                key = self.keys.address(network, address)
                kept = decode(known[key].value, key) if key in known else {}
                up = is_own and bool(kept.get("up"))
                yield Put(key, encode(kept | address_value(claim, up)))
            for name in claim.names:
                yield Put(self.keys.name(network, name), encode({"service": claim.service}))

    def _addresses(
        self,
        wanted: Wanted,
        have: ClusterClaim | None,
        network: str,
        items: dict[str, KeyValue],
        raced: bool,
    ) -> tuple[str, ...]:
        """Choose and return a service's address in each subnet of a network. The order of
        preference is: the requested address, the present address, a free preferred address, any
        free address. ``items`` are the network's keys. ``raced`` is as in `_planned`.
        """
        prefix = self.keys.addresses(network)
        spec = spec_of(network, items[self.keys.spec(network)])
        holders = {
            key.removeprefix(prefix): decode(item.value, key).get("service")
            for key, item in items.items()
            if key.startswith(prefix)
        }
        chosen = []
        for cidr, gateway in spec.subnets:
            net = ipaddress.ip_network(cidr)

            def inside(addresses: Sequence[str], net: subnets.Network = net) -> list[str]:
                return [text for text in addresses if ipaddress.ip_address(text) in net]

            requested = inside(wanted.requested.get(network, ()))
            # the gateway's address would direct other services' traffic to this service
            for text in requested:
                base = int(net.network_address)
                own, number = (int(ipaddress.ip_address(a)) - base for a in (gateway, text))
                if reason := records.refusal(net, own, number):
                    reason = f"{text} cannot be a service's address: {reason}"
                    raise InvalidInput(reason, None, "network.ip")
            held = inside(have.networks.get(network, ())) if have else []
            preferred = [
                text
                for text in inside(wanted.preferred.get(network, ()))
                if holders.get(text, wanted.service) == wanted.service
            ]
            choices = (*requested, *held, *([] if raced else preferred))
            if not choices:
                choices = (_free(net, gateway, holders, raced, network),)
            chosen.append(choices[0])
        return tuple(chosen)

    def _require_free(self, claim: ClusterClaim, known: dict[str, KeyValue]) -> None:
        for key in sorted(claim.keys(self.keys)):
            holder = decode(known[key].value, key).get("service") if key in known else None
            if holder in (None, claim.service):
                continue
            network, kind, what = key.removeprefix(f"{self.keys.prefix}net/").split("/", 2)
            called = "address" if kind == "a" else "name"
            there = (decode(item.value, k) for k, item in known.items() if "/a/" in k)
            host = next((f" on {v.get('host')}" for v in there if v.get("service") == holder), "")
            raise Conflict(
                f"{claim.service}: {called} {what} on network {network!r} belongs to {holder!r}"
                f"{host}",
                "choose another one",
            )


def without(
    items: Mapping[str, KeyValue], claim: ClusterClaim, keys: Keys, host: str
) -> Iterator[Put]:
    """Yield Put operations that remove one host from a claim that several hosts share. ``items``
    are the present keys of the service and its addresses, by name.
    """
    key = keys.service(claim.service)
    value = key_values.left(decode(items[key].value, key), host)
    rest = claim_of(items[key]._replace(value=encode(value)), keys)
    yield Put(key, encode(value))
    for key in sorted(claim.address_keys(keys)):
        kept = decode(items[key].value, key) if key in items else {}
        yield Put(key, encode(kept | address_value(rest, rest.any_up)))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _free(
    net: subnets.Network, gateway: str, taken: dict[str, Any], raced: bool, network: str
) -> str:
    """Return the lowest free address of a subnet, or if ``raced`` a random low one. Another host is
    then unlikely to choose the same address. ``taken`` has the used addresses as keys. Raises
    Conflict if no address is free.
    """
    base = int(net.network_address)
    known = map(ipaddress.ip_address, filter(key_values.is_address, taken))
    here = [address for address in known if address in net]
    used = sorted(int(address) - base for address in here)
    own = int(ipaddress.ip_address(gateway)) - base
    free: list[int] = []
    while len(free) < (NEAR if raced else 1):
        number = records.first_free(net, own, sorted([*used, *free]))
        if number is None:
            break
        free.append(number)
    if not free:
        raise Conflict(
            f"network {network!r} ({net}) has no free address", "create a larger network"
        )
    return str(net.network_address + free[int.from_bytes(os.urandom(4)) % len(free)])


def _repeated[T](attempt: Callable[[bool], T | None], problem: str) -> T:
    """Call ``attempt`` until its result is not None, at most `TRIES` times. Return this result.
    ``attempt`` is called with True if etcd may have carried out an earlier request that it did not
    answer. Raises NoAnswer, and Conflict with the message ``problem`` after the last attempt.
    """
    unknown: NoAnswer | None = None
    for _ in range(TRIES):
        try:
            if (result := attempt(unknown is not None)) is not None:
                return result
        except NoAnswer as error:
            if not error.unknown and unknown is not None:
                raise NoAnswer(error.reason, error.hint, unknown=True) from error
            if not error.unknown:
                raise
            unknown = error
    raise unknown or Conflict(problem, "try again")
