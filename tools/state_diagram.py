"""Write the job state diagram and its table into ARCHITECTURE.md from `services/queue/states.py`.

`python tools/state_diagram.py [--check]`; with --check nothing is written, and exit 1 says that the page is stale.
"""

import sys
from collections import defaultdict
from pathlib import Path

from services.queue.states import TERMINAL, TRANSITIONS, Status

PAGE = Path(__file__).resolve().parent.parent / "ARCHITECTURE.md"
BEGIN, END = "<!-- states: begin (make generate) -->", "<!-- states: end -->"


def diagram() -> str:
    """The moves as a Mermaid diagram, then every row as a table."""
    moves: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for rule in TRANSITIONS:
        if rule.to is not rule.status:
            moves[rule.status, rule.to].append(rule.event)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> DEFERRED", "    [*] --> WAITING"]
    lines += [f"    {a} --> {b}: {', '.join(dict.fromkeys(events))}" for (a, b), events in moves.items()]
    lines += [f"    {status} --> [*]" for status in Status if status in TERMINAL]
    lines += ["```", "", "| status | event | to | when |", "|---|---|---|---|"]
    for rule in TRANSITIONS:
        to = "recorded" if rule.to is rule.status else rule.to
        lines.append(f"| {rule.status} | {rule.event} | {to} | {rule.guard or ''} |")
    return "\n".join([*lines, "", "Every other pair is refused."])


def main() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}\n{diagram()}\n{END}{after}"
    if "--check" in sys.argv:
        if fresh != page:
            sys.exit("ARCHITECTURE.md does not show the states as they are, run `make generate`")
        return
    PAGE.write_text(fresh)


if __name__ == "__main__":
    main()
