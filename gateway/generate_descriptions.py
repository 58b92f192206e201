"""Generates descriptions.json, the comments of the public contract.

With --check it only tells whether what is committed is current.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "gateway" / "src" / "crucible_gateway" / "descriptions.json"
PACKAGE = "crucible.v1"


def comments(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Full name and comment of everything in a file that has one, in paragraphs without line breaks of their own."""
    names = dict(_names(proto))
    for location in proto.source_code_info.location:
        name = names.get(tuple(location.path))
        if name is not None and location.leading_comments:
            paragraphs = location.leading_comments.strip().split("\n\n")
            lines = (" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs)
            yield name, "\n\n".join(line.strip() for line in lines)


def _names(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Full names by path, in the numbers of descriptor.proto."""
    for index, message in enumerate(proto.message_type):
        yield from _of_message(message, (4, index), proto.package)
    for index, enum in enumerate(proto.enum_type):
        yield from _of_enum(enum, (5, index), proto.package)
    for index, service in enumerate(proto.service):
        name = f"{proto.package}.{service.name}"
        yield (6, index), name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{name}.{method.name}"


def _of_message(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _of_message(nested, (*path, 3, index), name)
    for index, enum in enumerate(message.enum_type):
        yield from _of_enum(enum, (*path, 4, index), name)
    for index, oneof in enumerate(message.oneof_decl):
        yield (*path, 8, index), f"{name}.{oneof.name}"


def _of_enum(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"


def render() -> str:
    """The file's text."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        subprocess.run([Path(sys.executable).parent / "buf", "build", "--output", image], cwd=ROOT, check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file
    found = dict(pair for file in files if file.package == PACKAGE for pair in comments(file))
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Generates, or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when something would change")
    text = render()
    if parser.parse_args().check:
        current = TARGET.is_file() and TARGET.read_text("utf-8") == text
        if not current:
            sys.stderr.write(f"out of date: {TARGET.relative_to(ROOT)} (run `make generate`)\n")
        return 0 if current else 1
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
