"""Questions to a running server, each answered within a few seconds; no answer is a no."""

import http.client
import json
import urllib.request
from typing import Any, cast

TIMEOUT_SECONDS = 3.0


def get_json(url: str, *, timeout: float = TIMEOUT_SECONDS) -> dict[str, Any] | None:
    """The JSON object at that address, None for anything else."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 - our own http addresses
            answer = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else None


def answers_ok(url: str) -> bool:
    """Whether a GET there is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - our own http addresses
            return response.status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


def available_runtimes(gateway: str) -> list[str]:
    """The runtimes that a live executor offers now."""
    answer = get_json(f"{gateway}/v1/runtimes") or {}
    runtimes = cast("list[dict[str, Any]]", answer.get("runtimes") or [])
    return [str(runtime.get("name")) for runtime in runtimes if runtime.get("available")]
