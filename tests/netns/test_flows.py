"""Test that flows follow their ports: conntrack entries never keep a client with the wrong service."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest
from conftest import Lab
from services import CLIENT, HOST, NEIGHBOUR, address, answer, ask, idle, on
from talkers import Conversation, Talker, Talkers, received, speaker, start
from wire import Wire, raw_payload, sctp_chunk, sctp_init, sctp_init_ack

INIT, INIT_ACK = 1, 2
PORT = 5300


@pytest.fixture
def town() -> Iterator[Lab]:
    """``a``, ``b`` and ``peer`` on one network, ``far`` on another; a and b speak on 80 and publish nothing.

    The host routes for other machines too.
    """
    with Lab(240) as lab:
        lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        one = {"network": "one"}
        start(lab, speaker(lab, "a", **one), speaker(lab, "b", **one))
        lab.niso(
            "activate", idle(lab, "peer", network=on("one")), idle(lab, "far", network=on("two"))
        )
        yield lab


@pytest.fixture
def wire(town: Lab) -> Iterator[Wire]:
    with Wire(town) as wire:
        yield wire


@pytest.fixture
def talkers(town: Lab, wire: Wire) -> Iterator[Talkers]:
    """One of each kind, and all of them send from the start: what they are sent back to is nobody."""
    with Talkers(wire) as talkers:
        for name, netns, to in (
            ("client", "client", HOST),
            ("loopback", None, "127.0.0.1"),
            ("host", None, HOST),
            ("bridge", None, "10.99.1.1"),
            ("same-network", "niso-peer", HOST),
            ("other-network", "niso-far", HOST),
            ("gateway", "niso-far", "10.99.2.1"),
        ):
            talkers.add(name, netns, to, PORT)
        yield talkers


def nothing_since(lab: Lab, since: dict[Talker, int], name: str) -> None:
    """The service has got no datagram that was sent since then."""
    first = {talker.name: number for talker, number in since.items()}
    late = []
    for data, _ in received(lab, name, address(lab, name)):
        who, _, number = data.rpartition("-")
        if int(number) >= first[who]:
            late.append(data)
    assert not late


def entries(lab: Lab, *filters: str) -> dict[str, str]:
    """Conntrack's number of each flow: its words."""
    lines = lab.run("conntrack", "-L", "-o", "id", *filters).stdout.splitlines()
    return {found[1]: line for line in lines if (found := re.search(r" id=(\d+)", line))}


# --- UDP ------------------------------------------------------------------------------------------------------------


def test_udp_follows_a_port_that_port_forward_adds_moves_and_removes(
    town: Lab, talkers: Talkers
) -> None:
    talkers.say(town, talkers.now(), "")
    for command, who in (
        (("a", f"{PORT}:80/udp"), "a"),
        (("b", f"{PORT}:80/udp", "--take-over"), "b"),
        (("a", f"{PORT}:80/udp", "--take-over"), "a"),
        (("a", f"{PORT}:80/udp", "--remove"), ""),
        (("b", f"{PORT}:80/udp"), "b"),
    ):
        town.niso("port-forward", *command)
        since = talkers.now()
        talkers.say(town, since, who)
        for other in {"a", "b"} - {who}:
            nothing_since(town, since, other)


def test_udp_follows_manifests_activations_and_deactivations(town: Lab, talkers: Talkers) -> None:
    talkers.say(town, talkers.now(), "")
    town.niso("activate", speaker(town, "a", network="one", ports=[f"{PORT}:80/udp"]))
    talkers.say(town, talkers.now(), "a")
    # as a range, and without a host address no more: the same port by other maps
    ranged = [
        f"{at}:{PORT - 1}-{PORT}:79-80/udp" for at in (HOST, "127.0.0.1", "10.99.1.1", "10.99.2.1")
    ]
    town.niso("activate", speaker(town, "a", network="one", ports=ranged))
    talkers.say(town, talkers.now(), "a")
    town.niso("activate", speaker(town, "a", network="one"))
    since = talkers.now()
    talkers.say(town, since, "")
    nothing_since(town, since, "a")
    town.niso("activate", speaker(town, "b", network="one", ports=[f"{PORT}:80/udp"]))
    talkers.say(town, talkers.now(), "b")
    town.niso("deactivate", "b")
    since = talkers.now()
    talkers.say(town, since, "")
    start(town, "/tmp/packages/b")
    since = talkers.now()
    talkers.say(town, since, "b")
    town.niso("deactivate", "b")
    town.niso("port-forward", "a", f"{PORT}:80/udp")
    talkers.say(town, talkers.now(), "a")


