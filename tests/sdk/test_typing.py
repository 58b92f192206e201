"""The package's types: what callers may write, and what a type checker must refuse them."""

import json
import subprocess
import sys
from pathlib import Path

import crucible_client

SAMPLES = Path(__file__).parent / "typing_samples"


def test_every_public_name_is_there_and_nothing_else() -> None:
    for name in crucible_client.__all__:
        assert getattr(crucible_client, name).__name__ == name
    assert not hasattr(crucible_client, "nothing")


def test_the_types_accept_what_is_right_and_refuse_what_is_wrong(tmp_path: Path) -> None:
    # Kept as text, or the repository's own checks would read them.
    for name in ("accepted", "rejected"):
        (tmp_path / f"{name}.py").write_text((SAMPLES / f"{name}.py.txt").read_text())
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "pythonVersion": "3.11"}))
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    problems = json.loads(checked.stdout)["generalDiagnostics"]
    found = {(Path(p["file"]).name, p["range"]["start"]["line"] + 1): p["message"] for p in problems}
    lines = (SAMPLES / "rejected.py.txt").read_text().splitlines()
    expected = {("rejected.py", number) for number, line in enumerate(lines, start=1) if line.endswith("# wrong")}
    assert set(found) == expected, found
