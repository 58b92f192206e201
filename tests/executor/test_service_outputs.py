"""Output on its way: nothing lost, nothing split, nothing unbounded."""

from __future__ import annotations

import resource

from hypothesis import given
from hypothesis import strategies as st

from crucible_contracts.limits import LIVE_OUTPUT_BYTES, OUTPUT_MESSAGE_BYTES
from crucible_executor.outputs import Chunk, Elision, OutputStream, RunOutput, as_content, code_point_cut
from crucible_executor.sandbox.port import Stream

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


def everything(stream: OutputStream) -> list[Chunk | Elision]:
    taken: list[Chunk | Elision] = []
    while (one := stream.take()) is not None:
        taken.append(one)
    return taken


def content(chunk: Chunk | Elision) -> bytes:
    assert isinstance(chunk, Chunk)
    return chunk.content.encode() if isinstance(chunk.content, str) else chunk.content


@given(TEXT, st.data())
def test_text_written_in_any_pieces_stays_text_and_whole(text: str, data: st.DataObject) -> None:
    written = text.encode()
    stream = OutputStream(Stream.STDOUT)
    taken: list[Chunk | Elision] = []
    at = 0
    while at < len(written):
        size = data.draw(st.integers(1, len(written) - at))
        stream.write(written[at : at + size])
        at += size
        if data.draw(st.booleans()):
            taken += everything(stream)
    stream.end()
    taken += everything(stream)
    assert b"".join(map(content, taken)) == written
    assert all(isinstance(chunk, Chunk) and isinstance(chunk.content, str) for chunk in taken)
    offsets = [chunk.offset for chunk in taken]
    assert offsets == [sum(len(content(chunk)) for chunk in taken[:number]) for number in range(len(taken))]
    assert stream.preview().text == text
    assert not stream.preview().lossy


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=10))
def test_bytes_of_any_kind_arrive_exactly(written: bytes, sizes: list[int]) -> None:
    stream = OutputStream(Stream.STDERR)
    taken: list[Chunk | Elision] = []
    rest = written
    for size in sizes:
        stream.write(rest[:size])
        rest = rest[size:]
        taken += everything(stream)
    stream.write(rest)
    stream.end()
    taken += everything(stream)
    assert b"".join(map(content, taken)) == written
    shown = stream.preview()
    assert "\0" not in shown.text
    assert shown.lossy == (not isinstance(as_content(written), str))


@given(st.text(st.sampled_from("aé€😀"), min_size=1, max_size=40), st.data())
def test_a_cut_splits_no_code_point_and_loses_at_most_three_bytes(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    end = data.draw(st.integers(0, len(encoded)))
    cut = code_point_cut(encoded, end)
    assert end - 3 <= cut <= end
    assert encoded[:cut].decode() == text[: len(encoded[:cut].decode())]


def test_an_unfinished_code_point_waits_for_its_rest() -> None:
    stream = OutputStream(Stream.STDOUT)
    stream.write("€".encode()[:2])
    assert not stream.ready
    assert stream.take() is None
    stream.write("€".encode()[2:])
    assert stream.take() == Chunk(Stream.STDOUT, 0, "€")


def test_an_unfinished_code_point_is_sent_as_bytes_at_the_end() -> None:
    stream = OutputStream(Stream.STDOUT)
    stream.write(b"a\xe2\x82")
    assert stream.take() == Chunk(Stream.STDOUT, 0, "a")
    stream.end()
    assert stream.take() == Chunk(Stream.STDOUT, 1, b"\xe2\x82")


def test_no_message_is_larger_than_its_bound() -> None:
    stream = OutputStream(Stream.STDOUT)
    stream.write(b"x" + "é".encode() * 100_000)
    stream.end()
    sizes = [len(content(chunk)) for chunk in everything(stream)]
    assert sizes == [OUTPUT_MESSAGE_BYTES - 1, 200_001 - OUTPUT_MESSAGE_BYTES + 1]


def test_what_is_longer_than_the_live_bound_is_elided_once_and_kept_whole() -> None:
    stream = OutputStream(Stream.STDOUT)
    written = b"x" + "é".encode() * LIVE_OUTPUT_BYTES
    for start in range(0, len(written), 100_000):
        stream.write(written[start : start + 100_000])
    *chunks, elision = everything(stream)
    live = b"".join(map(content, chunks))
    assert live == written[: LIVE_OUTPUT_BYTES - 1]
    assert elision == Elision(Stream.STDOUT, LIVE_OUTPUT_BYTES - 1)
    stream.write(b"more")
    stream.end()
    assert everything(stream) == []
    assert stream.spool is not None
    stream.spool.seek(0)
    assert stream.spool.read() == written + b"more"
    preview = stream.preview()
    left_out = len(written) + 4 - (1 + 2 * 16383) - (4 + 2 * 16382)
    assert preview.text == f"x{'é' * 16383}\n[... {left_out} bytes left out ...]\n{'é' * 16382}more"
    assert preview.lossy
    stream.close()


def test_a_stream_of_exactly_the_live_bound_is_not_elided() -> None:
    stream = OutputStream(Stream.STDOUT)
    stream.write(b"x" * LIVE_OUTPUT_BYTES)
    stream.end()
    assert all(isinstance(chunk, Chunk) for chunk in everything(stream))
    assert not stream.elided


def test_the_left_out_line_stands_on_a_line_of_its_own() -> None:
    stream = OutputStream(Stream.STDOUT)
    stream.write(b"a" * 32767 + b"\n" + b"b" * 10 + b"c" * 32768)
    text = stream.preview().text
    assert stream.preview().omitted == 10
    assert text == "a" * 32767 + "\n[... 10 bytes left out ...]\n" + "c" * 32768


def test_streams_speak_in_turn() -> None:
    output = RunOutput()
    for stream in Stream:
        output.write(stream, b"x" * 3 * OUTPUT_MESSAGE_BYTES)
    taken = [output.take() for _ in range(6)]
    assert [one.stream for one in taken if one] == [Stream.STDOUT, Stream.STDERR] * 3
    assert output.take() is None


def test_what_found_no_room_on_the_disk_is_forgotten_without_an_error() -> None:
    """A full disk, by the limit that a process may put on its files."""
    stream = OutputStream(Stream.STDOUT, live_bytes=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        while not stream.failed:
            stream.write(b"x" * 1000)
        stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stream.spool is not None
    assert stream.spool.closed
