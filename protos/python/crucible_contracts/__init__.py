"""Names that several services must agree on and that protobuf has no place for.

`subjects` holds NATS subjects and streams, `policy` reads the method options, `limits` the figures of the protocol,
`proto_json` how messages look as JSON.
"""

ERROR_DOMAIN = "crucible.dev"
"""`ErrorInfo.domain` of every error; its reasons are `crucible.v1.ErrorReason`."""

DEFAULT_TENANT = "default"
"""The tenant of every evaluation until there are others."""

DEFAULT_POOL = "default"
"""The pool of executors and evaluations that name none."""
