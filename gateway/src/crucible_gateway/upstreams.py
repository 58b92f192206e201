"""The services behind the gateway: which one serves an rpc, how it is called, and whether it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from crucible_chassis.errors import ServiceError, from_rpc_error


@dataclass(frozen=True, slots=True)
class Upstream:
    """A channel, and the services of the contract that are asked for through it."""

    name: str
    channel: grpc.aio.Channel
    services: Sequence[ServiceDescriptor]

    @property
    def serving(self) -> bool:
        """Whether at least one of its servers says SERVING.

        The channel watches their health itself, so asking costs no call; an idle channel begins to connect.
        """
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def unary(self, rpc: MethodDescriptor) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        """A callable for an rpc with one answer."""
        request, response = _classes(rpc)
        return self.channel.unary_unary(
            _path(rpc), request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )

    def stream(self, rpc: MethodDescriptor) -> grpc.aio.UnaryStreamMultiCallable[Any, Any]:
        """A callable for an rpc that streams its answers."""
        request, response = _classes(rpc)
        return self.channel.unary_stream(
            _path(rpc), request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )

    def failure(self, exc: grpc.aio.AioRpcError | TimeoutError) -> ServiceError:
        """Why a call of its failed. What no service gave a reason for names this part."""
        if isinstance(exc, TimeoutError):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            return ServiceError(code, code.name, "", metadata={"part": self.name})
        error = from_rpc_error(exc)
        if error.reason != error.code.name:
            return error
        return ServiceError(error.code, error.reason, error.message, metadata={"part": self.name})


def _classes(rpc: MethodDescriptor) -> tuple[Any, Any]:
    return message_factory.GetMessageClass(rpc.input_type), message_factory.GetMessageClass(rpc.output_type)


def _path(rpc: MethodDescriptor) -> str:
    return f"/{rpc.containing_service.full_name}/{rpc.name}"
