"""Requests against the rules of the contract (protovalidate), which are compiled at start-up."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

import protovalidate
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from crucible_chassis.errors import FieldViolation, invalid_argument


class BadContractError(Exception):
    """A rule of the contract cannot be compiled, or names no field."""


class RequestValidator:
    """Checks messages against their `buf.validate` rules. `BadContractError` from the constructor: a rule is wrong.

    The id of a rule of a message, which may be about several of its fields, is `<field>.<rule>`: the field to be named.
    """

    def __init__(self, descriptors: Iterable[Descriptor]) -> None:
        self._validator = protovalidate.Validator()
        for descriptor in descriptors:
            _require_fields(descriptor)
            # Compilation is lazy: the first validation of each type does it, so it is done here and not under load.
            empty = message_factory.GetMessageClass(descriptor)()
            try:
                self._validator.collect_violations(empty, fail_fast=True)
            except protovalidate.CompilationError as exc:
                msg = f"the rules of {descriptor.full_name} cannot be compiled: {exc}"
                raise BadContractError(msg) from exc
            except protovalidate.EvaluationError:
                # A rule that cannot be evaluated on an empty message has compiled.
                continue

    def check(self, message: Message) -> None:
        """Returns for a valid message; else `ServiceError` INVALID_ARGUMENT with every violated field and its limit."""
        violations = self._validator.collect_violations(message)
        if violations:
            root = cast("Descriptor", message.DESCRIPTOR)
            raise invalid_argument([_violation(root, violation) for violation in violations])


def _violation(root: Descriptor, violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    at: Descriptor | None = root
    if proto.field is not None:
        for element in proto.field.elements:
            path = _join(path, element.field_name)
            field = at.fields_by_name.get(element.field_name) if at is not None else None
            at = field.message_type if field is not None else None
            if element.subscript is not None:
                path += f"[{_subscript(element.subscript.value)}]"
                if at is not None and at.GetOptions().map_entry:
                    at = at.fields_by_name["value"].message_type
    if at is not None and proto.rule_id in _message_rules(at):
        path = _join(path, proto.rule_id.partition(".")[0])
    return FieldViolation(path, plain_words(proto.message or proto.rule_id))


_PHRASES = [
    (re.compile(rf"^{pattern}$", re.DOTALL), words)
    for pattern, words in (
        (r"must be greater than or equal to (\S+) and less than or equal to (\S+)", r"must be from \1 to \2"),
        (r"must be greater than or equal to (\S+)", r"must be at least \1"),
        (r"must be less than or equal to (\S+)", r"must be at most \1"),
        (r"must be in list \[(.*)\]", r"must be one of: \1"),
        (r"must contain no more than (\d+) item\(s\)", r"must have at most \1 items"),
        (r"must contain at least 1 item\(s\)", r"must have at least one item"),
        (r"must contain at least (\d+) item\(s\)", r"must have at least \1 items"),
        (r"map must be at most (\d+) entries", r"must have at most \1 entries"),
        (r"must be at least 1 characters", r"must not be empty"),
        (r"does not match regex pattern `(.*)`", r"must match the pattern \1"),
        (r"value is required", r"is required"),
        (r"value (must .*)", r"\1"),
    )
]


def plain_words(message: str) -> str:
    """A standard rule's message, shortened to what a person would say; any other as it is."""
    for pattern, words in _PHRASES:
        if pattern.match(message):
            return pattern.sub(words, message)
    return message


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _subscript(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@functools.cache
def _message_rules(descriptor: Descriptor) -> frozenset[str]:
    """Ids of the rules that stand at the message itself. Cached: one entry for each message of the contract."""
    try:
        # By name: the chassis has no contract of its own, and what states rules brings the module they are written in.
        extension: Any = descriptor.file.pool.FindExtensionByName("buf.validate.message")
    except KeyError:
        return frozenset()
    return frozenset(str(rule.id) for rule in descriptor.GetOptions().Extensions[extension].cel)


def _require_fields(root: Descriptor) -> None:
    for descriptor in _reachable(root, set()):
        for rule in _message_rules(descriptor):
            if rule.partition(".")[0] not in descriptor.fields_by_name:
                msg = f"the rule {rule!r} of {descriptor.full_name} names no field of it"
                raise BadContractError(msg)


def _reachable(descriptor: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    yield descriptor
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None:
            yield from _reachable(inner, seen)
