"""The baselines: a cold `runsc run` of the same program, as one would type it by hand, and as the executor would.

By hand: default flags, a directory as the root, the specification that `runsc spec` writes, the same runsc and the same
files as Crucible's own image. One flag is not the default: `--network=none`, which makes the baseline a little faster,
and without which some builds of runsc do not start on some kernels. As the executor: its flags and its specification.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from crucible_executor.sandbox.gvisor import spec
from crucible_executor.sandbox.image import BuiltImage

COMMAND = ("/usr/bin/python3", "-c", "print(1)")
OWN_FLAGS = (
    "--platform=systrap",
    "--network=none",
    "--directfs=false",
    "--overlay2=none",
    "--host-uds=none",
    "--ignore-cgroups=true",
    "--oci-seccomp=true",
)
"""The executor's, but for those that say where to report."""


@contextmanager
def directory_root(image: Path) -> Generator[Path]:
    """The files of an EROFS image as a folder, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as folder:
        root = Path(folder) / "rootfs"
        subprocess.run(["fsck.erofs", f"--extract={root}", str(image)], check=True, capture_output=True)
        yield root


def executors_own(folder: Path, image: BuiltImage, path: Path) -> BareRunsc:
    """With the executor's flags and specification, but for the command: what it adds to `runsc` shows beside this."""
    limits = image.definition.limits
    empty = folder / secrets.token_hex(4)
    empty.mkdir()
    specification = spec.build(
        image.definition,
        most=limits.maximum.as_limits(),
        image=path,
        empty_root=empty,
        disk_bytes=limits.default.as_limits().disk_bytes,
    )
    cast("dict[str, Any]", specification["process"])["args"] = list(COMMAND)
    return BareRunsc(folder / "rootfs", COMMAND, flags=OWN_FLAGS, specification=specification)


class BareRunsc:
    """Runs one command in a cold sandbox, again and again; with flags and a specification, if told."""

    def __init__(
        self,
        root: Path,
        command: Sequence[str],
        *,
        flags: Sequence[str] = ("--network=none",),
        specification: Mapping[str, object] | None = None,
    ) -> None:
        self._flags = flags
        self._bundle = root.parent / secrets.token_hex(4)
        self._bundle.mkdir()
        path = self._bundle / "config.json"
        if specification is None:
            subprocess.run(["runsc", "spec"], cwd=self._bundle, check=True)
            by_hand = json.loads(path.read_text(encoding="utf-8"))
            by_hand["process"]["args"] = list(command)
            by_hand["process"]["terminal"] = False
            by_hand["root"]["path"] = str(root)
            specification = by_hand
        path.write_text(json.dumps(specification), encoding="utf-8")

    def run(self, expected: bytes) -> float:
        """Seconds from typing to the prompt's return. Raises when the program did not print `expected`."""
        name = secrets.token_hex(16)
        began = time.perf_counter()
        done = subprocess.run(
            ["runsc", *self._flags, "run", "--bundle", str(self._bundle), name],
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