def test_udp_of_every_port_of_a_range_follows(town: Lab, wire: Wire) -> None:
    """Ranges are looked for in another way than single ports, and IPv4's kept apart by more than a few."""
    with Talkers(wire) as talkers:
        for place in (0, 4, 19):
            talkers.add(f"port-{place}", "client", HOST, PORT + place)
        inner = range(200, 220)
        both = [speaker(town, name, *inner, network="one") for name in ("a", "b")]
        start(town, *both)
        talkers.say(town, talkers.now(), "")
        form = f"{PORT}-{PORT + 19}:200-219/udp"
        town.niso("port-forward", "a", form)
        talkers.say(town, talkers.now(), "a")
        town.niso("port-forward", "b", form, "--take-over")
        since = talkers.now()
        talkers.say(town, since, "b")
        town.niso("port-forward", "b", form, "--remove")
        talkers.say(town, talkers.now(), "")


def test_udp_of_a_specific_address_follows_between_it_and_all_addresses(
    town: Lab, talkers: Talkers
) -> None:
    """A port on one address is laid over the one on all, of the same service: only who goes by it moves."""
    start(town, speaker(town, "a", 80, 81, network="one", ports=[f"{PORT}:80/udp"]))
    talkers.say(town, talkers.now(), "a")
    town.niso("port-forward", "a", f"127.0.0.1:{PORT}:81/udp")
    since = talkers.now()
    talkers.say(town, since, "a")
    assert {talker.name: talker.port for talker in since} == {
        talker.name: 81 if talker.name == "loopback" else 80 for talker in since
    }


def test_udp_reply_keeps_the_address_that_was_asked(town: Lab, talkers: Talkers) -> None:
    """A talker's socket is connected: an answer of another address than the one it sent to would not be taken."""
    town.niso("port-forward", "a", f"{PORT}:80/udp")
    since = talkers.now()
    talkers.say(town, since, "a")
    seen = {talker.name: talker.answers[number][1] for talker, number in since.items()}
    assert seen == {
        "client": CLIENT,
        "loopback": "10.99.1.1",
        "host": HOST,
        "bridge": "10.99.1.1",
        "same-network": address(town, "peer"),
        "other-network": address(town, "far"),
        "gateway": address(town, "far"),
    }


# --- SCTP -----------------------------------------------------------------------------------------------------------


