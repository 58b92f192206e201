"""The contract's comments, which generated Python leaves out: read from `descriptions.json`.

That file is made by `gateway/generate_descriptions.py` from the .proto files and committed; a test tells when it is out
of date.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import cast


def describe(full_name: str) -> str:
    """The comment of a message, field, enum, enum value, service, method or oneof; empty where there is none.

    Enum values are named below their enum (`crucible.v1.Evaluation.Status.QUEUED`).
    """
    return _descriptions().get(full_name, "")


@functools.cache
def _descriptions() -> Mapping[str, str]:
    text = importlib.resources.files("crucible_gateway").joinpath("descriptions.json").read_text("utf-8")
    return cast("dict[str, str]", json.loads(text))
