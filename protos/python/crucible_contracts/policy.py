"""Reads the options that every rpc states in the contract, and what goes with them."""

from google.protobuf.descriptor import MethodDescriptor

from crucible.v1 import policy_pb2

STREAM_OPEN = ("crucible-stream", "open")
"""Initial metadata of a stream that has nothing to send yet: the call is granted, and its messages will come."""


def method_policy(method: MethodDescriptor) -> policy_pb2.MethodPolicy | None:
    """The policy a method states; None when it states none, or names no caller."""
    options = method.GetOptions()
    if not options.HasExtension(policy_pb2.policy):
        return None
    policy = options.Extensions[policy_pb2.policy]
    return policy if policy.callers and 0 not in policy.callers else None
