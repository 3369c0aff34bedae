"""Traces of ranked requests: one span a stage, within the caller's trace; nothing where they are off."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from advprior.store.errors import AdvpriorError
from ranking.service.traces import Traces
from tests.service.live import TestClient, engine_at, settings_of
from tests.service.workspaces import Project


@pytest.fixture(scope="module")
def spans() -> Any:
    """What was traced; a process has one provider for all."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_each_stage_is_a_span_of_the_callers_trace(project: Project, spans: Any) -> None:
    from ranking.service.app import create_app

    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with TestClient(create_app(settings_of(project, traces=True), engine_at(project))) as client:
        spans.clear()
        for path in ("/rank", "/rank?explain=true"):
            assert client.post(path, json={"user_id": "u004"}, headers={"traceparent": caller}).status_code == 200
    finished = spans.get_finished_spans()
    ranks = [span for span in finished if span.name == "rank"]
    assert len(ranks) == 2
    for rank, last in zip(ranks, ("predict", "explain"), strict=True):
        children = [s for s in finished if s.parent is not None and s.parent.span_id == rank.context.span_id]
        names = [span.name for span in children]
        assert names[:5] == ["wait", "read", "candidates", "features", "predict"]
        assert names[-1] == last
        assert rank.context.trace_id == int(caller.split("-")[1], 16)
        assert rank.attributes["advprior.arm"]
        for one, after in pairwise(children):
            assert one.end_time <= after.start_time
        assert rank.start_time <= children[0].start_time
        assert not any("u004" in str(value) for span in (rank, *children) for value in span.attributes.values())


def test_without_traces_there_are_no_spans(project: Project, spans: Any) -> None:
    from ranking.service.app import create_app

    with TestClient(create_app(settings_of(project), engine_at(project))) as client:
        spans.clear()
        assert client.post("/rank", json={"user_id": "u004"}).status_code == 200
    assert not [span for span in spans.get_finished_spans() if span.instrumentation_scope.name == "advprior"]


def test_without_its_packages_the_service_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(AdvpriorError) as raised:
        Traces()
    assert raised.value.code == "SRV024"


def test_the_sdk_is_not_imported_where_traces_are_off() -> None:
    code = "import sys, ranking.service.app; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
