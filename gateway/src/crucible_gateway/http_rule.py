"""Paths of `google.api.http`: the template syntax, and a router that matches raw request paths against templates.

Owns syntax and precedence alone: it knows neither messages nor methods of the contract.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ANY = "*"
"""A segment of any text. No literal can be this: `*` in a literal must be percent-encoded."""
REST = "**"
"""Any number of segments, none included; only as the last."""

MAX_SEGMENTS = 64
"""Segments of a path that is matched at all."""

_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()+,;=@]|%[0-9A-Fa-f]{2})+")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH = re.compile(r"(%2[Ff])")

T = TypeVar("T")


class TemplateError(ValueError):
    """A template of the contract does not follow the syntax, or two of them match the same paths."""


class PathError(ValueError):
    """A request path holds escapes that are no UTF-8 text."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A named part of a path: `segments[start:end]`, bound to a field."""

    field_path: str
    """Dotted, in proto names."""
    start: int
    end: int
    multiple: bool
    """Its template is not one single segment: `%2F` in it stays encoded."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template: `segments` are decoded literals, `ANY` and `REST`; `verb` may be empty."""

    text: str
    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str

    @property
    def shape(self) -> tuple[tuple[str, ...], str]:
        """What decides which paths match: two templates of one shape match the same paths."""
        return self.segments, self.verb


def parse_template(text: str) -> Template:
    """Parses a template. `TemplateError` names the template and the column."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._segments: list[str] = []
        self._variables: list[Variable] = []

    def parse(self) -> Template:
        self._expect("/")
        self._parse_segments(inside_variable=False)
        verb = ""
        if self._take(":"):
            verb = self._parse_literal()
        if self._at != len(self._text):
            raise self._error("unexpected text")
        if REST in self._segments[:-1]:
            raise self._error("** must be the last segment")
        paths = [variable.field_path for variable in self._variables]
        if len(set(paths)) != len(paths):
            raise self._error("a variable stands twice")
        return Template(self._text, tuple(self._segments), tuple(self._variables), verb)

    def _parse_segments(self, *, inside_variable: bool) -> None:
        while True:
            if self._take("**"):
                self._segments.append(REST)
            elif self._take("*"):
                self._segments.append(ANY)
            elif not inside_variable and self._take("{"):
                self._parse_variable()
            else:
                self._segments.append(self._parse_literal())
            if not self._take("/"):
                return

    def _parse_variable(self) -> None:
        names = [self._parse_ident()]
        while self._take("."):
            names.append(self._parse_ident())
        start = len(self._segments)
        if self._take("="):
            self._parse_segments(inside_variable=True)
        else:
            self._segments.append(ANY)
        self._expect("}")
        captured = self._segments[start:]
        self._variables.append(
            Variable(".".join(names), start, len(self._segments), multiple=len(captured) > 1 or captured == [REST])
        )

    def _parse_ident(self) -> str:
        found = _IDENT.match(self._text, self._at)
        if found is None:
            raise self._error("a field name is expected")
        self._at = found.end()
        return found.group()

    def _parse_literal(self) -> str:
        found = _LITERAL.match(self._text, self._at)
        if found is None:
            raise self._error("a segment is expected")
        self._at = found.end()
        literal = decode(found.group())
        if literal in (ANY, REST):
            raise self._error("a literal cannot be a wildcard")
        return literal

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self._error(f"{token} is expected")

    def _error(self, what: str) -> TemplateError:
        return TemplateError(f"{self._text!r}, column {self._at + 1}: {what}")


def decode(raw: str, *, keep_slashes: bool = False) -> str:
    """Undoes percent-encoding, but for `%2F` with `keep_slashes`. `PathError`: a bad escape, or no UTF-8."""
    if _ESCAPE.search(raw):
        msg = "a % is not followed by two hex digits"
        raise PathError(msg)
    try:
        if keep_slashes:
            parts = _SLASH.split(raw)
            return "".join(
                part if index % 2 else urllib.parse.unquote(part, errors="strict") for index, part in enumerate(parts)
            )
        return urllib.parse.unquote(raw, errors="strict")
    except UnicodeDecodeError as exc:
        msg = "the escapes are not UTF-8"
        raise PathError(msg) from exc


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A route that fits, with the raw segments its template's variables take their text from."""

    template: Template
    target: T
    _segments: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """The decoded text of each variable by its field path. `PathError` as `decode`."""
        values: dict[str, str] = {}
        for variable in self.template.variables:
            end = None if self.template.segments[variable.end - 1] == REST else variable.end
            raw = self._segments[variable.start : end]
            values[variable.field_path] = "/".join(decode(part, keep_slashes=variable.multiple) for part in raw)
        return values


