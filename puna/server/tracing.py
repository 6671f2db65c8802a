"""OpenTelemetry: one span a request, made when it has ended, with the attributes that the conventions for models name.

Needs the extra `otel`, and is imported only where spans are sent. A request with `traceparent` is a child of the span
named there. Nothing is done while tokens flow. Prompts and answers are no attributes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from puna import __version__
from puna.errors import InputError
from puna.server.asked import NO_STATUS

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from puna.server.asked import Asked

OPERATIONS = {"/v1/completions": "text_completion"}  # all others are chats


class Tracing:
    """Sends spans to an OTLP collector over HTTP. InputError where the extra is not there or the address is none."""

    def __init__(self, endpoint: str) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise InputError(
                f"{endpoint!r} is no address of a collector; try http://127.0.0.1:4318/v1/traces", param="otlp"
            )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InputError(
                f"spans need the extra 'otel' ({error}): pip install 'puna[otel]', or leave --otlp out", param="otlp"
            ) from None
        resource = Resource.create({"service.name": "puna", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("puna", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, asked: Asked, headers: Headers, model: str) -> None:
        """The span of a request that has just ended and reached the engine."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        now_s, ended_ns = time.monotonic(), time.time_ns()
        begun_ns = ended_ns - int(1e9 * (now_s - asked.since_s))
        operation = OPERATIONS.get(asked.path, "chat")
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagator.extract(dict(headers)),
            kind=SpanKind.SERVER,
            start_time=begun_ns,
            attributes=_attributes(asked, operation, model),
        )
        if asked.status >= 500 or "error" in asked.finish_reasons:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def open_tracing(endpoint: str | None) -> Tracing | None:
    return None if endpoint is None else Tracing(endpoint)


def _attributes(asked: Asked, operation: str, model: str) -> dict[str, Any]:
    request = asked.watches[0].request
    params = request.params
    attributes: dict[str, Any] = {
        "http.request.method": asked.method,
        "url.path": asked.path,
        "http.response.status_code": asked.status or NO_STATUS,
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "puna",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request.request_id.rpartition("-")[0],
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.usage.input_tokens": asked.prompt_tokens,
        "gen_ai.usage.output_tokens": asked.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": asked.cached_tokens,
        "gen_ai.response.finish_reasons": asked.finish_reasons,
        "puna.request_id": asked.request_id,
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    if params.seed is not None:
        attributes["gen_ai.request.seed"] = params.seed - (1 << 64) * (params.seed >= 1 << 63)  # spans have signed ones
    if asked.first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = asked.first_token_s
    if asked.tenant is not None:
        attributes["puna.tenant"] = asked.tenant
    return attributes
