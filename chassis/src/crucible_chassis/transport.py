"""Channel arguments both ends of a gRPC connection must agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one message, sent or received, on either side."""

MAX_METADATA_BYTES = 32 * 1024
"""Of a call's headers: a status with its details is larger than the default of 8 KiB allows for."""

KEEPALIVE_SECONDS = 10
"""A peer pings after this long without data ..."""
KEEPALIVE_TIMEOUT_SECONDS = 5
"""... and takes the connection for dead after this long without an answer."""

Options = list[tuple[str, str | int]]

_UNAVAILABLE = "UNAVAILABLE"


def _both(max_message_bytes: int) -> Options:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(max_message_bytes: int) -> Options:
    """Arguments of a server."""
    return [
        *_both(max_message_bytes),
        # With the default on, a second process binds the same port in silence and takes half of the connections.
        ("grpc.so_reuseport", 0),
        # Half of what clients do, so that a jittering clock never becomes GOAWAY ENHANCE_YOUR_CALM.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    ]


def client_options(max_message_bytes: int, service_names: Sequence[str]) -> Options:
    """Arguments of a channel: its service config, and reconnecting fast enough for a replica to take over."""
    return [
        *_both(max_message_bytes),
        ("grpc.service_config", json.dumps(service_config(service_names))),
        # The config is ours: none is asked of DNS.
        ("grpc.service_config_disable_resolution", 1),
        # A mesh is never behind the http_proxy of somebody's shell.
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 3000),
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
    ]


def service_config(service_names: Sequence[str]) -> dict[str, object]:
    """round_robin over the servers that say SERVING, and retries of UNAVAILABLE for these services (none: for all).

    Retries stop while more than half of the recent calls failed (`retryThrottling`), so that they never finish off a
    server that is barely alive.
    """
    names = [{"service": name} for name in service_names] or [{}]
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        # The server's overall health: it is the same for all of its services.
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": [_UNAVAILABLE],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
