"""What the gateway serves of its own: health, metrics, the description of the API, and a page that shows it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crucible_chassis.metrics import render_metrics
from crucible_gateway import json_writer
from crucible_gateway.exchange import JSON, NO_STORE, Exchange

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
_REVALIDATE = ("cache-control", "no-cache")


class Page:
    """A document that never changes."""

    def __init__(self, body: bytes, content_type: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._body = body
        self._content_type = content_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._headers = (_REVALIDATE, ("etag", self._etag), *headers)

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """The document, or 304."""
        await exchange.refuse_body()
        if self._etag in exchange.headers.get("if-none-match", ""):
            await exchange.begin(304, self._headers)
            await exchange.write(last=True)
            return
        await exchange.answer(200, self._body, self._content_type, self._headers)


class Redirect:
    """Leads to another page; whoever does not follow reads a line."""

    def __init__(self, location: str, line: str) -> None:
        self._headers = (NO_STORE, ("location", location))
        self._body = f"{line}\n".encode()

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """302."""
        await exchange.refuse_body()
        await exchange.answer(302, self._body, TEXT, self._headers)


class Health:
    """`/healthz`: the process runs."""

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """200."""
        await exchange.answer(200, b"ok\n", TEXT, (NO_STORE,))


class Readiness:
    """`/readyz`: what the gateway needs is there."""

    def __init__(self, missing: Callable[[], Sequence[str]]) -> None:
        self._missing = missing

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """200, or 503 with the names of what is not there."""
        missing = self._missing()
        words = f"not ready: {', '.join(missing)}\n" if missing else "ready\n"
        await exchange.answer(503 if missing else 200, words.encode(), TEXT, (NO_STORE,))


class Metrics:
    """`/metrics`, for Prometheus."""

    async def handle(self, exchange: Exchange, variables: Mapping[str, str]) -> None:
        """All metrics of the process."""
        body, content_type = render_metrics(exchange.headers.get("accept"))
        await exchange.answer(200, body, content_type, (NO_STORE,))


def openapi_page(document: Mapping[str, Any]) -> Page:
    """`/openapi.json`."""
    return Page(json_writer.encode(document), JSON)


def docs_page() -> Page:
    """`/docs`: one file that fetches nothing but `/openapi.json`; its policy lets it do nothing else."""
    text = importlib.resources.files("crucible_gateway").joinpath("docs.html").read_text("utf-8")
    script, style = (_hashed(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(text.encode(), HTML, (("content-security-policy", policy), ("referrer-policy", "no-referrer")))


def _hashed(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None, f"docs.html has no <{tag}>"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found.group(1).encode()).digest()).decode()}'"
