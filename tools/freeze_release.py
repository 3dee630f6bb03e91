"""Keep the code of a release for the tests of upgrades: `python tools/freeze_release.py [COMMIT]`.

What of COMMIT (HEAD) its processes need becomes `tests/migration/released.tar.xz`, in place of the release before, so
that the tests need no history of git. Done as a release is made. The same commit gives the same bytes.
"""

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "tests" / "migration" / "released.tar.xz"
PARTS = ("services", "sis", "gateway", "packages", "deploy/vault")


def main() -> None:
    named = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    commit = git("rev-parse", "--verify", f"{named}^{{commit}}").decode().strip()
    tree = git("archive", commit, *PARTS)
    with tarfile.open(fileobj=io.BytesIO(tree)) as archive:
        count = sum(member.isfile() for member in archive)
    RELEASED.write_bytes(lzma.compress(tree, preset=9 | lzma.PRESET_EXTREME))
    print(f"{RELEASED.relative_to(ROOT)}: {count} files of {commit}, {RELEASED.stat().st_size} bytes")


def git(*arguments: str) -> bytes:
    """What git says; it says on standard error what is wrong."""
    program = shutil.which("git")
    if program is None:
        sys.exit("error: there is no git here")
    done = subprocess.run([program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"error: git {arguments[0]} failed")
    return done.stdout


if __name__ == "__main__":
    main()
