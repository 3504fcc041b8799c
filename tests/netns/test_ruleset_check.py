"""Test with ``nft --check`` that the kernel accepts the ruleset and every kind of element."""

from __future__ import annotations

import subprocess

import pytest
from kernel_world import throw_away_host
from ruleset_elements import ODD_NAMES, SYSCTLS, all_elements, policy_elements

from niso.kernel import nft_tables
from niso.kernel.kinds.element import Edit, Element
from niso.kernel.kinds.ruleset import owner
from niso.plan import nft


def checked(text: str) -> subprocess.CompletedProcess[str]:
    """Return what ``nft --check`` says of a text; nothing is changed."""
    return subprocess.run(
        ["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )


def added_and_deleted(elements: list[Element]) -> str:
    """Return the ruleset, statements that add all elements to it, and others that delete them."""
    edits = [Edit(verb, element) for verb in ("add", "delete") for element in elements]
    return "\n".join([nft_tables.TABLES, *(edit.text() for edit in edits)])


@throw_away_host
def test_tables_are_accepted_by_the_kernel() -> None:
    done = checked(nft_tables.TABLES)
    assert done.returncode == 0, done.stderr


@throw_away_host
def test_elements_of_odd_but_valid_names_are_accepted_by_the_kernel() -> None:
    elements = [*owner("0123abcd"), nft.closed(4), nft.closed(6)]
    for number, name in enumerate(ODD_NAMES):
        elements += all_elements(name, ODD_NAMES[-1 - number], number)
    done = checked(added_and_deleted(elements))
    assert done.returncode == 0, done.stderr


@throw_away_host
def test_elements_of_policies_are_accepted_by_the_kernel() -> None:
    done = checked(added_and_deleted(policy_elements()))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "value"), SYSCTLS)
@throw_away_host
def test_what_a_sysctl_was_is_accepted_by_the_kernel(name: str, value: str) -> None:
    done = checked(added_and_deleted(nft.before(name, value)))
    assert done.returncode == 0, done.stderr


@throw_away_host
def test_check_sees_what_the_kernel_would_refuse() -> None:
    wrong = ("add element inet niso nonesuch { 1 }", 'delete element inet niso ports { "eth0" }')
    for statement in wrong:
        assert checked(f"{nft_tables.TABLES}\n{statement}").returncode != 0
