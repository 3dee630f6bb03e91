"""Write the published schema of `package.yaml` into docs/packages from the models in `sis/packages`.

`python tools/package_schema.py [--check]`; with --check nothing is written, and exit 1 says that the page is stale.
"""

import sys
from pathlib import Path

from sis.packages import schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "packages" / "package.schema.json"


def main() -> None:
    fresh = schema.text()
    if "--check" in sys.argv:
        if not PAGE.exists() or fresh != PAGE.read_text():
            sys.exit(f"{PAGE.name} is not what `sis/packages` says, run `make generate`")
        return
    PAGE.write_text(fresh)


if __name__ == "__main__":
    main()
