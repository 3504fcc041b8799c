"""niso.kernel.libnftables and nftset against the nft command, which loads what they read and lists what they wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

import pytest
from kernel_world import nft, sh, throw_away_host
from ruleset_elements import SYSCTLS, all_elements, policy_elements

from niso.base.errors import KernelError
from niso.kernel import conntrack, netlink, netns, ruleset
from niso.kernel.kinds.nft import owner
from niso.kernel.libnftables import Nft
from niso.kernel.nft_elements import HEADERS, Atoms, Element, Header, Nfnetlink, declared, written
from niso.plan import elements as plan_elements

# container: its definition, and its elements as nft writes them -> (value, comment)
CONTAINERS = {
    "publish": (
        "map publish { type inet_proto . inet_service : ipv4_addr . inet_service; }",
        {
            "tcp . 8080": ("10.99.1.2 . 8080", "api"),
            "udp . 53": ("10.99.1.3 . 5353", "dns"),
            "sctp . 1": ("10.99.1.4 . 65535", ""),
            "gre . 2": ("10.99.1.4 . 2", ""),
            "99 . 3": ("10.99.1.4 . 3", ""),
        },
    ),
    "ranges": (
        "map ranges { type inet_proto . inet_service : ipv4_addr; flags interval; }",
        {"tcp . 8000-8010": ("10.99.1.2", "api"), "udp . 53": ("10.99.1.3", "dns")},
    ),
    "verdicts": (
        "map verdicts { type ipv4_addr : verdict; }",
        {
            "10.99.1.2": ("jump policy_api", "api"),
            "10.99.1.3": ("goto policy_api", ""),
            "10.99.1.4": ("accept", ""),
            "10.99.1.5": ("drop", "x"),
            "10.99.1.6": ("return", ""),
            "10.99.1.7": ("continue", ""),
        },
    ),
    "peers": (
        "map peers { type ipv4_addr . inet_service : verdict; flags interval; }",
        {
            "10.0.0.0/8 . 80-90": ("drop", ""),
            "192.168.1.1-192.168.1.77 . 443": ("accept", "frontend"),
        },
    ),
    "subnets": (
        "set subnets { type ipv4_addr; flags interval; }",
        {"10.99.1.0/24": ("", "backend"), "10.0.0.1-10.0.0.7": ("", ""), "192.168.0.1": ("", "")},
    ),
    "adjacent": (
        "set adjacent { type ipv4_addr; flags interval; }",
        {
            "0.0.0.0/8": ("", "first"),
            "10.0.0.0/24": ("", "a"),
            "10.0.1.0/24": ("", "b"),
            "10.0.2.0-10.0.2.9": ("", "a"),
            "255.255.255.255": ("", "last"),
        },
    ),
    "spans": (
        "map spans { type ipv4_addr . ipv4_addr . inet_proto . inet_service : verdict;"
        " flags interval; }",
        {
            "10.99.1.2 . 0.0.0.0/0 . tcp . 0-65535": ("accept", "web"),
            "10.99.1.2 . 10.0.0.2-10.0.0.4 . udp . 53": ("drop", ""),
            "10.99.1.2 . 10.0.0.6/31 . udp . 54-55": ("drop", "web"),
        },
    ),
    "empty": ("set empty { type ipv4_addr; }", {}),
}


def header_of(name: str) -> Header:
    definition = CONTAINERS[name][0].partition(" { ")[2].removesuffix("; }")
    types, *more = definition.split("; ")
    key, _, value = types.partition(" ")[2].partition(" : ")
    return declared("inet t", name, key, value or None, "flags interval" in more)


def get(kernel: Nfnetlink, header: Header, keys: Iterable[Atoms]) -> dict[Atoms, Element]:
    return {e.fields: e for e in kernel.get((header, key) for key in keys).values()}


def load(name: str) -> dict[str, tuple[str, str]]:
    definition, elements = CONTAINERS[name]
    written = ",\n".join(
        element + (f' comment "{comment}"' if comment else "") + (f" : {value}" if value else "")
        for element, (value, comment) in elements.items()
    )
    nft(f"table inet t {{\n chain policy_api {{ }}\n {definition}\n}}\n")
    if written:
        nft(f"add element inet t {name} {{ {written} }}")
    return elements


def shown(header: Header, elements: Iterable[Element]) -> dict[str, tuple[str, str]]:
    """Return elements as nft writes them: key -> (value, comment)."""
    return {
        written(header.key, e.fields): (
            " ".join(e.value) if header.value is None else written(header.value, e.value),
            f"{e.owner} {e.entry}".rstrip(),
        )
        for e in elements
    }


@pytest.mark.parametrize("name", list(CONTAINERS))
@throw_away_host
def test_elements_and_get_give_back_what_nft_loaded(name: str) -> None:
    expected = load(name)
    with Nfnetlink() as kernel:
        header = header_of(name)
        every = kernel.all_elements(header)
        assert shown(header, every) == expected
        found = get(kernel, header, [element.fields for element in every])
        assert found == {element.fields: element for element in every}
        for element in every:
            assert get(kernel, header, [element.fields]) == {element.fields: element}


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("publish", ("tcp", 8080), ("tcp", 8081)),
        ("ranges", ("tcp", (8000, 8010)), ("tcp", (8001, 8009))),
        ("ranges", ("udp", (53, 53)), ("tcp", (8005, 8005))),
        ("peers", ("10.0.0.0/8", (80, 90)), ("10.0.0.0/9", (80, 90))),
        ("subnets", ("10.99.1.0/24",), ("10.99.1.7",)),
        ("verdicts", ("10.99.1.2",), ("10.99.1.8",)),
    ],
)
@throw_away_host
def test_get_leaves_out_what_is_not_there_and_what_is_only_covered(
    name: str, present: Atoms, absent: Atoms
) -> None:
    load(name)
    with Nfnetlink() as kernel:
        header = header_of(name)
        assert list(get(kernel, header, [absent, present, absent])) == [present]
        assert get(kernel, header, [absent]) == {}
        assert get(kernel, header, []) == {}


@throw_away_host
def test_container_or_table_that_does_not_exist_has_nothing() -> None:
    load("empty")
    with Nfnetlink() as kernel:
        for table, name in (("inet t", "absent"), ("inet absent", "empty"), ("bridge t", "empty")):
            header = declared(table, name, "ipv4_addr", None, False)
            assert kernel.all_elements(header) == [] and get(kernel, header, [("10.0.0.1",)]) == {}
        assert kernel.all_of("inet niso", "owner") is None


@pytest.mark.parametrize(
    ("definition", "element"),
    [
        ("type ipv4_addr", "10.0.0.1"),
        ("type ifname . ifname", '"a" . "b"'),
        ("type ifname; flags interval", '"niso-*"'),
    ],
)
@throw_away_host
def test_set_of_another_version_with_other_types_has_no_elements(
    definition: str, element: str
) -> None:
    nft(f"table inet niso {{\n set owner {{ {definition}; elements = {{ {element} }}; }}\n}}\n")
    nft('table bridge niso {\n set owner { type ifname; elements = { "id-a" }; }\n}')
    with Nfnetlink() as kernel:
        assert kernel.all_of("inet niso", "owner") == []
        assert kernel.all_of("bridge niso", "owner") == [Element("bridge niso", "owner", ("id-a",))]


@throw_away_host
def test_all_elements_of_niso_come_back_as_they_were_planned() -> None:
    """Every kind of element: written by netlink or nft, read one by one and all at once."""
    planned = [*owner("0123abcd"), *all_elements("api", "backend", 1), *policy_elements()]
    planned += [element for name, value in SYSCTLS for element in plan_elements.before(name, value)]
    planned = list({element.key(): element for element in planned}.values())
    with Nft() as nft_:
        nft_.run("\n".join([ruleset.TABLES, *(e.statement("add") for e in planned)]))
    by_nft = listed()
    for _ in range(2):
        with Nfnetlink() as kernel:
            found = kernel.get((HEADERS[e[:2]], e.fields) for e in planned)
            assert found == {element.key(): element for element in planned}
            every = [
                element
                for table, containers in ruleset.CONTAINERS.items()
                for container in containers
                for element in kernel.all_of(table, container) or ()
            ]
            assert set(every) == set(planned)
            # in the second round netlink has written them
            some = [e for e in planned if not HEADERS[e[:2]].is_plain_interval]
            for verb in ("delete", "add"):
                kernel.change(verb, [(verb, element) for element in some])
    assert listed() == by_nft


def listed() -> list[str]:
    """Return the words of nft's listing of niso's tables, without times, in any order."""
    text = "".join(sh(f"nft -s list table {table}") for table in ruleset.CONTAINERS)
    text = re.sub(r" (timeout|expires) \w+|elements = \{| \}", "", text)
    return sorted(word.strip() for word in re.split(r"[,\n]", text))


@throw_away_host
def test_get_and_elements_manage_thousands() -> None:
    expected = [
        Element("inet t", "m", ("tcp", number), (f"10.99.{number % 250}.2", number), f"svc{number}")
        for number in range(1, 10_001)
    ]
    nft(
        "table inet t {\n map m { type inet_proto . inet_service : ipv4_addr . inet_service; }\n}\n"
    )
    lines = (
        f'tcp . {e.fields[1]} comment "{e.owner}" : {e.value[0]} . {e.value[1]}' for e in expected
    )
    nft("add element inet t m { " + ",\n".join(lines) + " }")
    with Nfnetlink() as kernel:
        header = declared(
            "inet t", "m", "inet_proto . inet_service", "ipv4_addr . inet_service", False
        )
        keys = [*(e.fields for e in expected), ("udp", 1)]
        assert get(kernel, header, keys) == {e.fields: e for e in expected}
        assert sorted(kernel.all_elements(header)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "add element inet t s { 10.0.0.2 }\ndelete element inet t s { 10.0.0.9 }",
            ("line 2", "'10.0.0.9'", "No such"),
        ),
        (
            "add element inet t s { 10.0.0.2 }\nadd rule inet t absent accept",
            ("line 2", "'absent'", "No such file"),
        ),
        ("add element inet t s { 10.0.0.2 }\nfoo bar\n", ("line 2", "'foo bar'", "syntax error")),
        ("foo bar", ("'foo bar'", "syntax error")),
    ],
)
@throw_away_host
def test_error_has_nfts_words_the_line_and_the_token(text: str, words: tuple[str, ...]) -> None:
    nft("table inet t {\n set s { type ipv4_addr; }\n}")
    before = sh("nft list ruleset")
    with Nft() as kernel:
        with pytest.raises(KernelError) as caught:
            kernel.run(text)
        assert all(word in caught.value.message for word in words), caught.value.message
        assert "\n" not in caught.value.message
    assert sh("nft list ruleset") == before


@throw_away_host
def test_query_gives_what_nft_j_prints() -> None:
    load("publish")
    printed = json.loads(sh("nft -j list table inet t"))["nftables"]
    with Nft() as kernel:
        assert kernel.query("list table inet t") == [
            item for item in printed if "metainfo" not in item
        ]
        kernel.run("add chain inet t more")
        assert {item["chain"]["name"] for item in kernel.query("list chains")} == {
            "policy_api",
            "more",
        }
        with pytest.raises(KernelError, match="'absent'"):
            kernel.query("list table inet absent")


@throw_away_host
def test_context_stays_in_the_namespace_that_opened_it() -> None:
    netns.create("niso-api")
    with netns.inside("niso-api"):
        kernel = Nft()
    kernel.run("table inet t { }")
    kernel.close()
    assert sh("nft list ruleset") == ""
    assert "table inet t" in sh("ip netns exec niso-api nft list ruleset")


@throw_away_host
def test_nothing_is_written_to_stdout_or_stderr() -> None:
    read, write = os.pipe()
    kept = os.dup(1), os.dup(2)
    os.dup2(write, 1)
    os.dup2(write, 2)
    try:
        with Nft() as kernel:
            kernel.run("table inet t {\n set s { type ipv4_addr; elements = { 10.0.0.1 }\n }\n}")
            kernel.query("list ruleset")
            for use in (kernel.run, kernel.query):
                with pytest.raises(KernelError):
                    use("add rule inet absent c accept")
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        os.close(write)
    assert os.read(read, 1000) == b""


_GET_TABLE = 0x0A01  # NFT_MSG_GETTABLE, refused without a name


def _number() -> int:
    """The inode of the socket that the next user of nf_tables gets."""
    with Nfnetlink() as kernel:
        return os.fstat(kernel._socket.fileno()).st_ino


@throw_away_host
def test_socket_is_used_again_in_the_same_namespace_and_process_and_after_no_error() -> None:
    first = _number()
    assert _number() == first
    with netlink.Netfilter(), Nfnetlink() as other:  # two at once are two
        second = os.fstat(other._socket.fileno()).st_ino
        assert second != first
    netns.create("niso-api")
    with netns.inside("niso-api"):
        assert _number() not in (first, second)
        assert conntrack.flush_addresses(["10.0.0.1"]) == 0
    assert _number() in (first, second)
    if (pid := os.fork()) == 0:
        os._exit(int(_number() in (first, second)))
    assert os.waitpid(pid, 0)[1] == 0
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"), Nfnetlink():
            raise ValueError("mine")
    assert _number() not in (first, second)


@throw_away_host
def test_answers_to_an_earlier_question_are_not_taken_for_those_to_a_later_one() -> None:
    nft("table inet t { set s { type ipv4_addr; }; }")
    for _ in range(3):
        with Nfnetlink() as kernel:
            assert kernel.all_elements(declared("inet t", "s", "ipv4_addr", None, False)) == []
            # asked, and not read
            kernel._socket.sendto(kernel._pack(_GET_TABLE, 0, b"\x01\0\0\0"), (0, 0))
