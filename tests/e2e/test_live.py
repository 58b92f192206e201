"""A program is watched while it runs, without gap or repeat, through breaks."""

import time

from crucible_testkit.stack import Stack

LINES = "import time\nfor i in range(6):\n    print('line', i, flush=True)\n    time.sleep(0.5)"


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
