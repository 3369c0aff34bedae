"""Traces of ranked requests for OpenTelemetry, off by default: a span a request, and one in it for each stage.

The engine times its stages anyway, so spans are made from these times once the answer is there: nothing is measured
twice, and where traces are off nothing of OpenTelemetry is imported or called. No span names a user. The request's own
span, and the caller's trace that it belongs to, are FastAPI's.
"""

from __future__ import annotations

import time
from typing import Any

from advprior.store.errors import AdvpriorError
from ranking.service.slate import Slate

#: In the order that they follow one another; features are worked out around the choice of candidates.
_STAGES = ("read", "candidates", "features", "predict", "explain")


class Traces:
    """Makes spans of slates.

    Parameters
    ----------
    provider : OpenTelemetry's tracer provider, optional
        Default: the one that is set already, as by ``opentelemetry-instrument``; else one that sends spans where the
        ``OTEL_EXPORTER_OTLP_…`` variables say.

    Raises
    ------
    AdvpriorError
        ``SRV024`` when the packages are not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider

            provider = provider or trace.get_tracer_provider()
            self._own = not isinstance(provider, TracerProvider)
            if self._own:
                provider = _exporting()
                trace.set_tracer_provider(provider)
        except ImportError as error:
            raise AdvpriorError(
                "SRV024",
                "traces need OpenTelemetry's packages",
                where="--traces",
                actual=str(error),
                expected="the extra [otel]",
                fix="pip install 'advprior[otel]', or leave --traces out",
            ) from error
        self._provider = provider
        self._tracer = provider.get_tracer("advprior")

    def ranked(self, slate: Slate, begin_ns: int, ended_ns: int) -> None:
        """The spans of one slate.

        Parameters
        ----------
        begin_ns : int
            When it began to wait for a thread, by ``time.time_ns``.
        ended_ns : int
            When ranking ended.
        """
        from opentelemetry import trace

        attributes = {
            "advprior.arm": slate.arm.name,
            "advprior.ranker": slate.ranker.digest,
            "advprior.candidates": slate.candidates,
            "advprior.degraded": tuple(slate.degraded),
        }
        if slate.prior is not None:
            attributes["advprior.publication"] = slate.prior.publication
        span = self._tracer.start_span("rank", start_time=begin_ns, attributes=attributes)
        inside = trace.set_span_in_context(span)
        at = ended_ns - _ns(slate.timings["total"])
        self._tracer.start_span("wait", inside, start_time=begin_ns).end(max(begin_ns, at))
        for stage in _STAGES:
            if stage in slate.timings:
                one = self._tracer.start_span(stage, inside, start_time=at)
                at += _ns(slate.timings[stage])
                one.end(at)
        span.end(time.time_ns())

    def close(self) -> None:
        """Send what is still here."""
        if self._own:
            self._provider.shutdown()
        else:
            self._provider.force_flush()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _exporting() -> Any:
    """A provider that sends spans in batches, from a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before
    provider = TracerProvider(resource=Resource({"service.name": "advprior"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
