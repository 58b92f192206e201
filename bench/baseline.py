"""The baseline: a cold `runsc run` of the same program, as one would type it by hand.

Default flags, a directory as the root, the specification that `runsc spec` writes, the same runsc and the same files as
Crucible's own image. One flag is not the default: `--network=none`, which makes the baseline a little faster, and
without which some builds of runsc do not start on some kernels.
"""

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = ("/usr/bin/python3", "-c", "print(1)")


@contextmanager
def directory_root(image: Path) -> Generator[Path]:
    """The files of an EROFS image as a folder, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as folder:
        root = Path(folder) / "rootfs"
        subprocess.run(["fsck.erofs", f"--extract={root}", str(image)], check=True, capture_output=True)
        yield root


class BareRunsc:
    """Runs one command in a cold sandbox, again and again; with flags and annotations, if told."""

    def __init__(
        self,
        root: Path,
        command: Sequence[str],
        *,
        flags: Sequence[str] = (),
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        self._flags = flags
        self._bundle = root.parent / secrets.token_hex(4)
        self._bundle.mkdir()
        subprocess.run(["runsc", "spec"], cwd=self._bundle, check=True)
        path = self._bundle / "config.json"
        spec = json.loads(path.read_text())
        spec["process"]["args"] = list(command)
        spec["process"]["terminal"] = False
        spec["root"]["path"] = str(root)
        spec["annotations"] = dict(annotations or {})
        path.write_text(json.dumps(spec))

    def run(self, expected: bytes) -> float:
        """Seconds from typing to the prompt's return. Raises when the program did not print `expected`."""
        name = secrets.token_hex(16)
        began = time.perf_counter()
        done = subprocess.run(
            ["runsc", "--network=none", "run", "--bundle", str(self._bundle), name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        took = time.perf_counter() - began
        if done.returncode != 0 or done.stdout != expected:
            raise RuntimeError(
                f"the bare run failed with {done.returncode}: {done.stderr.decode(errors='replace')[:500]}"
            )
        return took


def require_tools() -> None:
    """Raises when a tool of the baseline is missing."""
    for tool in ("runsc", "fsck.erofs"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is missing; run `make host`")
