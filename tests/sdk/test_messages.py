"""What no field of a message can hold is a mistake of the caller's, told by the field before anything is sent."""

from collections.abc import Awaitable, Callable

import pytest
from recorded_platform import RecordedPlatform
from samples import ID

from crucible_client import Client, ConfigurationError, InvalidRequestError, Limits, Program

NO_TEXT = "a\udcff"
"""What Python makes of the argument b'a\xff'."""


def source(**options: object) -> Program:
    return Program("print(1)", runtime="python", **options)  # pyright: ignore[reportArgumentType]  wrong on purpose


@pytest.mark.parametrize(
    ("program", "field", "problem"),
    [
        (source(limits=Limits(processes=10**11)), "limits.processes", "value out of range: 100000000000"),
        (source(limits=Limits(memory_bytes=10**20)), "limits.memory_bytes", "value out of range: 1"),
        (source(limits=Limits(open_files=-(10**5000))), "limits.open_files", ""),
        (source(limits=Limits(wall_time=1e18)), "limits.wall_time", "is out of range"),
        (source(limits=Limits(cpu_time=float("nan"))), "limits.cpu_time", "cannot convert float NaN"),
        (source(args=["fine", NO_TEXT]), "args[1]", r"is not text: UTF-8 has no '\udcff' (character 2)"),
        (source(env={"A": "1", "B": NO_TEXT}), 'env["B"]', "is not text"),
        (source(labels={NO_TEXT: "1"}), r'labels["a\udcff"]', "is not text"),
        (source(display_name=NO_TEXT), "display_name", "is not text"),
        (source(stdin=NO_TEXT), "stdin", "is not text"),
        (Program(NO_TEXT, runtime="python"), "source", "is not text"),
        (Program(runtime="python", files={"a": "1", NO_TEXT: "2"}), "files[1].path", "is not text"),
        (Program(runtime="python", files={"a": "1", "b": b"", "c": NO_TEXT}), "files[2].text", "is not text"),
        (source(env={"A": 5}), 'env["A"]', "bad argument type"),
        (source(args=5), "args", "must assign iterable"),
    ],
)
async def test_a_program_is_refused_by_its_field(
    platform: RecordedPlatform, client: Client, program: Program, field: str, problem: str
) -> None:
    for submit in (client.create, client.run):
        with pytest.raises(InvalidRequestError) as caught:
            await submit(program)
        [violation] = caught.value.violations
        assert violation.field == f"evaluation.{field}"
        assert problem in violation.description
        assert str(caught.value) == str(violation)
        assert (caught.value.code, caught.value.reason, caught.value.transient) == ("INVALID_ARGUMENT", "", False)
    with pytest.raises(InvalidRequestError):
        await client.create_many([program])
    assert platform.calls == []


async def listed(client: Client) -> None:
    async for _ in client.list(NO_TEXT):
        pass


async def watched(client: Client) -> None:
    async for _ in client.watch(ID, after=10**11):
        pass


REQUESTS: list[tuple[Callable[[Client], Awaitable[object]], str]] = [
    (lambda client: client.get(NO_TEXT), "id"),
    (lambda client: client.wait(NO_TEXT), "id"),
    (lambda client: client.cancel(NO_TEXT), "id"),
    (lambda client: client.requeue(NO_TEXT), "id"),
    (lambda client: client.create(source(), request_id=NO_TEXT), "request_id"),
    (lambda client: client.create_many([source()], request_ids=[NO_TEXT]), "request_id"),
    (lambda client: client.read_output(ID, offset=10**20), "offset"),
    (listed, "filter"),
    (watched, "after_sequence"),
]


@pytest.mark.parametrize(("call", "field"), REQUESTS)
async def test_a_request_is_refused_by_its_field(
    platform: RecordedPlatform, client: Client, call: Callable[[Client], Awaitable[object]], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await call(client)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert platform.calls == []


async def test_an_address_that_is_no_text_is_the_settings_mistake() -> None:
    with pytest.raises(ConfigurationError, match="is not an address"):
        async with Client(scheduler=NO_TEXT, store=NO_TEXT):
            pass
