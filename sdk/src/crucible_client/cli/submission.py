"""From the options of `crucible run` to the evaluation it submits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import click

from crucible_client.views import Runtime

SOURCE_BYTES = 256 * 1024
"""The contract's bound of `source`; a longer program goes as a file."""

STDIN = "-"


def read_program(file: str, *, extra: Sequence[str]) -> tuple[str | None, dict[str, str | bytes], str | None]:
    """Source, or files and entrypoint, of the program in `file` with its extra files `PATH[=NAME]`."""
    content = _text_or_bytes(_read(file, "FILE"))
    files = dict(_extra_file(value) for value in extra)
    if not files and isinstance(content, str) and len(content.encode()) <= SOURCE_BYTES:
        return content, {}, None
    entrypoint = None if file == STDIN else Path(file).name
    if entrypoint is None:
        raise click.BadParameter(
            "a program on standard input goes alone: without --file, as text of up to 256 KiB", param_hint="FILE"
        )
    if entrypoint in files:
        raise click.BadParameter(f"{entrypoint!r} is the program's own name", param_hint="--file")
    return None, {entrypoint: content, **files}, entrypoint


def read_stdin(value: str | None, *, program: str) -> str | bytes | None:
    """What the program gets on standard input: a file's bytes, or ours for `-`."""
    if value is None:
        return None
    if value == STDIN and program == STDIN:
        raise click.BadParameter("the program itself is read from standard input", param_hint="--stdin")
    return _text_or_bytes(_read(value, "--stdin"))


def parse_pairs(pairs: Sequence[str], option: str) -> Mapping[str, str]:
    """`NAME=VALUE`, each name once. Raises BadParameter."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r}: write NAME=VALUE", param_hint=option)
        if name in parsed:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        parsed[name] = value
    return parsed


def guess_runtime(file: str, runtimes: Sequence[Runtime]) -> str:
    """The runtime whose entrypoint has the file's extension. Raises UsageError when none or several have it."""
    names = ", ".join(runtime.name for runtime in runtimes)
    if file == STDIN:
        raise click.UsageError(f"a program on standard input needs --runtime with one of {names}")
    suffix = PurePosixPath(file).suffix
    fitting = [runtime.name for runtime in runtimes if suffix and PurePosixPath(runtime.entrypoint).suffix == suffix]
    if not fitting:
        raise click.UsageError(f"cannot tell the runtime of {Path(file).name!r}: use --runtime with one of {names}")
    # Beside `python` there may be `python-numpy` one day: the plain name is the plain choice.
    plain = min(fitting, key=len)
    if all(name.startswith(plain) for name in fitting):
        return plain
    raise click.UsageError(f"{Path(file).name!r} fits several runtimes: use --runtime with one of {', '.join(fitting)}")


def _extra_file(value: str) -> tuple[str, str | bytes]:
    path, name = value, ""
    if not Path(value).is_file() and "=" in value:
        path, _, name = value.rpartition("=")
    return name or Path(path).name, _text_or_bytes(_read(path, "--file"))


def _read(path: str, option: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as exc:
        raise click.BadParameter(f"cannot read {path!r}: {exc.strerror}", param_hint=option) from exc


def _text_or_bytes(content: bytes) -> str | bytes:
    # As text where that is exact: it is what people see in JSON and in the console.
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return content if "\0" in text else text
