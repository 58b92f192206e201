"""Names that several services must agree on and that protobuf has no place for.

`subjects` holds NATS subjects and streams, `objects` the names in the object store, `limits` the figures of the
protocol; `policy` reads the method options, and `proto_json` writes messages as JSON.
"""

ERROR_DOMAIN = "crucible.dev"
"""`ErrorInfo.domain` of every error; its reasons are `crucible.v1.ErrorReason`."""

DEFAULT_TENANT = "default"
"""The tenant of every evaluation until there are others."""

DEFAULT_POOL = "default"
"""The pool of executors and evaluations that name none."""