def test_sctp_follows_a_port_that_comes_moves_and_goes(town: Lab, wire: Wire) -> None:
    """One client asks for the same association again and again, as a host does until it is answered."""
    kind = (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    servers = {name: wire.socket(f"niso-{name}", *kind) for name in ("a", "b")}
    clients = {netns: wire.socket(netns, *kind) for netns in ("client", "niso-peer", "niso-far")}

    def packets(end: socket.socket) -> Iterator[tuple[bytes, str]]:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (peer, _) = end.recvfrom(4096)
                yield raw_payload(4, data), peer

    def who(netns: str) -> set[str]:
        """Who sees the INITs that are sent now, the client by an answer."""
        found = set()
        for _ in packets(clients[netns]):
            pass
        for _ in range(3):
            clients[netns].sendto(sctp_init(4000, PORT, 77), (HOST, 0))
            town.run("true")  # a moment
            for name, server in servers.items():
                for packet, peer in packets(server):
                    if sctp_chunk(packet) == INIT:
                        found.add(name)
                        server.sendto(sctp_init_ack(packet), (peer, 0))
        if found:
            acks = town.wait_for(
                lambda: [
                    p
                    for p, peer in packets(clients[netns])
                    if sctp_chunk(p) == INIT_ACK and peer == HOST
                ]
            )
            assert all(
                packet[:4] == PORT.to_bytes(2, "big") + (4000).to_bytes(2, "big") for packet in acks
            )
        return found

    form = f"{PORT}:80/sctp"
    for command, expected in (
        ((), set()),
        (("a", form), {"a"}),
        (("b", form, "--take-over"), {"b"}),
        (("b", form, "--remove"), set()),
        (("a", form), {"a"}),
    ):
        if command:
            town.niso("port-forward", *command)
        for netns in clients:
            assert who(netns) == expected, (command, netns)


# --- TCP ------------------------------------------------------------------------------------------------------------


def talk(wire: Wire) -> list[Conversation]:
    """Open connections by all ways."""
    ways = (
        ("client", HOST),
        (None, "127.0.0.1"),
        (None, HOST),
        ("niso-peer", HOST),
        ("niso-far", HOST),
    )
    return [Conversation(wire, netns, to, PORT) for netns, to in ways]


def silent(conversations: list[Conversation], word: str) -> list[str]:
    """The ways of those that do not go on."""
    return [conversation.way for conversation in conversations if not conversation.goes_on(word)]


def test_established_tcp_lives_on_when_its_port_moves_and_goes(town: Lab, wire: Wire) -> None:
    form = f"{PORT}:80"
    town.niso("port-forward", "a", "8080:80")
    town.niso("port-forward", "a", form)
    open_ones = talk(wire)
    for command, who in (
        (("port-forward", "b", form, "--take-over"), "b"),
        (("port-forward", "b", form, "--remove"), ""),
        (("activate", [form]), "a"),
        (("activate", []), ""),
    ):
        if command[0] == "activate":
            town.niso("activate", speaker(town, "a", network="one", ports=command[1]))
        else:
            town.niso(*command)
        assert silent(open_ones, f"word {len(open_ones)} {who}") == []
        if who:
            fresh = talk(wire)
            assert {each.service for each in fresh} == {who}
            open_ones += fresh
    assert len(open_ones) == 15


def test_established_tcp_lives_on_when_the_last_port_of_its_network_goes(
    town: Lab, wire: Wire
) -> None:
    """By 127.0.0.1 and from the same network it needs what the bridge has only for published ports."""
    town.niso("port-forward", "a", f"{PORT}:80")
    open_ones = talk(wire)
    itself = Conversation(wire, "niso-a", HOST, PORT)
    town.niso("port-forward", "a", f"{PORT}:80", "--remove")
    assert silent([*open_ones, itself], "after") == []


def test_established_tcp_lives_on_when_its_services_last_port_goes(town: Lab, wire: Wire) -> None:
    town.niso("port-forward", "b", "8080:80")
    town.niso("port-forward", "a", f"{PORT}:80")
    open_ones = talk(wire)
    itself = Conversation(wire, "niso-a", HOST, PORT)
    town.niso("port-forward", "b", f"{PORT}:80", "--take-over")
    assert silent([*open_ones, itself], "after") == []


def test_deactivate_ends_every_flow_of_the_service_and_no_other(
    town: Lab, wire: Wire, talkers: Talkers
) -> None:
    town.niso("port-forward", "a", f"{PORT}:80/udp")
    town.niso("port-forward", "a", "8080:80")
    town.niso("port-forward", "b", "8081:80")
    gone, stays = address(town, "a"), address(town, "b")
    talkers.say(town, talkers.now(), "a")
    own = [Conversation(wire, netns, HOST, 8080) for netns in ("client", None, "niso-peer")]
    own.append(Conversation(wire, None, gone, 80))
    others = [Conversation(wire, netns, HOST, 8081) for netns in ("client", None, "niso-peer")]
    town.run("ping", "-c1", "-W2", gone)
    before = {number for number, line in entries(town).items() if f"={gone} " in line}
    assert len(before) >= 8
    town.niso("deactivate", "a")
    after = {number: line for number, line in entries(town).items() if f"={gone} " in line}
    # The host's own socket may still send straight to the address, which no rule keeps it from.
    # That makes a new entry, which may have the number of the old one (nf_ct_get_id).
    assert all(
        f"src=10.99.1.1 dst={gone} " in line and "UNREPLIED" in line for line in after.values()
    ), after
    assert all(each.has_ended() for each in own)
    assert all(other.goes_on("still there") for other in others)
    left = entries(town, "-p", "tcp", "--orig-port-dst", "8081").values()
    assert len([line for line in left if f"={stays} " in line]) == 3
    talkers.say(town, talkers.now(), "")


# --- an address that another service gets -----------------------------------------------------------------------------


def inherit(lab: Lab, was: str, folder: str) -> None:
    """Activate the speaker, who gets that address."""
    lab.niso("activate", folder)
    assert address(lab, "heir") == was
    lab.run(
        "ip", "neigh", "flush", "dev", "niso-one"
    )  # a wrong flow must not be lost for the old MAC
    answer(lab, was, 80)


def test_reused_address_inherits_no_flow_to_a_published_port(
    town: Lab, wire: Wire, talkers: Talkers
) -> None:
    """The client goes on sending to a's port while a goes and another service gets a's address."""
    town.niso("port-forward", "a", f"{PORT}:80/udp")
    talkers.say(town, talkers.now(), "a")
    was = address(town, "a")
    town.niso("remove", "a")
    inherit(town, was, speaker(town, "heir", network="one", ports=["5301:80/udp"]))
    talkers.say(town, talkers.now(), "")
    assert received(town, "heir", was) == []


def test_reused_address_inherits_no_flow_from_inside(town: Lab, wire: Wire) -> None:
    """A machine that a had asked something goes on answering: not to the service that has a's address now."""
    far_end = wire.socket("client", socket.AF_INET, socket.SOCK_DGRAM)
    far_end.bind((CLIENT, 7000))
    inside = wire.socket("niso-a", socket.AF_INET, socket.SOCK_DGRAM, keep=False)
    was = address(town, "a")
    inside.bind((was, 4000))
    inside.sendto(b"question", (CLIENT, 7000))

    def heard(end: socket.socket) -> tuple[bytes, tuple[str, int]] | None:
        try:
            found: tuple[bytes, tuple[str, int]] = end.recvfrom(100)
            return found
        except BlockingIOError:
            return None

    question, asker = town.wait_for(lambda: heard(far_end), what="the question")
    assert question == b"question" and asker[0] == HOST
    far_end.sendto(b"answer", asker)
    assert town.wait_for(lambda: heard(inside), what="the answer")[0] == b"answer"
    inside.close()
    with contextlib.suppress(ConnectionRefusedError):
        far_end.sendto(b"late-0", asker)
    town.niso("remove", "a")
    with contextlib.suppress(ConnectionRefusedError):
        far_end.sendto(b"late-1", asker)
    inherit(town, was, speaker(town, "heir", 80, 4000, network="one"))
    for number in range(2, 5):
        with contextlib.suppress(ConnectionRefusedError):
            far_end.sendto(f"late-{number}".encode(), asker)
    assert received(town, "heir", was) == []


def test_reused_address_is_its_new_services_for_the_host_and_the_network(town: Lab) -> None:
    """Who had the old one's MAC in its neighbour cache must not go on sending to it."""
    was = address(town, "a")
    for netns in (None, "niso-peer"):
        assert ask(town, was, 80, netns).startswith("a ")
    town.niso("remove", "a")
    town.niso("activate", speaker(town, "heir", network="one"))
    assert address(town, "heir") == was
    for netns in (None, "niso-peer"):
        town.wait_for(
            lambda netns=netns: ask(town, was, 80, netns), 5, f"an answer to {netns or 'the host'}"
        )


# --- other people's flows ---------------------------------------------------------------------------------------------


def test_other_flows_with_the_same_port_number_are_left_alone(town: Lab, wire: Wire) -> None:
    """DNS of the host, of services and of a machine that this host routes for; and a flow to another published port."""
    town.run(
        "sysctl",
        "-qw",
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.uplink0.send_redirects=0",
    )
    town.run("ip", "address", "add", "198.51.100.3/32", "dev", "lo", netns="neighbour")
    town.run("ip", "route", "add", "198.51.100.3", "via", NEIGHBOUR)
    town.run("ip", "route", "add", "198.51.100.3", "via", HOST, netns="client")
    town.niso("port-forward", "b", "5301:80/udp")
    resolvers = []
    for at in (NEIGHBOUR, "198.51.100.3"):
        resolvers.append(wire.socket("neighbour", socket.AF_INET, socket.SOCK_DGRAM))
        resolvers[-1].bind((at, 53))
    flows: dict[str, tuple[socket.socket, str, int]] = {}
    for name, netns, to, port in (
        ("host", None, NEIGHBOUR, 53),
        ("service", "niso-a", NEIGHBOUR, 53),
        ("another service", "niso-far", NEIGHBOUR, 53),
        ("routed", "client", "198.51.100.3", 53),
        ("another port", "client", HOST, 5301),
        ("straight to the service", None, address(town, "a"), 53),
    ):
        flows[name] = (wire.socket(netns, socket.AF_INET, socket.SOCK_DGRAM), to, port)
        flows[name][0].connect((to, port))
        with contextlib.suppress(ConnectionRefusedError):
            flows[name][0].send(b"question")

    def known() -> dict[str, str]:
        """Each flow's number, by the ports that it was sent from and to."""
        found = {}
        for number, line in entries(town, "-p", "udp").items():
            sent = re.search(r"sport=(\d+) dport=(\d+)", line)
            assert sent
            found[f"{sent[1]} {sent[2]}"] = number
        wanted = {
            name: f"{each.getsockname()[1]} {port}" for name, (each, _, port) in flows.items()
        }
        return {name: found[key] for name, key in wanted.items() if key in found}

    town.wait_for(lambda: known().keys() == flows.keys(), 10, "a flow of each kind")
    before = known()
    for command in (
        ("port-forward", "a", "53:80/udp"),
        ("port-forward", "b", "53:80/udp", "--take-over"),
        ("port-forward", "b", "53:80/udp", "--remove"),
        ("activate", speaker(town, "b", network="one", ports=["53:80/udp", "50-60:50-60/tcp"])),
        ("activate", speaker(town, "b", network="one")),
    ):
        town.niso(*command)
        assert known() == before, command
