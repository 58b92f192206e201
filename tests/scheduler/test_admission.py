"""Admission: defaults, maxima, the program as an executor gets it, and the identity of a request."""

from __future__ import annotations

import pytest

from crucible.v1 import evaluation_pb2, runtime_pb2
from crucible_scheduler.domain.admission import RefusedError, admit, find_runtime

MIB = 1 << 20


def runtime() -> runtime_pb2.Runtime:
    made = runtime_pb2.Runtime(name="python", entrypoint="main.py")
    for limits, factor in ((made.default_limits, 1), (made.maximum_limits, 4)):
        limits.wall_time.seconds = 10 * factor
        limits.cpu_time.seconds = 10 * factor
        limits.memory_bytes = 256 * MIB * factor
        limits.disk_bytes = 64 * MIB * factor
        limits.output_bytes = MIB * factor
        limits.processes = 64 * factor
        limits.open_files = 256 * factor
    return made


def evaluation(**fields: object) -> evaluation_pb2.Evaluation:
    made = evaluation_pb2.Evaluation(runtime="python", **fields)  # pyright: ignore[reportArgumentType]  any field
    if not made.files and not made.HasField("source"):
        made.source = "print(1)"
    return made


def files(*paths: str) -> list[evaluation_pb2.File]:
    return [evaluation_pb2.File(path=path, text=path) for path in paths]


def refusal(made: evaluation_pb2.Evaluation) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        admit(made, runtime())
    return caught.value


def test_what_is_not_set_takes_the_runtimes_defaults() -> None:
    admitted = admit(evaluation(), runtime()).evaluation
    assert admitted.limits == runtime().default_limits
    assert admitted.priority == evaluation_pb2.Evaluation.NORMAL


def test_what_is_set_stays_and_the_rest_is_filled_in() -> None:
    made = evaluation(priority=evaluation_pb2.Evaluation.HIGH)
    made.limits.memory_bytes = 32 * MIB
    made.limits.wall_time.nanos = 500_000_000
    admitted = admit(made, runtime()).evaluation
    assert admitted.priority == evaluation_pb2.Evaluation.HIGH
    assert admitted.limits.memory_bytes == 32 * MIB
    assert admitted.limits.wall_time.ToNanoseconds() == 500_000_000
    assert admitted.limits.cpu_time.seconds == 10
    assert not made.limits.HasField("cpu_time")


@pytest.mark.parametrize(
    ("name", "value", "maximum"),
    [
        ("memory_bytes", 1024 * MIB + 1, str(1024 * MIB)),
        ("disk_bytes", 256 * MIB + 1, str(256 * MIB)),
        ("output_bytes", 4 * MIB + 1, str(4 * MIB)),
        ("processes", 257, "256"),
        ("open_files", 1025, "1024"),
    ],
)
def test_a_limit_over_the_runtimes_maximum_is_refused(name: str, value: int, maximum: str) -> None:
    made = evaluation()
    setattr(made.limits, name, value - 1)
    admit(made, runtime())
    setattr(made.limits, name, value)
    refused = refusal(made)
    assert (refused.reason, refused.path) == ("LIMIT_TOO_LARGE", f"limits.{name}")
    assert refused.metadata == {"limit": name, "maximum": maximum}
    assert maximum in refused.message


@pytest.mark.parametrize("name", ["wall_time", "cpu_time"])
def test_a_time_over_the_runtimes_maximum_is_refused(name: str) -> None:
    made = evaluation()
    getattr(made.limits, name).FromMilliseconds(40_000)
    admit(made, runtime())
    getattr(made.limits, name).FromMilliseconds(40_001)
    refused = refusal(made)
    assert refused.metadata == {"limit": name, "maximum": "40s"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pyhton", "did you mean 'python'?"),
        ("cobol", "the runtimes are: bash, python"),
        ("pythn", "did you mean 'python'?"),
    ],
)
def test_an_unknown_runtime_is_refused_with_the_nearest_name(name: str, words: str) -> None:
    known = {"python": runtime(), "bash": runtime_pb2.Runtime(name="bash")}
    with pytest.raises(RefusedError) as caught:
        find_runtime(name, known)
    assert caught.value.reason == "UNKNOWN_RUNTIME"
    assert words in caught.value.message
    assert caught.value.metadata == {"runtime": name, "known": "bash, python"}
    assert find_runtime("python", known) == runtime()


