"""Prefix the names of a stack's services and networks: ``db`` of the stack ``shop`` is ``shop-db``.

The short names remain as hostnames, and names in the stack's own file and manifests refer to its
own services and networks first. So two stacks with the same names can run on one host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping

from niso.base.errors import ErrorGroup, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK
from niso.manifest import values
from niso.manifest.stack_file import Network

if TYPE_CHECKING:
    from niso.manifest.stack_file import Member, Outline, Stack
    from niso.plan.records import Entry, Peer, Policy


def long_name(stack: str, name: str) -> str:
    """Return the name of a service or network in a stack with a prefix."""
    short = name.removeprefix("niso-") if name == DEFAULT_NETWORK else name
    return f"{stack}-{short}"


def applies(
    prefix: bool | None, stack: str, names: Iterable[str], members: Collection[str], taken: bool
) -> bool:
    """Return whether the services of a stack have its prefix.

    ``prefix`` is the setting in its file, None without one. Then an existing stack keeps its names;
    ``members`` are its recorded services, even if its file no longer has them. A new stack has the
    prefix if ``taken``: another stack has one of its ``names``.
    """
    if prefix is not None:
        return prefix
    own = list(names)
    plain = sum(name in members for name in own)
    long = sum(long_name(stack, name) in members for name in own)
    if long or plain:
        return long > plain
    every_long = all(name.startswith(long_name(stack, "")) for name in members)
    return taken or (bool(members) and every_long)


def outline(plain: Outline) -> Outline:
    """Return the outline of a stack with the prefix applied."""
    after = {
        long_name(plain.name, name): tuple(long_name(plain.name, other) for other in others)
        for name, others in plain.after.items()
    }
    return plain._replace(after=after)


def stack(plain: Stack) -> Stack:
    """Return a stack with the prefix applied.

    Raises an ErrorGroup if a name becomes too long, with the keys of the stack's file.
    """
    names = {member.name: long_name(plain.name, member.name) for member in plain.members}
    called = _called(plain, names)
    declared = dict(plain.networks)
    specs = [member.loaded.spec for member in plain.members]
    if any(DEFAULT_NETWORK in spec.networks for spec in specs) and not any(
        spec.statics(DEFAULT_NETWORK)
        for spec in specs  # the network's subnet then contains these addresses
    ):
        declared.setdefault(DEFAULT_NETWORK, Network())
    networks = {name: long_name(plain.name, name) for name in (*declared, DEFAULT_NETWORK)}
    lone = {name for name, count in Counter(_names(plain)).items() if count == 1}
    full = [
        (
            member.key if member.overrides is None else f"{member.key}.name",
            member.name,
            names[member.name],
        )
        for member in plain.members
    ]
    full += [(f"networks.{name}", name, networks[name]) for name in declared]
    errors = [_too_long(plain, *one) for one in full if len(one[2]) > values.MAX_NAME]
    if errors:
        raise ErrorGroup([*errors])
    return plain._replace(
        prefix=f"{plain.name}-",
        networks={networks[name]: network for name, network in declared.items()},
        members=tuple(_member(member, names, called, networks, lone) for member in plain.members),
    )


def _too_long(plain: Stack, key: str, short: str, full: str) -> InvalidInput:
    reason = f"has {len(full)} characters with the prefix of the stack"
    error = values.wrong(
        key, short, reason, f"at most {values.MAX_NAME}, or [stack] prefix = false"
    )
    error.file = plain.file
    return error


def _called(plain: Stack, names: Mapping[str, str]) -> dict[str, str]:
    """Return {name: service} for names by which policies of the stack can refer to its services.

    A hostname or alias that two services have, on different networks, is left out.
    """
    holders: dict[str, set[str]] = {}
    for member in plain.members:
        for name in member.loaded.spec.names:
            holders.setdefault(name, set()).add(names[member.name])
    return {name: full for name, (full, *more) in holders.items() if not more} | dict(names)


def _names(plain: Stack) -> Iterator[str]:
    """Yield the names that each service has before the prefix is applied."""
    for member in plain.members:
        yield from member.loaded.spec.names


def _member(
    member: Member,
    names: Mapping[str, str],
    called: Mapping[str, str],
    networks: Mapping[str, str],
    lone: Container[str],
) -> Member:
    """Return a member with its prefixed names.

    Its short name becomes its hostname. If it already has another hostname, the short name becomes
    an alias if ``lone``, but not on a network outside the stack, where a second stack with the same
    names would clash.
    """
    spec = member.loaded.spec
    own = bool(spec.networks) and all(name in networks for name in spec.networks)
    short = (spec.name,) if own and spec.name in lone and spec.name != spec.hostname else ()
    spec = spec._replace(
        name=names[spec.name],
        aliases=tuple(dict.fromkeys((*short, *spec.aliases))),
        share=called.get(spec.share, spec.share) if spec.share else None,
        networks=tuple(networks.get(name, name) for name in spec.networks),
        addresses={networks.get(name, name): ip for name, ip in spec.addresses.items()},
        addresses6={networks.get(name, name): ip for name, ip in spec.addresses6.items()},
        policy=_policy(spec.policy, {"service": called, "network": networks}),
    )
    after = {names.get(name, name): state for name, state in member.after.items()}
    return member._replace(loaded=member.loaded._replace(spec=spec), after=after)


def _policy(policy: Policy, meant: Mapping[str, Mapping[str, str]]) -> Policy:
    """Return a policy whose names refer to services and networks of the stack first."""

    def moved(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(entry._replace(peer=peer(entry.peer)) for entry in entries)

    def peer(written: Peer) -> Peer:
        return written._replace(name=meant.get(written.kind, {}).get(written.name, written.name))

    allow, egress = policy.allow_from, policy.egress_allow
    return policy._replace(
        allow_from=None if allow is None else moved(allow),
        deny_from=moved(policy.deny_from),
        egress_allow=None if egress is None else moved(egress),
        egress_deny=moved(policy.egress_deny),
    )
