"""What niso should know and do, by its documentation: each command changes it, or is refused.

Addresses and subnets that niso chooses are learned from the kernel (`compare.learn`) and then held
to. ``docs/guide`` and ``docs/design`` are the source of the rules; niso's code is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from walk.known import Network, Service
from walk.parts import FIXED, FOLDER, INNER, Command, Manifest, Port, Stack


class Refused(Exception):
    """The command is refused, with errors of some of these classes; nothing changes."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = set(kinds)
        super().__init__(", ".join(sorted(kinds)))


@dataclass
class World:
    """All that is known: services, networks, and the manifests and stacks in their folders."""

    services: dict[str, Service] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    disk: dict[str, Manifest] = field(default_factory=dict)
    stacks: dict[str, Stack] = field(default_factory=dict)

    def after(self, command: Command) -> tuple[set[str], list[World]]:
        """Return (classes of its refusal, or none; the worlds that may hold afterwards)."""
        before = self.with_files(command)
        now = copy.deepcopy(before)
        verb, words = command.words[0], [w for w in command.words[1:] if not w.startswith("-")]
        options = [word for word in command.words[1:] if word.startswith("-")]
        try:
            act = getattr(now, f"_{verb.replace('-', '_')}")
            act(words, options)
        except Refused as refused:
            return refused.kinds, [before]
        return set(), [before] if "--dry-run" in options else [now]

    def with_files(self, command: Command) -> World:
        """Return the world after only the files of a command are written."""
        now = copy.deepcopy(self)
        now.disk |= {manifest.place: manifest for manifest in command.manifests}
        if command.stack:
            now.stacks[command.stack.name] = command.stack
        return now

    # --- what is so ---------------------------------------------------------------

    def holder(self, name: str) -> str | None:
        """Return the known service that a command means by this name."""
        holders = [one for one, it in self.services.items() if name in it.names]
        if name in holders or not holders:
            return name if name in holders else None
        if len(holders) > 1:
            raise Refused("ambiguous")
        return holders[0]

    def where(self, name: str) -> set[str]:
        """Return the networks that a service and those in its namespace are on."""
        share = self.services[name].manifest.share
        there = self.services.get(share) if share else self.services[name]
        return set(there.manifest.on) if there else set()

    def beside(self, name: str, on: set[str]) -> list[str]:
        """Return the known services with this name on one of these networks."""
        return [
            one for one, it in self.services.items() if name in it.names and self.where(one) & on
        ]

    def meant(self, asker: str, name: str, denies: bool) -> list[str]:
        """Return the services that a name in the policy of ``asker`` stands for."""
        beside = self.beside(name, self.where(asker))
        called = self.services.get(name)
        own = [name] if called and called.manifest.mode != "host" else []
        if denies:
            return [*beside, *own]
        return beside if len(beside) == 1 else [] if beside else own

    def require(self, name: str) -> Service:
        holder = self.holder(name)
        if holder is None:
            raise Refused("unknown service")
        return self.services[holder]

    def provider(self, name: str) -> str | None:
        """Return the known service whose namespace this one shares, by its last activation."""
        share = self.services[name].manifest.share
        return self.holder(share) if share else None

    def home(self, name: str) -> str:
        """Return the service whose namespace this one is in."""
        return self.provider(name) or name

    def sharers(self, provider: str) -> list[str]:
        """Return the active services in this one's namespace, except itself."""
        return [
            name
            for name, it in self.services.items()
            if it.active and it.manifest.share and self.provider(name) == provider
        ]

    def active(self) -> list[str]:
        return sorted(name for name, it in self.services.items() if it.active)

    def known_on(self, network: str) -> list[str]:
        return [name for name, it in self.services.items() if network in it.manifest.on]

    def listening(self) -> set[int]:
        """Return the host ports that services of mode host listen on, on all addresses."""
        return {
            INNER[name]
            for name, it in self.services.items()
            if it.active and it.manifest.mode == "host"
        }

    def holders(self, port: Port) -> list[tuple[str, Port]]:
        """Return (service, port) of what active services publish and ``port`` clashes with."""
        return [
            (name, held)
            for name, it in self.services.items()
            for held in (it.ports if it.active else ())
            if held.clashes(port)
        ]

    # --- commands -----------------------------------------------------------------

    def _activate(self, words: list[str], options: list[str]) -> None:
        targets = [
            self.disk[word.removeprefix(f"{FOLDER}/")]
            if "/" in word
            else self.require(word).manifest
            for word in words
        ]
        self.activate(targets, replace="--take-over" in options)

    def activate(
        self,
        targets: Iterable[Manifest],
        leaving: Iterable[str] = (),
        stack: str = "",
        replace: bool = False,
    ) -> None:
        """Activate manifests together, all or none. Raises Refused."""
        chosen = {manifest.name: manifest for manifest in targets}
        # who stops or starts in this command listens until it stops, and not yet
        listening = self.listening()
        ended = [name for name in leaving if self.services[name].active]
        for manifest in list(chosen.values()):
            was = self.services.get(manifest.name)
            if was is None or not manifest.provides or not was.active:
                continue
            for sharer in self.sharers(manifest.name):
                other = manifest.home != was.manifest.home or manifest.mode != was.manifest.mode
                if sharer not in chosen and sharer not in ended and other:
                    chosen[sharer] = self.services[sharer].manifest
        kinds: set[str] = set()
        if stack:
            kinds |= {
                "other stack"
                for name in chosen
                if name in self.services and self.services[name].stack not in ("", stack)
            }
        for name in leaving:
            self.services[name].stack = ""
        self._end(ended)
        before = {name: copy.deepcopy(self.services.get(name)) for name in chosen}
        for name, was in before.items():
            # an address does not move between services in one command
            asked = {it.ip for it in chosen.values() if it.ip and it.name != name}
            if was and not asked.isdisjoint(was.leases.values()):
                kinds.add("address taken")
            if was and was.manifest.below != chosen[name].below and not replace:
                kinds.add("elsewhere")
        for name, manifest in chosen.items():
            it = self.services.get(name)
            if it is not None:
                it.published = [port for port in it.published if port in manifest.ports]
                stays = it.manifest.on == manifest.on
                it.names = tuple(one for one in it.names if stays and one in manifest.names)
        for manifest in sorted(
            chosen.values(), key=lambda one: not one.provides and one.mode == "share"
        ):
            kinds |= self._record(manifest, before[manifest.name], listening)
            if stack and manifest.name in self.services:
                self.services[manifest.name].stack = stack
        for name in (*chosen, *ended):
            it = self.services.get(name)
            if it and not (it.active and it.manifest.provides) and self.sharers(name):
                kinds.add("shared")
        if kinds:
            raise Refused(*kinds)
        left = {network for was in before.values() if was for network in was.manifest.on}
        self._drop_unused(left)

    def _record(self, manifest: Manifest, before: Service | None, listening: set[int]) -> set[str]:
        """Set one service to its manifest; return the classes of what refuses that."""
        kinds: set[str] = set()
        name = manifest.name
        if manifest.share:
            kinds |= self._no_provider(manifest)
        there = self.services.get(manifest.share) if manifest.share else None
        on = set(there.manifest.on if there else manifest.on)
        sharing = [n for n in self.services if self.services[n].manifest.share == name]
        every = {*manifest.names, *(own for n in sharing for own in self.services[n].names)}
        held = {own for own in every if set(self.beside(own, on)) - {name, *sharing}}
        if held:
            kinds.add("name taken")
        it = self.services.setdefault(name, Service(manifest, active=False))
        was_active = before is not None and before.active
        had = before.ports if before is not None and was_active else []
        it.manifest, it.active = manifest, True
        it.names = tuple(one for one in manifest.names if one not in held)
        for network in manifest.on:
            if network not in self.networks:
                around = manifest.ip.rpartition(".")[0]
                if around and any(n.subnet == around for n in self.networks.values()):
                    kinds.add("subnet taken")
                self.networks[network] = Network(around, implicit=True)
        kinds |= self._names_host(manifest) | self._ambiguous(manifest, every)
        it.leases = {n: lease for n, lease in it.leases.items() if n in manifest.on}
        it.leases6 = {n: lease for n, lease in it.leases6.items() if n in manifest.on}
        for network in manifest.on:
            it.leases.setdefault(network, "")
            if self.networks[network].six:
                it.leases6.setdefault(network, "")
        if manifest.ip:
            kinds |= self._static(it, manifest)
        provider = self.services.get(self.home(name))
        if provider is None or not provider.manifest.on:
            if manifest.ports:
                kinds.add("no network of its own")
            it.forwards = []
        kinds |= self._publish(it, before, had, listening)
        return kinds

    def _no_provider(self, manifest: Manifest) -> set[str]:
        holder = self.holder(manifest.share)
        if holder is None:
            return {"unknown service"}
        provider = self.services[holder]
        if not provider.manifest.provides:
            return {"no namespace"}
        return set() if provider.active else {"inactive"}

    def _ambiguous(self, manifest: Manifest, names: set[str]) -> set[str]:
        """Return the refusal of a name that would mean two services, in this policy or another."""
        own = {(manifest.name, entry.peer) for entry in manifest.policy.entries}
        others = {
            (name, entry.peer)
            for name, it in self.services.items()
            for entry in it.manifest.policy.entries
            if entry.peer in names
        }
        several = any(len(self.beside(peer, self.where(name))) > 1 for name, peer in own | others)
        return {"ambiguous"} if several else set()

    def _names_host(self, manifest: Manifest) -> set[str]:
        """A policy cannot name a service of mode host, nor a named service take that mode."""
        for name, it in self.services.items():
            for entry in it.manifest.policy.entries:
                called = self.services.get(entry.peer)
                is_host = called and called.manifest.mode == "host"
                concerned = manifest.name in (name, entry.peer)
                if concerned and is_host and not self.beside(entry.peer, self.where(name)):
                    return {"peer of mode host"}
        return set()

    def _static(self, it: Service, manifest: Manifest) -> set[str]:
        (network,) = manifest.networks
        subnet = self.networks[network].subnet
        if subnet and subnet != FIXED:
            return {"address outside"}
        taken = any(
            manifest.ip in other.leases.values()
            for name, other in self.services.items()
            if name != manifest.name
        )
        it.leases[network] = manifest.ip
        return {"address taken"} if taken else set()

    def _publish(
        self, it: Service, before: Service | None, had: list[Port], listening: set[int]
    ) -> set[str]:
        kinds: set[str] = set()
        name, published = it.manifest.name, []
        for port in it.manifest.ports:
            if port not in had:
                recorded = before is not None and port in before.ports
                in_last = before is not None and port in before.manifest.ports
                if in_last and not recorded and self._taken(name, port):
                    continue  # it stays with the service that took it
                kinds |= self._refuse_port(name, port, listening)
                if any(port.replaces(own) for own in it.forwards):
                    kinds.add("forwarded")
            published.append(port)
        for port in it.forwards:
            if port not in had:
                kinds |= self._refuse_port(name, port, listening)
        it.published = published
        it.forwards = [port for port in it.forwards if port not in published]
        return kinds

    def _taken(self, name: str, port: Port) -> bool:
        """Whether a forward has taken this port of a manifest."""
        return any(
            held.replaces(port) if other == name else held.clashes(port)
            for other, it in self.services.items()
            for held in it.forwards
        )

    def _refuse_port(self, name: str, port: Port, listening: set[int]) -> set[str]:
        kinds = {"port taken" for holder, _ in self.holders(port) if holder != name}
        return kinds | ({"port used"} if port.host in listening else set())

    def _end(self, names: Iterable[str], keep_forwards: bool = False) -> None:
        for name in names:
            it = self.services[name]
            it.active = False
            if not keep_forwards:
                it.forwards = []

    def _drop_unused(self, networks: Iterable[str]) -> None:
        for network in set(networks):
            it = self.networks.get(network)
            if it and it.implicit and not self.known_on(network):
                del self.networks[network]

    def _named(self, words: list[str]) -> list[str]:
        return list(dict.fromkeys(self.require(word).manifest.name for word in words))

    def _refuse_shared(self, names: Iterable[str]) -> None:
        if any(set(self.sharers(name)) - set(names) for name in names):
            raise Refused("shared")

    def _deactivate(self, words: list[str], options: list[str]) -> None:
        names = self.active() if "--all" in options else self._named(words)
        self._refuse_shared([name for name in names if self.services[name].active])
        self._end(names)

    def _remove(self, words: list[str], _: list[str]) -> None:
        names = self._named(words)
        self._refuse_shared(names)
        gone = [self.services.pop(name) for name in names]
        self._drop_unused(network for it in gone for network in it.manifest.on)

    def _restart(self, words: list[str], _: list[str]) -> None:
        if not all(self.services[name].active for name in self._named(words)):
            raise Refused("inactive")

    def _enable(self, words: list[str], _: list[str]) -> None:
        names = self._named(words)
        for name in names:
            provider = self.provider(name)
            if provider and provider not in names and not self.services[provider].enabled:
                raise Refused("provider not enabled")
        for name in names:
            self.services[name].enabled = True

    def _disable(self, words: list[str], _: list[str]) -> None:
        names = self._named(words)
        for name, it in self.services.items():
            if it.enabled and name not in names and self.provider(name) in names:
                raise Refused("sharer enabled")
        for name in names:
            self.services[name].enabled = False

    def _port_forward(self, words: list[str], options: list[str]) -> None:
        it, port = self.require(words[0]), as_port(words[1])
        name = it.manifest.name
        if "--remove" in options:
            if port not in it.forwards:
                self._refuse_inactive(it)
                raise Refused("in the manifest" if port in it.published else "not forwarded")
            it.forwards.remove(port)
            self._give_back(name, port)
            return
        self._refuse_inactive(it)
        if port in it.ports:
            return
        if not self.services[self.home(name)].manifest.on:
            raise Refused("no network of its own")
        losers = [
            (other, held)
            for other, held in self.holders(port)
            if other != name or held.replaces(port)
        ]
        kinds = {"port taken"} if losers and "--take-over" not in options else set()
        if port.host in self.listening():
            kinds.add("port used")
        if kinds:
            raise Refused(*kinds)
        for other, held in losers:
            loser = self.services[other]
            loser.published = [one for one in loser.published if one != held]
            loser.forwards = [one for one in loser.forwards if one != held]
        it.forwards.append(port)

    def _give_back(self, name: str, forward: Port) -> None:
        """Publish again what a forward kept from the manifests of one other or its own service."""
        claims = [
            (other, port)
            for other, it in self.services.items()
            for port in it.manifest.ports
            if it.active
            and port not in it.ports
            and (forward.replaces(port) if other == name else forward.clashes(port))
            and not any(who != other or held.replaces(port) for who, held in self.holders(port))
        ]
        for other, port in claims:
            rivals = [one for who, one in claims if who != other]
            if port.host not in self.listening() and not any(map(port.clashes, rivals)):
                it = self.services[other]
                kept = {*it.published, port}
                it.published = [one for one in it.manifest.ports if one in kept]

    def _refuse_inactive(self, it: Service) -> None:
        if not it.active:
            raise Refused("inactive")

    def _net(self, words: list[str], options: list[str]) -> None:
        if words[0] == "remove":
            for name in words[1:]:
                if name not in self.networks:
                    raise Refused("unknown network")
                if self.known_on(name):
                    raise Refused("network used")
            for name in words[1:]:
                del self.networks[name]
        if words[0] == "create":
            subnet = words[2].rpartition(".")[0] if "--subnet" in options else ""
            self._create(
                words[1], Network(subnet, "--ipv6" in options, internal="--internal" in options)
            )

    def _create(self, name: str, new: Network) -> None:
        present = self.networks.get(name)
        if present is None:
            if new.subnet and any(n.subnet == new.subnet for n in self.networks.values()):
                raise Refused("subnet taken")
            self.networks[name] = new
            return
        other = (present.internal, present.six) != (new.internal, new.six)
        if other or new.subnet not in ("", present.subnet):
            raise Refused("network differs")
        present.implicit = False

    def _stack(self, words: list[str], _: list[str]) -> None:
        stack = self.stacks[words[1].rpartition("/")[2]]
        members = [name for name, it in self.services.items() if it.stack == stack.name]
        if words[0] == "up":
            leaving = [name for name in members if name not in stack.services]
            self.activate([self.disk[name] for name in stack.services], leaving, stack.name)
        else:
            self._refuse_shared([name for name in members if self.services[name].active])
            self._end(members)

    def _restore(self, _words: list[str], _options: list[str]) -> None:
        """Activate what is enabled: all at once, else one by one."""
        kinds: set[str] = set()
        enabled = sorted(name for name, it in self.services.items() if it.enabled)
        sharing = {name for name in enabled if self.provider(name)}
        for some in (
            [n for n in enabled if n not in sharing],
            [n for n in enabled if n in sharing],
        ):
            if not self._attempt(some):
                continue
            for name in some:
                kinds |= self._attempt([name])
        self.refusals = kinds

    refusals: set[str] = field(default_factory=set)
    """What the last `restore` could not activate; it does the others."""

    def _attempt(self, names: list[str]) -> set[str]:
        trial = copy.deepcopy(self)
        try:
            if names:
                trial.activate([self.services[name].manifest for name in names])
        except Refused as refused:
            return refused.kinds
        self.services, self.networks = trial.services, trial.networks
        return set()

    def reboot(self) -> None:
        """The machine starts again: nothing runs, what is on record stays."""
        self._end(self.active(), keep_forwards=True)


def as_port(text: str) -> Port:
    """Read a port as `Port.text` writes it."""
    words, _, proto = text.partition("/")
    *at, host, inner = words.split(":")
    return Port(int(host), int(inner), proto or "tcp", at[0] if at else "")
