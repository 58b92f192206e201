"""The corpus of `conformance.toml`, read."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict


class Case(BaseModel):
    """One program with its surroundings; of each pair of text and base64 at most one is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    source_base64: bytes = b""
    args: tuple[str, ...] = ()
    stdin: str = ""
    stdin_base64: bytes = b""
    env: Mapping[str, str] = {}
    files: Mapping[str, str] = {}

    @property
    def program(self) -> bytes:
        """The source's bytes."""
        return base64.b64decode(self.source_base64) or self.source.encode()

    @property
    def input(self) -> bytes:
        """What it reads."""
        return base64.b64decode(self.stdin_base64) or self.stdin.encode()


def load_programs() -> Mapping[str, Mapping[str, Case]]:
    """By group and name."""
    text = Path(__file__).with_name("conformance.toml").read_text(encoding="utf-8")
    return pydantic.TypeAdapter(dict[str, dict[str, Case]]).validate_python(tomllib.loads(text))
