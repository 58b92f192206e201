"""The README's commands do what it says."""

import re
import subprocess
import sys
from pathlib import Path

from crucible_testkit.stack import Stack

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_shell_block_runs(stack: Stack, tmp_path: Path) -> None:
    found = blocks("sh")
    assert len(found) >= 4
    script = "set -eux\n" + "\n".join(found)
    script = script.replace("localhost:8080", stack.address).replace("uv run ", "")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"COMPLETED"' in done.stdout
    assert "WALL_TIME_EXCEEDED" in done.stdout
    assert "event: finished" in done.stdout
    assert "hello world" in done.stdout


def test_the_python_block_runs(stack: Stack) -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], env=stack.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "COMPLETED SUCCEEDED 45\n\n"
