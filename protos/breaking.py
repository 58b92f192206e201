"""Compares the contracts with those released before, so that no name or number in use changes its meaning.

Works without a network: the other side is read from this repository's own history.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def resolve(*arguments: str) -> str | None:
    """What git prints for `arguments`, or None when it has no answer."""
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 and found.stdout.strip() else None


def base_commit() -> str | None:
    """What to compare with: the newest release, else main where it is elsewhere, else the commit before this one."""
    head = resolve("rev-parse", "HEAD")
    if release := resolve("describe", "--tags", "--match", "v*", "--abbrev=0"):
        return release
    for branch in ("origin/main", "main"):
        commit = resolve("rev-parse", "--verify", "--quiet", branch)
        if commit and commit != head:
            return commit
    return resolve("rev-parse", "--verify", "--quiet", "HEAD~1")


def main() -> int:
    """Runs the comparison."""
    base = base_commit()
    if base is None:
        sys.stdout.write("breaking: no earlier commit to compare with\n")
        return 0
    command = [Path(sys.executable).parent / "buf", "breaking", "--against", f".git#ref={base}"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
