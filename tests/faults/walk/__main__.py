"""``./dev walk``: walks from a seed and the next ones; prints what was done, and how one failed."""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import time
from collections import Counter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from walk import walks
from walk.parts import loaded


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev walk", description="Walk through niso's commands.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--steps", type=int, default=walks.STEPS, help="of each walk")
    parser.add_argument("--minutes", type=float, help="walk on with the next seeds, so long")
    parser.add_argument("--keep-going", action="store_true", help="walk on after a failure")
    parser.add_argument("--shrink", action="store_true", help="take steps out of a failed walk")
    parser.add_argument("--replay", help="take the steps of a file, as a failed walk writes it")
    args = parser.parse_args()
    if args.replay:
        steps = loaded(pathlib.Path(args.replay).read_text(encoding="utf-8"))
        failed = walks.replay(steps, args.seed, args.shrink)
        print("\n".join(failed) if failed else "walk: passed")
        return 1 if failed else 0
    until = time.monotonic() + (args.minutes or 0) * 60
    counts: Counter[str] = Counter()
    failures = 0
    for seed in range(args.seed, args.seed + 100_000):
        failed = walks.walk(seed, args.steps, counts, args.shrink)
        if failed:
            failures += 1
            print("\n".join(failed), flush=True)
        if time.monotonic() > until or (failed and not args.keep_going):
            break
    print(f"walk: seeds {args.seed} to {seed}: {walks.counted(counts)}")
    print(f"walk: {failures} failed" if failures else "walk: passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
