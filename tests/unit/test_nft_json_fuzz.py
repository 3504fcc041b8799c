"""Test that any JSON of libnftables yields values or an error that is safe to print."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.base.errors import KernelError
from niso.kernel import libnftables

BOUNDED = settings(max_examples=samples(50, 2000), deadline=None)


GOOD_SET = {
    "nftables": [
        {"metainfo": {"version": "1.1.3"}},
        {
            "map": {
                "type": ["inet_proto", "inet_service"],
                "map": ["ipv4_addr", "inet_service"],
                "elem": [
                    [
                        {"elem": {"val": {"concat": [6, 8080]}, "comment": "api"}},
                        {"concat": ["10.99.0.2", 80]},
                    ]
                ],
            }
        },
    ]
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["tcp", "accept", "niso"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "nftables",
                    "map",
                    "set",
                    "elem",
                    "val",
                    "concat",
                    "range",
                    "prefix",
                    "type",
                    "jump",
                    "typeof",
                    "comment",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def read(answer: bytes) -> Any:
    """What is made of it; None for a KernelError."""

    class Library:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: answer if name == "nft_ctx_get_output_buffer" else 0

    one = libnftables.Nft.__new__(libnftables.Nft)
    one._nft, one._context = Library(), None  # type: ignore[assignment]
    try:
        return one.query("list map inet niso publish_any4")
    except KernelError as error:
        assert "cannot parse" in error.message
        return None


def test_json_of_nft_is_read() -> None:
    assert read(json.dumps(GOOD_SET).encode()) == GOOD_SET["nftables"][1:]


def test_no_json_of_nft_makes_its_reader_fail_but_with_words() -> None:
    good = json.dumps(GOOD_SET).encode()

    @BOUNDED
    @given(
        st.one_of(
            JSON.map(lambda value: json.dumps(value).encode()),
            JSON.map(
                lambda value: json.dumps(
                    {"nftables": [{"map": {"elem": [value]}}, {"map": value}]}
                ).encode()
            ),
            st.binary(max_size=40),
            st.tuples(st.integers(0, len(good)), st.integers(0, 8), st.binary(max_size=4)).map(
                lambda cut: good[: cut[0]] + cut[2] + good[cut[0] + cut[1] :]
            ),
            st.just(b"[" * 100_000),
        )
    )
    def go(answer: bytes) -> None:
        read(answer)

    go()
