"""Files and batches with the real client: the answers of single requests, errors by line, a server that is killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.process import ServerProcess


def start(model: Path, state: Path, *more: str) -> ServerProcess:
    return ServerProcess.start(
        str(model), "--name", "tiny", "--kv-gib", "0.05", "--max-seqs", "8", "--state", str(state), *more
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="module")
def served_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def served(patient_model: Path, served_state: Path) -> Iterator[ServerProcess]:
    running = start(patient_model, served_state)
    yield running
    running.kill()


def client_of(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def line(number: int, **changes: Any) -> dict[str, Any]:
    body = {"prompt": f"line {number}", "max_tokens": 20, "seed": number, "ignore_eos": True}
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body | changes}


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def submit(client: openai.OpenAI, content: bytes, endpoint: Any = "/v1/completions") -> openai.types.Batch:
    uploaded = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(content), "in.jsonl", "batch")
    assert client.files.content(uploaded.id).content == content
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", metadata={"who": "me"}
    )


def wait(client: openai.OpenAI, batch_id: str, *statuses: str, timeout_s: float = 60) -> openai.types.Batch:
    deadline = time.monotonic() + timeout_s
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in (statuses or ("completed", "failed", "cancelled", "expired")):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found), "each line is answered once"
    return by_id


def test_a_batch_answers_each_line_as_a_client_would_be_answered(served: ServerProcess) -> None:
    lines = [line(number) for number in range(30)]
    with client_of(served) as client:
        batch = wait(client, submit(client, jsonl(lines)).id)
        assert batch.status == "completed"
        assert batch.errors is None
        assert batch.error_file_id is None
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (30, 30, 0)
        assert batch.metadata == {"who": "me"}
        found = answers(client, batch.output_file_id)
        assert list(found) == [one["custom_id"] for one in lines], "in the order of the input"
        for one in lines[::7]:
            alone = served.post("/v1/completions", one["body"]).json()["choices"]
            assert found[one["custom_id"]]["response"]["status_code"] == 200
            assert found[one["custom_id"]]["response"]["body"]["choices"] == alone
        assert next(iter(client.batches.list())).id == batch.id, "newest first"
        assert [one.purpose for one in client.files.list()][:2] == ["batch_output", "batch"]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 5}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
    ],
)
def test_every_endpoint_that_answers_can_be_a_batchs(
    served: ServerProcess, endpoint: str, body: dict[str, Any]
) -> None:
    body = {**body, "seed": 4}
    lines = [{"custom_id": "a", "method": "POST", "url": endpoint, "body": body}]
    with client_of(served) as client:
        batch = wait(client, submit(client, jsonl(lines), endpoint).id)
        found = answers(client, batch.output_file_id)["a"]["response"]
    alone = served.post(endpoint, body).json()
    assert found["status_code"] == 200
    same = "choices" if "choices" in alone else "content" if "content" in alone else "usage"
    assert found["body"][same] == alone[same]
    assert found["body"].keys() == alone.keys()


def test_a_full_disk_in_the_middle_of_a_batch_is_told_and_costs_nothing(
    served: ServerProcess, served_state: Path
) -> None:
    """The limit of file sizes stands in for it: the system refuses what a file would grow by."""
    lines = [line(number, max_tokens=300) for number in range(60)]
    unlimited = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
    with client_of(served) as client:
        batch = submit(client, jsonl(lines))
        while not (counts := client.batches.retrieve(batch.id).request_counts) or not counts.completed:
            time.sleep(0.005)
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        while not (told := client.batches.retrieve(batch.id)).errors:
            time.sleep(0.02)
        assert told.status == "in_progress"
        assert told.errors.data is not None
        assert told.errors.data[0].code == "storage_unavailable"
        assert "goes on when it can" in (told.errors.data[0].message or "")
        before = told.request_counts.completed if told.request_counts else 0
        assert 0 < before < 60
        files = set((served_state / "files").iterdir())
        refused = httpx.post(
            f"{served.url}/v1/files",
            data={"purpose": "batch"},
            files={"file": ("x.jsonl", b"x" * 10_000)},
            verify=False,
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        assert set((served_state / "files").iterdir()) == files, "nothing is left of it"
        assert served.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}).status_code == 200
        assert served.health()["status"] == "ok"
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, unlimited)
        batch = wait(client, batch.id)
        assert batch.status == "completed"
        assert batch.errors is None
        found = answers(client, batch.output_file_id)
        assert list(found) == [one["custom_id"] for one in lines]
    assert not any("Traceback" in said for said in served.lines)


def test_a_line_that_is_refused_is_in_the_error_file_with_its_reason(served: ServerProcess) -> None:
    lines = [line(0), line(1, temperature=-1), line(2, max_tokens=10**9)]
    with client_of(served) as client:
        batch = wait(client, submit(client, jsonl(lines)).id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
        errors = answers(client, batch.error_file_id)
        assert errors["c1"]["response"]["status_code"] == 400
        assert errors["c1"]["response"]["body"]["error"]["param"] == "temperature"
        assert set(answers(client, batch.output_file_id)) == {"c0"}


def test_names_in_a_line_that_nobody_reads_are_named_in_its_answer(served: ServerProcess) -> None:
    lines = [line(0, nonsense=1) | {"when": "now"}, line(1)]
    with client_of(served) as client:
        found = answers(client, wait(client, submit(client, jsonl(lines)).id).output_file_id)
    assert found["c0"]["response"]["puna-ignored"] == "when, nonsense"
    assert "puna-ignored" not in found["c1"]["response"]


def test_files_are_listed_in_the_order_that_is_asked_for(served: ServerProcess) -> None:
    with client_of(served) as client:
        made = [client.files.create(file=(name, b"{}"), purpose="batch").id for name in ("a", "b")]
        listed = {order: [one.id for one in client.files.list(order=order, limit=1000)] for order in ("asc", "desc")}
    assert listed["desc"][:2] == made[::-1]
    assert listed["asc"] == listed["desc"][::-1]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"\n\n", "empty_file"),
        (b"no json\n", "invalid_json_line"),
        (b"\xff\xfe\n", "invalid_json_line"),
        (b"[" * 100000 + b"\n", "invalid_json_line"),
        (jsonl([line(0), line(0)]), "duplicate_custom_id"),
        (jsonl([line(0) | {"url": "/v1/other"}]), "invalid_url"),
        (jsonl([line(0) | {"method": "GET"}]), "invalid_method"),
        (jsonl([line(0, stream=True)]), "invalid_request"),
        (jsonl([line(0) | {"body": []}]), "invalid_request"),
    ],
)
def test_a_file_that_is_wrong_fails_with_the_line_and_the_reason(
    served: ServerProcess, content: bytes, code: str
) -> None:
    with client_of(served) as client:
        batch = wait(client, submit(client, content).id)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert [error.code for error in batch.errors.data] == [code]


def test_a_server_that_is_killed_in_the_middle_goes_on_with_what_is_missing(patient_model: Path, state: Path) -> None:
    lines = [line(number, max_tokens=600) for number in range(40)]
    first = start(patient_model, state)
    try:
        with client_of(first) as client:
            batch_id = submit(client, jsonl(lines)).id
            while True:
                counts = client.batches.retrieve(batch_id).request_counts
                if counts is not None and counts.completed >= 5:
                    break
                time.sleep(0.005)
            assert counts.completed < 40
    finally:
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    second = start(patient_model, state)
    try:
        with client_of(second) as client:
            batch = wait(client, batch_id)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 40
            found = answers(client, batch.output_file_id)
            assert list(found) == [one["custom_id"] for one in lines]
            alone = second.post("/v1/completions", lines[39]["body"]).json()["choices"]
            assert found["c39"]["response"]["body"]["choices"] == alone
    finally:
        second.kill()


def test_a_cancelled_batch_keeps_what_it_has_and_names_what_it_has_not(served: ServerProcess) -> None:
    lines = [line(number, max_tokens=2000) for number in range(60)]
    with client_of(served) as client:
        batch = submit(client, jsonl(lines))
        while not (counts := client.batches.retrieve(batch.id).request_counts) or not counts.completed:
            time.sleep(0.005)
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        client.batches.cancel(batch.id)
        batch = wait(client, batch.id)
        assert batch.status == "cancelled"
        done, missing = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        assert len(done) + len(missing) == 60
        assert missing["c59"]["error"]["code"] == "batch_cancelled"
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
        assert client.files.delete(batch.input_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(batch.input_file_id)
    served.wait_until_idle()


def test_two_servers_do_not_share_a_folder(served: ServerProcess, patient_model: Path, served_state: Path) -> None:
    assert served.process.poll() is None
    other = start(patient_model, served_state)
    try:
        response = httpx.get(f"{other.url}/v1/files", verify=False)
        assert response.status_code == 503
        assert "another server uses" in response.json()["error"]["message"]
        assert other.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}).status_code == 200
    finally:
        other.kill()


def test_forms_that_are_none_are_refused(served: ServerProcess) -> None:
    url = f"{served.url}/v1/files"
    cases: list[tuple[int, dict[str, Any]]] = [
        (415, {"json": {"purpose": "batch"}}),
        (400, {"data": {"purpose": "batch"}, "files": {"other": b"x"}}),
        (400, {"data": {"purpose": "batch", "expires_after[seconds]": "9"}, "files": {"file": ("x", b"x")}}),
        (400, {"data": {"purpose": ["batch", "batch"]}, "files": {"file": ("x", b"x")}}),
        (415, {"data": {"purpose": "batch"}, "files": {"file": ("x", b"x")}, "headers": {"content-encoding": "gzip"}}),
        (400, {"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}}),
        (400, {"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        (400, {"content": b"no form", "headers": {"content-type": "multipart/form-data"}}),
    ]
    for status, arguments in cases:
        response = httpx.post(url, **arguments, verify=False)
        assert response.status_code == status, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"
    further = httpx.post(url, data={"purpose": "batch", "colour": "red"}, files={"file": ("x", b"x")}, verify=False)
    assert (further.status_code, further.headers["puna-ignored"]) == (200, "colour")
    assert httpx.get(f"{url}/file-nothing", verify=False).status_code == 404
    assert httpx.get(f"{url}/..%2F..%2Fetc/content", verify=False).status_code == 404