def test_a_source_becomes_the_runtimes_file() -> None:
    program = admit(evaluation(source="é", args=["a"], env={"K": "v"}, stdin="ü"), runtime()).program
    assert [(file.path, file.data) for file in program.files] == [("main.py", "é".encode())]
    assert program.entrypoint == "main.py"
    assert list(program.args) == ["a"]
    assert dict(program.env) == {"K": "v"}
    assert program.stdin == "ü".encode()


def test_files_are_laid_out_and_the_default_entrypoint_is_among_them() -> None:
    made = evaluation(files=[*files("main.py"), evaluation_pb2.File(path="a/b", data=b"\xff")], stdin_bytes=b"\x00")
    program = admit(made, runtime()).program
    assert [(file.path, file.data) for file in program.files] == [("main.py", b"main.py"), ("a/b", b"\xff")]
    assert program.entrypoint == "main.py"
    assert program.stdin == b"\x00"
    other = admit(evaluation(files=files("x.py", "y.py"), entrypoint="y.py"), runtime()).program
    assert other.entrypoint == "y.py"


def test_files_without_the_default_entrypoint_are_refused() -> None:
    refused = refusal(evaluation(files=files("x.py")))
    assert (refused.reason, refused.path) == ("INVALID_FIELD", "entrypoint")
    assert "'main.py'" in refused.message


def test_files_that_do_not_fit_on_their_disk_are_refused() -> None:
    limits = evaluation_pb2.Limits(disk_bytes=MIB)
    large = evaluation_pb2.File(path="data", data=bytes(MIB - 4096))
    admit(evaluation(files=[*files("main.py"), large], limits=limits), runtime())
    large.data += b"1"
    refused = refusal(evaluation(files=[*files("main.py"), large], limits=limits))
    assert (refused.reason, refused.path) == ("INVALID_FIELD", "limits.disk_bytes")
    assert f"{MIB + 4096} bytes" in refused.message


def test_a_path_that_is_file_and_folder_is_refused() -> None:
    refused = refusal(evaluation(files=files("main.py", "a", "a/b/c")))
    assert (refused.reason, refused.path) == ("INVALID_FIELD", "files[2].path")
    admit(evaluation(files=files("main.py", "a.b", "a/b")), runtime())


def test_what_the_platform_sets_is_ignored() -> None:
    made = evaluation(id="x", tenant="mine", status=evaluation_pb2.Evaluation.COMPLETED, attempt=7, trace_id="t")
    made.result.exit_code = 1
    admitted = admit(made, runtime())
    assert admitted.evaluation == admit(evaluation(), runtime()).evaluation
    assert admitted.request_hash == admit(evaluation(), runtime()).request_hash


def test_the_hash_is_of_what_was_sent_and_of_nothing_else() -> None:
    base = admit(evaluation(labels={"a": "1", "b": "2"}), runtime()).request_hash
    assert base.startswith("v1:")
    assert len(base) == len("v1:") + 64
    assert admit(evaluation(labels={"b": "2", "a": "1"}), runtime()).request_hash == base
    assert admit(evaluation(labels={"a": "1"}), runtime()).request_hash != base
    changed = runtime()
    changed.default_limits.memory_bytes = 128 * MIB
    assert admit(evaluation(labels={"a": "1", "b": "2"}), changed).request_hash == base
    explicit = evaluation(labels={"a": "1", "b": "2"}, priority=evaluation_pb2.Evaluation.NORMAL)
    assert admit(explicit, runtime()).request_hash != base


def test_the_hash_of_version_1_never_changes() -> None:
    made = evaluation(args=["x"], env={"B": "2", "A": "1"}, labels={"k": "v"})
    made.limits.wall_time.seconds = 3
    assert admit(made, runtime()).request_hash == "v1:5da86e187000dbdb04d8e762a4e763b965f6ae36ce2c8fc9a1aa2eac0177d8bc"
