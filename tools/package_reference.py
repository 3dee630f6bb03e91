"""Write the reference of the shipped packages into docs/packages from their manifests.

`python tools/package_reference.py [--check]`; with --check nothing is written, and exit 1 says which pages are stale.
"""

import sys
from pathlib import Path

from sis.packages import manifest, reference, shipped

PAGES = Path(__file__).resolve().parent.parent / "docs" / "packages"
INDEX = PAGES / "README.md"
MARK = "<!-- by `make generate`, from the manifests in packages/ -->\n\n"
INTRODUCTION = """# Packages

What is shipped with the suite. `sis packages show NAME` says the same of any package in the library, and
[Writing a package](authoring.md) tells how to make one.

"""


def pages() -> dict[Path, str]:
    """Each page with its text."""
    manifests = [manifest.load(path.parent) for path in sorted(shipped().glob(f"*/{manifest.FILE_NAME}"))]
    written = {PAGES / f"{each.name}.md": MARK + reference.page(each) for each in manifests}
    return {**written, INDEX: MARK + INTRODUCTION + reference.index(manifests)}


def main() -> None:
    fresh = pages()
    there = {path: text for path in PAGES.glob("*.md") if (text := path.read_text()).startswith(MARK)}
    if "--check" in sys.argv:
        stale = sorted(path.name for path in fresh.keys() | there.keys() if fresh.get(path) != there.get(path))
        if stale:
            sys.exit(f"docs/packages is not what the manifests say, run `make generate`: {', '.join(stale)}")
        return
    for path in there.keys() - fresh.keys():
        path.unlink()
    for path, text in fresh.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
