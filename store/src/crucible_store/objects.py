"""The object store: large programs and large outputs. Its failures are translated here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import grpc
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_contracts import objects

PIECE_BYTES = 1024 * 1024
"""An object is read in pieces of this size."""

log = get_logger(__name__)


class ObjectMissingError(Exception):
    """No object has this name."""


def open_objects(url: str) -> Objects:
    """The object store of a URL. `file:///folder` is made where it is missing."""
    if url.startswith("file://"):
        folder = Path(unquote(urlsplit(url).path))
        folder.mkdir(parents=True, exist_ok=True)
        return Objects(LocalStore(prefix=folder))
    return Objects(from_url(url))


class Objects:
    """Raises ServiceError UNAVAILABLE (DEPENDENCY_UNAVAILABLE) from every method while the store is away."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put_program(self, sha256: str, program: bytes) -> None:
        """Keeps a serialized `Program` under its hash; putting it again changes nothing."""
        try:
            await obstore.put_async(self._store, objects.program(sha256), program)
        except (BaseError, OSError) as exc:
            _away(exc)

    async def size(self, name: str) -> int:
        """Bytes of an object. Raises ObjectMissingError."""
        try:
            return (await obstore.head_async(self._store, name))["size"]
        except FileNotFoundError as exc:
            raise ObjectMissingError(name) from exc
        except (BaseError, OSError) as exc:
            _away(exc)

    async def read(self, name: str, start: int, length: int) -> AsyncIterator[bytes]:
        """The bytes from `start`, in pieces. Raises ObjectMissingError."""
        end = start + length
        while start < end:
            piece = min(PIECE_BYTES, end - start)
            try:
                data = await obstore.get_range_async(self._store, name, start=start, length=piece)
            except FileNotFoundError as exc:
                raise ObjectMissingError(name) from exc
            except (BaseError, OSError) as exc:
                _away(exc)
            yield bytes(data)
            start += piece


def _away(error: Exception) -> NoReturn:
    log.warning("objects.away", error=type(error).__name__)
    raise ServiceError(
        grpc.StatusCode.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the object store is unavailable; try again",
        metadata={"part": "object store"},
        retry_after=2,
    ) from error
