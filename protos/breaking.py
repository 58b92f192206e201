"""Compares the contracts with those of the main branch, so that no released name or number changes its meaning.

Works without a network: the other side is read from this repository's own history.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = ("origin/main", "main")


def base_commit() -> str | None:
    """The newest commit of main that is not the one checked out; None in a repository too young to have one."""
    for branch in CANDIDATES:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", branch], cwd=ROOT, capture_output=True, text=True, check=False
        )
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout != head.stdout:
            return found.stdout.strip()
    parent = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "HEAD~1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return parent.stdout.strip() or None


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
