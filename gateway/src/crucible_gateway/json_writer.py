"""Messages and documents into the text of JSON."""

from __future__ import annotations

import json
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from crucible_contracts.proto_json import write_value

# JSON leaves them as they are, and many readers of lines, Python's among them, split at them.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def write_json(message: Message, field: str = "") -> bytes:
    """The message, or one field of it (its proto name), as compact JSON in UTF-8, in one line."""
    value: Any = write_value(message)
    if field:
        value = value.get(cast("Descriptor", message.DESCRIPTOR).fields_by_name[field].json_name)
    return encode(value)


def encode(value: object) -> bytes:
    """JSON values as compact text in one line, whatever the reader takes for the end of a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode() if not text.isascii() else text.encode()
