"""The built images of a machine: the index beside them, and whether an image is what the index says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict

from crucible_executor.sandbox.port import Cause, SandboxFault
from crucible_executor.sandbox.runtimes import RuntimeDefinition

DEFAULT_IMAGES_DIR = Path("/var/lib/crucible/images")
INDEX_NAME = "index.json"


class BuiltImage(BaseModel):
    """One runtime's image, as its builder recorded it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    """`sha256:<hex>` of the image file; the file is `<hex>.erofs`."""
    size_bytes: int
    inputs: str
    """Hash of all that went into the build: equal inputs need no new build."""
    version: str
    """What the runtime's version command printed."""
    definition: RuntimeDefinition

    @property
    def file_name(self) -> str:
        """Name of the image in its folder."""
        return f"{self.digest.removeprefix('sha256:')}.erofs"


class ImageIndex(BaseModel):
    """What `index.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    runtimes: dict[str, BuiltImage]


class ImageStore:
    """The images under one folder. Reads the index at each call; an image is hashed once for each file it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[tuple[str, int, int, int]] = set()

    def index(self) -> ImageIndex:
        """The index; raises SandboxFault(IMAGE) when there is none or it does not parse."""
        path = self.folder / INDEX_NAME
        try:
            return ImageIndex.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise SandboxFault(Cause.IMAGE, f"{path} is missing: no image was built there") from error
        except (OSError, pydantic.ValidationError) as error:
            raise SandboxFault(Cause.IMAGE, f"{path} cannot be read: {error}") from error

    def find(self, runtime: str) -> tuple[BuiltImage, Path]:
        """A runtime's image, verified; hashing one for the first time takes up to a second.

        Raises SandboxFault(IMAGE) when there is none or when it is not what was built.
        """
        image = self.index().runtimes.get(runtime)
        if image is None:
            raise SandboxFault(Cause.IMAGE, f"no image of runtime {runtime!r} under {self.folder}")
        path = self.folder / image.file_name
        try:
            status = path.stat()
            key = (image.digest, status.st_ino, status.st_mtime_ns, status.st_size)
            if key not in self._verified:
                if image_digest(path) != image.digest:
                    raise SandboxFault(Cause.IMAGE, f"{path} is not what was built: its hash differs from its name")
                self._verified.add(key)
        except OSError as error:
            raise SandboxFault(Cause.IMAGE, f"{path} cannot be read: {error}") from error
        return image, path


def image_digest(path: Path) -> str:
    """`sha256:<hex>` of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