@dataclass(frozen=True, slots=True)
class NoMatch:
    """No route fits. `allowed` are the methods that the path has; empty: the path is not known."""

    allowed: frozenset[str]


_Leaf = dict[str, tuple[Template, T]]


@dataclass(slots=True)
class _Node(Generic[T]):
    literals: dict[str, _Node[T]] = field(default_factory=dict[str, "_Node[T]"])
    any: _Node[T] | None = None
    leaves: dict[str, _Leaf[T]] = field(default_factory=dict[str, "_Leaf[T]"])
    """By verb: what ends here."""
    rest: dict[str, _Leaf[T]] = field(default_factory=dict[str, "_Leaf[T]"])
    """By verb: what takes all that is left from here."""


class Router(Generic[T]):
    """Finds the target of a method and a path: a literal before `*`, `*` before `**`, segment by segment from the left.

    A colon in a path's last segment begins a verb; where it belongs to a value it is sent as `%3A`. Only the text that
    `**` takes may hold bare colons, where no verb fits.
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, method: str, template: Template, target: T) -> None:
        """Adds a route. `TemplateError`: another route of this method matches the same paths."""
        node = self._root
        last = template.segments[-1] == REST
        for segment in template.segments[:-1] if last else template.segments:
            if segment == ANY:
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.literals.setdefault(segment, _Node())
        leaf = (node.rest if last else node.leaves).setdefault(template.verb, {})
        if method in leaf:
            msg = f"{method} {template.text} and {method} {leaf[method][0].text} match the same paths"
            raise TemplateError(msg)
        leaf[method] = (template, target)

    def find(self, method: str, raw_path: str) -> Match[T] | NoMatch:
        """The route of a path as it stands in the request line, percent-encoded. HEAD is served by a route of GET."""
        allowed: set[str] = set()
        if raw_path.startswith("/") and raw_path.count("/") <= MAX_SEGMENTS:
            segments = tuple(raw_path[1:].split("/"))
            head, colon, verb = segments[-1].rpartition(":")
            candidates: list[tuple[tuple[str, ...], str]] = [((*segments[:-1], head), verb)] if colon and verb else []
            candidates.append((segments, ""))
            for parts, wanted in candidates:
                for leaf in self._walk(self._root, parts, 0, wanted):
                    found = _of(leaf, method)
                    if found is not None:
                        return Match(found[0], found[1], parts)
                    allowed.update(leaf)
        if "GET" in allowed:
            allowed.add("HEAD")
        return NoMatch(frozenset(allowed))

    def _walk(self, node: _Node[T], parts: tuple[str, ...], at: int, verb: str) -> Iterator[_Leaf[T]]:
        # Each node of the trie lies at one depth, so it is visited once at most: no path makes this slow.
        if at == len(parts):
            if verb in node.leaves:
                yield node.leaves[verb]
        else:
            part = parts[at]
            literal = node.literals.get(_literal(part))
            if literal is not None:
                yield from self._walk(literal, parts, at + 1, verb)
            ends = at == len(parts) - 1
            if node.any is not None and part and not (ends and ":" in part):
                yield from self._walk(node.any, parts, at + 1, verb)
        if verb in node.rest:
            yield node.rest[verb]


def _of(leaf: Mapping[str, T], method: str) -> T | None:
    found = leaf.get(method)
    return leaf.get("GET") if found is None and method == "HEAD" else found


def _literal(part: str) -> str:
    try:
        return decode(part) if "%" in part else part
    except PathError:
        return part
