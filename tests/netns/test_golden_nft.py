"""Load each golden ruleset into the kernel, in a temporary namespace, over the previous state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_world import throw_away_host

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from test_golden import CASES, HERE, worked_out

from niso.kernel import ruleset
from niso.kernel.kinds.nft import Ruleset
from niso.kernel.nft_elements import Element


def given_to_nft(text: str, *options: str) -> None:
    done = subprocess.run(
        ["nft", *options, "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES)
@throw_away_host
def test_kernel_takes_each_transaction_of_a_golden(case: str) -> None:
    have, _, _ = worked_out(case)
    if have[Ruleset]:
        elements = [element.statement("add") for element in sorted(have[Element])]
        given_to_nft("\n".join([ruleset.TABLES, *elements]))
    for transaction in (HERE / case / "ruleset.nft").read_text().split("# transaction ")[1:]:
        statements = transaction.partition("\n")[2]
        given_to_nft(statements, "--check")
        given_to_nft(statements)
