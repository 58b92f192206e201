"""Which runtimes this machine has, by its own index, and whether an image is what was built.

The folder, its index and the images must be this process's user's and closed to others' writing: what is in them
becomes the root of a sandbox. An image is hashed once; that it was, is remembered for as long as the machine runs, in a
file that only root may write, by what changes whenever the image does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from crucible_executor.sandbox.port import Cause, SandboxFault, SandboxLimits

INDEX_NAME: Final = "index.json"
_STEP_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """One runtime's image, and how its sandboxes are started and bounded."""

    runtime: str
    path: Path
    digest: str
    starter: str
    command: Sequence[str]
    default_entrypoint: str
    env: Mapping[str, str]
    default: SandboxLimits
    maximum: SandboxLimits
    identity: tuple[int, ...] = ()
    """See `identity`, the function; once it was verified."""


class Catalogue:
    """The images under one folder; reads the index at each call."""

    def __init__(self, folder: Path, record: Path) -> None:
        self._folder = folder
        self._record = record
        self._verified: set[str] = set()

    def find(self, runtime: str) -> Generator[float, None, Image]:
        """A runtime's image, verified; hashing one takes up to a second, in steps. Raises SandboxFault(IMAGE)."""
        image = self._look_up(runtime)
        try:
            status = image.path.stat()
            _require_closed(image.path, status)
            key = _key(image.digest, status)
            if key not in self._verified:
                self._verified |= self._recall()
            if key not in self._verified:
                hashed = hashlib.sha256()
                with image.path.open("rb") as file:
                    while step := file.read(_STEP_BYTES):
                        hashed.update(step)
                        yield 0.0
                if f"sha256:{hashed.hexdigest()}" != image.digest or _key(image.digest, image.path.stat()) != key:
                    raise SandboxFault(Cause.IMAGE, f"{image.path} is not what was built: its hash differs")
                self._verified.add(key)
                self._remember()
        except OSError as error:
            raise SandboxFault(Cause.IMAGE, f"{image.path} cannot be read: {error.strerror}") from error
        return replace(image, identity=identity(status))

    def _look_up(self, runtime: str) -> Image:
        path = self._folder / INDEX_NAME
        try:
            _require_closed(self._folder, self._folder.stat(), what="folder")
            _require_closed(path, path.stat())
            entry = json.loads(path.read_bytes())["runtimes"].get(runtime)
            if entry is None:
                raise SandboxFault(Cause.IMAGE, f"no image of runtime {runtime!r} under {self._folder}")
            return _image(self._folder, runtime, entry)
        except FileNotFoundError as error:
            raise SandboxFault(Cause.IMAGE, f"{path} is missing: no image was built there") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SandboxFault(Cause.IMAGE, f"{path} cannot be read: {error!r}") from error

    def _recall(self) -> set[str]:
        try:
            _require_closed(self._record, self._record.stat())
            return {line for line in self._record.read_text(encoding="ascii").splitlines() if line}
        except (OSError, ValueError, SandboxFault):
            return set()

    def _remember(self) -> None:
        fresh = self._record.with_name(f"{self._record.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # it is hashed again then
            self._record.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text("\n".join(sorted(self._verified | self._recall())), encoding="ascii")
            fresh.rename(self._record)


def _image(folder: Path, runtime: str, entry: dict[str, Any]) -> Image:
    definition = entry["definition"]
    kind, digest = str(definition["starter"]), str(entry["digest"])
    name = digest.removeprefix("sha256:")
    if definition["name"] != runtime or kind not in ("python", "sh") or not name.isalnum():
        raise ValueError(f"the entry of {runtime}")
    return Image(
        runtime=runtime,
        path=folder / f"{name}.erofs",
        digest=digest,
        starter=kind,
        command=[str(word) for word in definition["command"]],
        default_entrypoint=str(definition["default_entrypoint"]),
        env={str(name): str(value) for name, value in definition["env"].items()},
        default=_limits(definition["limits"]["default"]),
        maximum=_limits(definition["limits"]["maximum"]),
    )


def _limits(entry: dict[str, Any]) -> SandboxLimits:
    return SandboxLimits(
        wall_time=float(entry["wall_time"]),
        cpu_time=float(entry["cpu_time"]),
        memory_bytes=int(entry["memory_bytes"]),
        disk_bytes=int(entry["disk_bytes"]),
        output_bytes=int(entry["output_bytes"]),
        processes=int(entry["processes"]),
        open_files=int(entry["open_files"]),
    )


def _require_closed(path: Path, status: os.stat_result, *, what: str = "file") -> None:
    is_that = stat.S_ISDIR if what == "folder" else stat.S_ISREG
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not is_that(status.st_mode):
        raise SandboxFault(Cause.IMAGE, f"{path} must be a {what} that only its owner, the launcher's user, may write")


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Device and inode, which change when a file is another; size and time of change, when it is written to."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _key(digest: str, status: os.stat_result) -> str:
    return f"{digest} {status.st_dev}:{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
