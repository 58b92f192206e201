"""The process shell every service shares: settings, logs, gRPC both ways, NATS, telemetry, supervised tasks.

A module enters only when two services need it, and none knows a noun of Crucible's.
"""
