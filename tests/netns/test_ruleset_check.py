"""Test with ``nft --check`` that the kernel accepts the ruleset and every kind of element."""

from __future__ import annotations

import subprocess

import pytest
from kernel_world import throw_away_host
from ruleset_elements import ODD_NAMES, SYSCTLS, all_elements, policy_elements

from niso.kernel import ruleset
from niso.kernel.kinds.nft import owner
from niso.kernel.nft_elements import Element
from niso.plan import elements as plan_elements


def checked(text: str) -> subprocess.CompletedProcess[str]:
    """Return what ``nft --check`` says of a text; nothing is changed."""
    return subprocess.run(
        ["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )


def added_and_deleted(elements: list[Element]) -> str:
    """Return the ruleset, statements that add all elements to it, and others that delete them."""
    each = {element.key(): element for element in elements}.values()
    edits = [(verb, element) for verb in ("add", "delete") for element in each]
    return "\n".join([ruleset.TABLES, *(element.statement(verb) for verb, element in edits)])


@throw_away_host
def test_tables_are_accepted_by_the_kernel() -> None:
    done = checked(ruleset.TABLES)
    assert done.returncode == 0, done.stderr


@throw_away_host
def test_elements_of_odd_but_valid_names_are_accepted_by_the_kernel() -> None:
    elements = [*owner("0123abcd"), plan_elements.closed(4), plan_elements.closed(6)]
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
    done = checked(added_and_deleted(plan_elements.before(name, value)))
    assert done.returncode == 0, done.stderr


@throw_away_host
def test_check_sees_what_the_kernel_would_refuse() -> None:
    wrong = ("add element inet niso nonesuch { 1 }", 'delete element inet niso ports { "eth0" }')
    for statement in wrong:
        assert checked(f"{ruleset.TABLES}\n{statement}").returncode != 0
