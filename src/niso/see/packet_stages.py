"""Describe the path of one traced packet through all hooks."""

from __future__ import annotations

import re

from niso.base.lite_typing import NamedTuple
from niso.kernel.nft_tables import BRIDGE, INET
from niso.kernel.nft_trace import PREFIX, Step
from niso.plan.verdict import Verdict

_COMMENT = re.compile(r'comment "([^"]*)"')
_LEADS = ("jump ", "goto ")


class Stage(NamedTuple):
    """A chain on the packet's path. ``verdict`` is pass, drop or "→ CHAIN"."""

    table: str
    chain: str
    verdict: str
    words: str


def stages(steps: list[Step], verdict: Verdict | None) -> list[Stage]:
    """Return the chains that decided something about the packet. Pure.

    ``verdict`` is the policy engine's, which has the manifest entry if a policy drops the packet.
    """
    result = []
    for step in steps:
        if step.table.partition(" ")[2].startswith(PREFIX) or step.kind == "return":
            continue
        if step.kind == "rule" and step.verdict == "continue":
            continue
        result.append(Stage(step.table, step.chain, _word(step), _words(step, verdict)))
    return result


def passed(path: list[Stage]) -> bool:
    """Return whether no chain dropped the packet."""
    return all(stage.verdict != "drop" for stage in path)


def others(path: list[Stage]) -> list[Stage]:
    """Return the stages in chains of other programs."""
    return [stage for stage in path if stage.table not in (INET, BRIDGE)]


def _word(step: Step) -> str:
    for lead in _LEADS:
        if step.verdict.startswith(lead):
            return f"→ {step.verdict.removeprefix(lead)}"
    return {"accept": "pass", "return": "pass"}.get(step.verdict, step.verdict)


def _words(step: Step, verdict: Verdict | None) -> str:
    if step.kind != "rule":
        return "the chain's policy"
    is_policy = step.table == INET and step.chain.startswith("check_")
    if is_policy and verdict is not None:
        reason = verdict.ingress if step.chain.startswith("check_in") else verdict.egress
        return reason.message
    comment = _COMMENT.search(step.rule)
    return comment[1] if comment and step.table in (INET, BRIDGE) else step.rule
