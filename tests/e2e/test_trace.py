"""One evaluation is one trace, seen by a real collector."""

from collections.abc import Sequence

from crucible_testkit import OtlpReceiver, ReceivedSpan
from crucible_testkit.stack import Stack

SERVICES = {"gateway", "scheduler", "store", "executor"}
PHASES = {"boot", "deliver", "run", "collect"}


def test_one_evaluation_is_one_trace(stack: Stack, collector: OtlpReceiver) -> None:
    evaluation = stack.run({"runtime": "python", "source": "print(1)"})
    trace_id = evaluation["traceId"]

    def mine(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.trace_id == trace_id]

    def whole(spans: Sequence[ReceivedSpan]) -> bool:
        found = mine(spans)
        services = {service for service in SERVICES if any(service in span.service for span in found)}
        names = {span.name.rpartition(".")[2].rpartition(" ")[2] for span in found}
        # A parent ends after its children, and may come with a later export.
        known = {span.span_id for span in found}
        hang = all(span.parent_id in known for span in found if span.parent_id)
        return services == SERVICES and names >= PHASES and hang

    spans = mine(collector.wait_for(whole))
    assert len([span for span in spans if not span.parent_id]) == 1, "everything hangs under the request"


def test_a_callers_trace_is_continued(stack: Stack, collector: OtlpReceiver) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    response = stack.http.post(
        "/v1/evaluations:run",
        json={"runtime": "bash", "source": "true"},
        headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
    )
    assert response.json()["traceId"] == trace_id
    collector.wait_for(lambda spans: any(s.trace_id == trace_id and "executor" in s.service for s in spans))
