"""`python -m tests.soak`: soak, and write `report.md`, `samples.csv`, the pictures and the logs.

Exit code 1 if anything grows without bound or is wrong."""

from __future__ import annotations

import argparse
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak import pictures
from tests.soak.report import report
from tests.soak.soak import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000), help="of the faults and the jobs")
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two jobs of one customer")
    asked = parser.parse_args()
    if asked.minutes <= 0:
        parser.error("--minutes must be more than 0")
    asked.out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(asked.out / "soak.log", "w")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", handlers=handlers)
    print(f"soaking for {asked.minutes:g} minutes with seed {asked.seed}; see {asked.out}", flush=True)
    data = Path(tempfile.mkdtemp(prefix="sis-soak-"))
    outcome = run(Plan(60 * asked.minutes, asked.seed, asked.out, pause=asked.pause), data)
    drawn = pictures.draw(outcome, asked.out)
    (asked.out / "report.md").write_text(report(outcome, drawn))
    for trouble in outcome.ledger.troubles[:20]:
        print(f"wrong: {trouble[:500]}")
    for series, verdict in outcome.growing.items():
        print(f"{verdict.outcome}: {series.subject}, {series.measure}")
    print(f"{len(outcome.ledger.orders)} jobs, {len(outcome.faults)} faults; see {asked.out / 'report.md'}")
    if outcome.good:
        shutil.rmtree(data, ignore_errors=True)
    else:
        print(f"the stack's data is left in {data}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
