"""Run inside a lab as ``race_worker.py NUMBER OPERATIONS KILLS``: takes that many of niso's commands, the same ones for the
same number, and prints what became of each as a line of JSON. With KILLS 1 a third of them die at one of their steps.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

number, operations, kills = (int(word) for word in sys.argv[1:])
chance = random.Random(number)
for _ in range(operations):
    service = f"s{chance.randrange(6)}"
    network = f"n{chance.randrange(4)}"
    argv = chance.choices(
        (
            ["activate", f"/tmp/{service}"],
            ["activate", service],
            ["deactivate", service],
            ["remove", service],
            ["restart", service],
            ["net", "create", network],
            ["net", "remove", network],
            ["ps", "--json"],
            ["net", "list", "--json"],
        ),
        (6, 2, 3, 2, 2, 2, 2, 2, 1),
    )[0]
    environment = dict(os.environ)
    if kills and chance.randrange(3) == 0:
        environment["NISO_FAILPOINT"] = f"{chance.randrange(1, 30)}:kill"
    done = subprocess.run(["niso", *argv], capture_output=True, text=True, check=False, env=environment)
    print(json.dumps({"argv": argv, "status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}))
