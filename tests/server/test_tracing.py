"""Spans of a real server's requests, as a collector has them when the server has ended."""

from __future__ import annotations

import gzip
import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import puna
from puna.engine.meter import Meter
from puna.engine.params import EngineRequest, SamplingParams
from puna.errors import InputError
from puna.server.asked import Asked
from puna.server.tracing import Tracing
from tests.server.process import ServerProcess

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
SECRET = "zanzibar"
BODY: dict[str, Any] = {"prompt": SECRET, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "ignore_eos": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "seed": 2**64 - 1}
PARENT = "00f067aa0ba902b7"
# Of each request the trace that it names.
TRACES = {name: f"{number:032x}" for number, name in enumerate(("text", "list", "late", "left", "refused", "read"), 1)}


class Collector(http.server.ThreadingHTTPServer):
    """Takes what an OpenTelemetry exporter sends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Taking)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def spans(self) -> list[Any]:
        """Each with `resource`, what is said of its sender."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        messages = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        sent = [
            (span, r.resource) for m in messages for r in m.resource_spans for s in r.scope_spans for span in s.spans
        ]
        assert all(plain(resource.attributes)["service.name"] == "puna" for _, resource in sent)
        assert all(plain(resource.attributes)["service.version"] == puna.__version__ for _, resource in sent)
        return [span for span, _ in sent]


class _Taking(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def plain(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def answers(tiny_model: Path, collector: Collector) -> dict[str, httpx.Response]:
    """What a server answered that has ended since: by then it has sent all spans."""
    server = ServerProcess.start(str(tiny_model), "--name", "tiny", "--backend", "reference", "--otlp", collector.url)
    try:
        trace = {name: f"00-{trace}-{PARENT}-01" for name, trace in TRACES.items()}
        path = "/v1/completions"
        made = {
            "text": server.post(path, {**BODY, "seed": 7, "n": 2}, traceparent=trace["text"]),
            "list": server.post(path, {**BODY, "prompt": ["a", "b"], "stream": True}, traceparent=trace["list"]),
            "late": server.post(path, {**BODY, "deadline_s": 1e-6}, traceparent=trace["late"]),
            "refused": server.post(path, {**BODY, "temperature": -1}, traceparent=trace["refused"]),
            "read": server.get("/v1/models", traceparent=trace["read"]),
            "chat": server.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 3}),
        }
        _leave(server, trace["left"])
        server.wait_until_idle()
        assert server.stop() == 0
        assert not any("Traceback" in line for line in server.lines)
        return made
    finally:
        server.kill()


def _leave(server: ServerProcess, trace: str) -> None:
    """Asks for a whole answer, and does not wait for it."""
    address = urlsplit(server.url)
    body = b'{"prompt": "x", "max_tokens": 250, "ignore_eos": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntraceparent: {trace}\r\n"
    with socket.create_connection((address.hostname, address.port or 0)) as connection:
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        while server.health()["engine"]["live_requests"] == 0:
            time.sleep(0.002)


@pytest.fixture(scope="module")
def spans(answers: dict[str, httpx.Response], collector: Collector) -> dict[str, Any]:
    """By the names of TRACES; "chat" named none."""
    assert answers
    names = {trace: name for name, trace in TRACES.items()}
    found = {names.get(span.trace_id.hex(), "chat"): span for span in collector.spans()}
    assert len(found) == len(collector.spans()), "one a request"
    return found


def test_a_request_that_reached_the_engine_is_a_span_with_what_the_conventions_name(
    answers: dict[str, httpx.Response], spans: dict[str, Any]
) -> None:
    span, answer = spans["text"], answers["text"].json()
    said = plain(span.attributes)
    assert (
        0
        < said.pop("gen_ai.response.time_to_first_chunk")
        <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    )
    assert said == {
        "http.request.method": "POST",
        "url.path": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "puna",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": answer["id"],
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "puna.request_id": answers["text"].headers["x-request-id"],
        "puna.tenant": "default",
    }
    assert (span.name, span.kind) == ("text_completion tiny", span.SPAN_KIND_SERVER)
    assert span.status.code == span.status.STATUS_CODE_UNSET


def test_it_is_a_child_of_the_span_that_the_request_names_and_else_begins_a_trace(spans: dict[str, Any]) -> None:
    assert spans["text"].parent_span_id.hex() == PARENT
    assert spans["chat"].parent_span_id == b""


def test_several_prompts_are_one_span(spans: dict[str, Any]) -> None:
    said = plain(spans["list"].attributes)
    assert said["gen_ai.usage.output_tokens"] == 10
    assert said["gen_ai.usage.input_tokens"] == 2
    assert said["gen_ai.response.finish_reasons"] == ["length", "length"]


def test_a_chat_is_one_and_its_seed_as_large_as_they_come_loses_no_span(
    answers: dict[str, httpx.Response], spans: dict[str, Any]
) -> None:
    said = plain(spans["chat"].attributes)
    assert spans["chat"].name == "chat tiny"
    assert said["gen_ai.response.id"] == answers["chat"].json()["id"]
    assert said["gen_ai.request.seed"] == -1


def test_a_request_without_an_answer_is_a_failure_and_one_that_was_left_is_told(
    answers: dict[str, httpx.Response], spans: dict[str, Any]
) -> None:
    assert answers["late"].status_code == 504
    late, left = spans["late"], spans["left"]
    assert late.status.code == late.status.STATUS_CODE_ERROR
    assert plain(late.attributes)["http.response.status_code"] == 504
    assert plain(left.attributes)["http.response.status_code"] == 499
    assert plain(left.attributes)["gen_ai.response.finish_reasons"] == ["abort"]
    assert left.status.code == left.status.STATUS_CODE_UNSET


def test_what_never_reached_the_engine_has_no_span_and_no_span_has_a_text(
    answers: dict[str, httpx.Response], spans: dict[str, Any]
) -> None:
    assert (answers["refused"].status_code, answers["read"].status_code) == (400, 200)
    assert sorted(spans) == ["chat", "late", "left", "list", "text"]
    assert not any(SECRET in str(span) for span in spans.values())


def test_an_answer_that_broke_in_its_middle_is_a_failure_whatever_its_status(collector: Collector) -> None:
    from starlette.datastructures import Headers

    tracing = Tracing(collector.url)
    request = EngineRequest(request_id="cmpl-broken-0", prompt_token_ids=[1], params=SamplingParams())
    asked = Asked("r", "POST", "/v1/completions", status=200, watches=[Meter(10).watch(request)])
    asked.watches[0].note(0, 1, "error")
    tracing.record(asked, Headers({}), "tiny")
    tracing.close()
    broken = next(s for s in collector.spans() if plain(s.attributes)["gen_ai.response.id"] == "cmpl-broken")
    assert broken.status.code == broken.status.STATUS_CODE_ERROR


def test_without_the_extra_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"pip install 'puna\[otel\]'"):
        Tracing("http://127.0.0.1:4318/v1/traces")


def test_an_address_of_a_collector_that_is_none_is_one_clear_line(tiny_model: Path) -> None:
    with pytest.raises(AssertionError, match=r"error: .*http://127\.0\.0\.1:4318/v1/traces"):
        ServerProcess.start(str(tiny_model), "--backend", "reference", "--otlp", "nowhere")
