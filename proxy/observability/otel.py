"""Each request as an OpenTelemetry span, sent over OTLP/HTTP. Needs the extra: pip install 'tollkeeper[otel]'.

Where to, and as whom, is said by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...). Attributes follow its conventions for generative AI; a span never
holds a body, a prompt or a key. Costs about 50 µs a request.
"""

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.observability.log import AccessLine
from proxy.observability.tracing import Headers, Trace, context_of

ATTRIBUTES = {
    "request_id": "tollkeeper.request_id",
    "account": "tollkeeper.account",
    "outcome": "tollkeeper.outcome",
    "charged_millicredits": "tollkeeper.charged_millicredits",
    "held_millicredits": "tollkeeper.held_millicredits",
    "model": "gen_ai.request.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "status": "http.response.status_code",
    "method": "http.request.method",
    "path": "url.path",
}
"""Fields of the log line and what OpenTelemetry calls them (semantic conventions for generative AI and for HTTP)."""
SERVER_ERROR = 500


class Spans:
    """See tracing.Tracing. One exporting thread a process."""

    def __init__(self) -> None:
        """Configure by the environment."""
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tollkeeper")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Headers) -> Trace:
        """Begin a span of its own, below the client's where it sent one."""
        parent, state = context_of(headers)
        above = self._propagator.extract({"traceparent": parent, "tracestate": state}) if parent else None
        span = self._tracer.start_span("tollkeeper", above, SpanKind.SERVER)
        below: dict[str, str] = {}
        self._propagator.inject(below, set_span_in_context(span))
        return _SpanTrace(span, below.get("traceparent", ""), below.get("tracestate", ""))

    def close(self) -> None:
        """Send what is not yet sent."""
        self._provider.shutdown()


class _SpanTrace(Trace):
    __slots__ = ("_span",)

    def __init__(self, span: Span, parent: str, state: str) -> None:
        super().__init__(parent, state)
        self._span = span

    def end(self, line: AccessLine) -> None:
        facts = msgspec.structs.asdict(line)
        self._span.update_name(f"{facts['method']} {facts['endpoint']}")
        self._span.set_attribute("gen_ai.provider.name", "openai")
        for name, value in facts.items():
            if name in ATTRIBUTES and value not in ("", msgspec.UNSET):
                self._span.set_attribute(ATTRIBUTES[name], value)
        if int(facts["status"]) >= SERVER_ERROR:
            self._span.set_status(Status(StatusCode.ERROR, str(facts["outcome"])))
        self._span.end()
