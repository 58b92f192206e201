"""Requests against the rules of the contract (protovalidate), which are compiled at start-up."""

from __future__ import annotations

from collections.abc import Iterable

import protovalidate
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from crucible_chassis.errors import FieldViolation, invalid_argument


class BadContractError(Exception):
    """A rule of the contract cannot be compiled."""


class RequestValidator:
    """Checks messages against their `buf.validate` rules. `BadContractError` from the constructor: a rule is wrong."""

    def __init__(self, descriptors: Iterable[Descriptor]) -> None:
        self._validator = protovalidate.Validator()
        for descriptor in descriptors:
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
            raise invalid_argument([_violation(violation) for violation in violations])


def _violation(violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    if proto.field is not None:
        for element in proto.field.elements:
            path += f".{element.field_name}" if path else element.field_name
            if element.subscript is not None:
                path += f"[{_subscript(element.subscript.value)}]"
    return FieldViolation(path, proto.message or proto.rule_id)


def _subscript(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
