"""The object store as an executor uses it: long outputs up, large programs down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
import obstore.exceptions
import obstore.store

CALL_SECONDS = 60.0
"""An upload or a download is given up after this."""


class ObjectError(Exception):
    """The object store did not do what it was asked; `__cause__` says why."""


class Objects(Protocol):
    """Named bytes."""

    async def put(self, name: str, file: IO[bytes]) -> None:
        """Stores a file from its beginning, in place of what has this name. Raises ObjectError."""
        ...

    async def get(self, name: str) -> bytes:
        """The bytes of that name. Raises ObjectError."""
        ...


class ObjectStore:
    """A bucket or a folder, behind obstore."""

    def __init__(self, store: obstore.store.ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, file: IO[bytes]) -> None:
        """See `Objects`."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                file.seek(0)
                await obstore.put_async(self._store, name, file)
        except (obstore.exceptions.BaseError, OSError) as exc:
            raise ObjectError(f"{name} cannot be stored") from exc

    async def get(self, name: str) -> bytes:
        """See `Objects`."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer = await obstore.get_async(self._store, name)
                return bytes(await answer.bytes_async())
        except (obstore.exceptions.BaseError, OSError) as exc:
            raise ObjectError(f"{name} cannot be read") from exc


def open_object_store(url: str) -> ObjectStore:
    """The store at `file:///folder`, made if missing, or at a bucket's URL, with credentials of the environment."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return ObjectStore(obstore.store.LocalStore(Path(url2pathname(parts.path)), mkdir=True))
    return ObjectStore(obstore.store.from_url(url))
