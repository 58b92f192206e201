"""A program is watched while it runs, without gap or repeat, through breaks, and by hundreds at once."""

import asyncio
import contextlib
import time
from pathlib import Path

import httpx

from crucible_testkit.stack import Json, Stack

LINES = "import time\nfor i in range(6):\n    print('line', i, flush=True)\n    time.sleep(1)"


def test_lines_arrive_one_by_one_and_a_reconnect_misses_nothing(stack: Stack) -> None:
    created = stack.create({"runtime": "python", "source": LINES})
    seen: list[tuple[int, str, str]] = []
    arrivals: list[float] = []
    for event in stack.watch(created["id"]):
        seen.append(event)
        if event[1] == "output":
            arrivals.append(time.monotonic())
        if len(arrivals) == 3:
            break  # the connection is cut here
    assert arrivals[2] - arrivals[0] > 0.5, "lines come as they are printed, not all at once"
    seen.extend(stack.watch(created["id"], last_event_id=seen[-1][0]))
    assert [number for number, _, _ in seen] == list(range(1, len(seen) + 1))
    assert [kind for _, kind, _ in seen][:3] == ["queued", "dispatched", "started"]
    assert seen[-1][1] == "finished"
    text = "".join(text for _, kind, text in seen if kind == "output")
    assert text == "".join(f"line {i}\n" for i in range(6))


def test_events_listed_are_the_events_watched(stack: Stack) -> None:
    created = stack.create({"runtime": "bash", "source": "echo out; echo err >&2"})
    watched = [number for number, _, _ in stack.watch(created["id"])]
    listed = stack.http.get(f"/v1/evaluations/{created['id']}/events").json()["events"]
    assert [event["sequence"] for event in listed] == watched


def test_output_is_read_byte_for_byte_and_by_range(stack: Stack) -> None:
    source = "import os\nos.write(1, bytes(range(256)) * 4)"
    evaluation = stack.run({"runtime": "python", "source": source})
    assert evaluation["result"]["stdout"]["lossy"]
    path = f"/v1/evaluations/{evaluation['id']}/output/stdout"
    whole = bytes(range(256)) * 4
    assert stack.http.get(path).content == whole
    part = stack.http.get(path, headers={"range": "bytes=250-259"})
    assert part.status_code == 206
    assert part.content == whole[250:260]
    assert part.headers["content-range"] == "bytes 250-259/1024"
    assert stack.http.get(path, headers={"range": "bytes=5000-"}).status_code == 416


def test_output_beyond_the_live_bound_is_kept_whole(stack: Stack) -> None:
    source = "import sys\nsys.stdout.writelines([''.join(f'{i:09d}\\n' for i in range(300000))])"
    evaluation = stack.run({"runtime": "python", "source": source, "limits": {"outputBytes": str(4 * 1024 * 1024)}})
    expected = b"".join(b"%09d\n" % i for i in range(300000))
    assert evaluation["result"]["stdout"]["sizeBytes"] == str(len(expected))
    kinds = [kind for _, kind, _ in stack.watch(evaluation["id"])]
    assert kinds.count("output_elided") == 1
    path = f"/v1/evaluations/{evaluation['id']}/output/stdout"
    assert stack.http.get(path).content == expected
    assert stack.http.get(path, headers={"range": "bytes=-20"}).content == expected[-20:]


WATCHERS = 128
"""And as many waits beside them, through one gateway."""
GATEWAY_MIB = 300


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


async def test_hundreds_watch_and_wait_while_one_of_them_reads_nothing(stack: Stack) -> None:
    source = "for i in 1 2 3 4 5; do echo line $i; sleep 1; done"
    unlimited = httpx.Limits(max_connections=None)
    address = stack.address.partition(":")
    async with httpx.AsyncClient(base_url=f"http://{stack.address}", timeout=100, limits=unlimited) as http:
        created: Json = (await http.post("/v1/evaluations", json={"runtime": "bash", "source": source})).json()
        path = f"/v1/evaluations/{created['id']}"

        # A gateway cuts who connects and then says nothing for ten seconds, as hundreds of one busy client would.
        beginning = asyncio.Semaphore(16)

        async def watch() -> list[int]:
            async with contextlib.AsyncExitStack() as streams:
                async with beginning:
                    response = await streams.enter_async_context(http.stream("GET", f"{path}/events:watch"))
                lines = [line async for line in response.aiter_lines()]
            return [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]

        async def wait(number: int) -> str:
            await asyncio.sleep(number * 0.02)
            return (await http.get(f"{path}:wait?timeout=60s")).json()["status"]

        _, stalled = await asyncio.open_connection(address[0], int(address[2]), limit=1024)
        stalled.write(f"GET {path}/events:watch HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        watches = [asyncio.create_task(watch(), name="watch") for _ in range(WATCHERS)]
        waits = [asyncio.create_task(wait(number), name="wait") for number in range(WATCHERS)]
        beside = await http.post("/v1/evaluations:run", json={"runtime": "python", "source": "print(1)"})
        assert beside.json()["status"] == "COMPLETED"
        seen = await asyncio.gather(*watches)
        assert set(await asyncio.gather(*waits)) == {"COMPLETED"}
        stalled.close()
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)
    assert len({len(numbers) for numbers in seen}) == 1, "everyone saw the same"
    assert len(seen[0]) >= 9, "queued, dispatched, started, five lines, finished"
    assert resident_mib(stack.pid("gateway")) < GATEWAY_MIB
