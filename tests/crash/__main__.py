"""`python -m tests.crash`: run the crash matrix and print its table; exit code 1 when a promise was broken, or a fault
has struck nobody in any of its cases."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.crash import matrix
from tests.crash.matrix import Case, Matrix
from tests.support.linked_stack import LinkedStack

TABLE = Path("build/crash/matrix.md")
TIMES = 4
PAIRS = 100


def main() -> int:
    options = _options()
    cases = _cases(options)
    print(f"{len(cases)} cases, samples by seed {options.seed}", flush=True)
    if options.list:
        print(*cases, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="sis-crash-") as root:
        numbers = itertools.count(1)

        def fresh() -> LinkedStack:
            """A stack that is up. Its start is not what is tried here: a machine that is too busy for one may have
            time for the next."""
            for last in (False, False, True):
                stack = LinkedStack(Path(root) / str(next(numbers)) / "data")
                try:
                    stack.up()
                except BaseException as error:
                    stack.close()
                    if last or not isinstance(error, AssertionError):
                        raise
                else:
                    break
            return stack

        found = Matrix(fresh, lambda text: print(text, flush=True))
        deadline = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
        try:
            found.run(cases, deadline)
        finally:
            table = list(found.table())
            matrix.write(options.table, table)
            print(*table, sep="\n")
            print(f"of {len(cases)} cases: {options.table}")
    return 1 if found.violations or found.unproven or not found.results else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.crash", description="Run the crash matrix.")
    parser.add_argument("--seed", type=int, default=11, help="of the samples")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how many samples of two faults")
    parser.add_argument(
        "--times", type=int, default=TIMES, help="at how many moments each other process is stopped and each link cut"
    )
    parser.add_argument("--more", action="store_true", help="stop and cut those at every moment")
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="the cases whose line (--list) this regular expression matches in some place",
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="each Nth case from the Ith on")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no case after so long")
    parser.add_argument("--list", action="store_true", help="print the cases, and run none")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table goes")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> list[Case]:
    others = matrix.more() if options.more else matrix.sample(options.seed, options.times)
    cases = matrix.alone() + others + matrix.pairs(options.seed, options.pairs)
    number, _, count = options.shard.partition("/")
    return [case for case in cases if re.search(options.only, str(case))][int(number) - 1 :: int(count)]


if __name__ == "__main__":
    sys.exit(main())
