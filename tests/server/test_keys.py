"""Keys that name tenants: at a real server, from a file that changes under it, and never in what it says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from puna.errors import InputError
from puna.server.keys import KeyRing, hash_key, keys_of_environment, new_key, parse_key_file, plain_entry
from tests.server.process import ServerProcess

TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 2, "ignore_eos": True}
ACME, BETA, SLOW, ONE, ADMIN = (new_key() for _ in range(5))
LIMITS = """
[tenants.beta]
requests_per_minute = 2
[tenants.slow]
tokens_per_minute = 40
context_tokens = 30
[tenants.one]
concurrency = 1
"""


def key_file(**keys: str) -> str:
    return "".join(f'[[keys]]\ntenant = "{name}"\nsha256 = "{hash_key(key)}"\n' for name, key in keys.items()) + LIMITS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(key_file(acme=ACME, beta=BETA, slow=SLOW, one=ONE))
    return path


@pytest.fixture(scope="module")
def server(patient_model: Path, file: Path) -> Iterator[ServerProcess]:
    options = "--backend", "reference", "--name", "tiny", "--keys", str(file)
    running = ServerProcess.start(str(patient_model), *options, env={"PUNA_ADMIN_KEY": ADMIN})
    yield running
    running.kill()


def post(server: ServerProcess, key: str, body: dict[str, Any] = TEXT, path: str = "/v1/completions") -> httpx.Response:
    return server.post(path, body, authorization=f"Bearer {key}")


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_key_names_its_tenant(server: ServerProcess) -> None:
    def used() -> dict[str, dict[str, Any]]:
        response = httpx.get(f"{server.url}/admin/tenants", headers={"x-api-key": ADMIN}, verify=False)
        return {tenant["tenant"]: tenant for tenant in response.json()["data"]}

    before = used()["acme"]
    answered = post(server, ACME)
    assert answered.status_code == 200
    after = used()["acme"]
    assert after["tokens"] - before["tokens"] == answered.json()["usage"]["total_tokens"]
    assert (after["requests"] - before["requests"], after["running"]) == (1, 0)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v2/nothing", "/admin/tenants", "/metrics"])
def test_nothing_but_health_is_told_without_a_key(server: ServerProcess, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {ACME}"}, {"x-api-key": "é"}):
        response = httpx.request(
            "GET", server.url + path, headers={k: v.encode() for k, v in headers.items()}, verify=False
        )
        assert code(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.url}/health", verify=False).status_code == 200
    assert httpx.get(f"{server.url}/ready", verify=False).status_code == 200


def test_an_administrative_key_and_a_tenants_do_not_stand_in_for_each_other(server: ServerProcess) -> None:
    assert code(post(server, ADMIN)) == (403, "wrong_kind_of_key")
    assert code(post(server, ACME, path="/admin/reload")) == (403, "wrong_kind_of_key")
    assert post(server, ADMIN, path="/admin/reload").json()["keys"] >= 3


def test_requests_a_minute_are_limited_and_the_client_is_told_when_to_come_back(server: ServerProcess) -> None:
    first = post(server, BETA)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    post(server, BETA, {**TEXT, "stream": True})
    with pytest.raises(openai.RateLimitError) as caught:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=BETA, max_retries=0).completions.create(
            model="tiny", prompt="x"
        )
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert (
        httpx.get(f"{server.url}/v1/models", headers={"authorization": f"bearer {BETA}"}, verify=False).status_code
        == 200
    )
    assert post(server, ACME).status_code == 200


def test_tokens_context_and_requests_at_once_are_limited(server: ServerProcess) -> None:
    too_long = post(server, SLOW, {**TEXT, "prompt": [5] * 20, "max_tokens": 11})
    assert code(too_long) == (400, "context_length_exceeded")
    assert "30" in too_long.json()["error"]["message"]
    chat = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "stream": True}
    url, headers = f"{server.url}/v1/chat/completions", {"authorization": f"Bearer {SLOW}"}
    with httpx.stream("POST", url, json=chat, headers=headers, verify=False) as running:
        # the tenant's context is full, not the model's
        assert any('"finish_reason":"length"' in line for line in running.iter_lines())
    refused = post(server, SLOW, {**TEXT, "prompt": [5] * 20})
    assert code(refused) == (429, "rate_limit_exceeded")
    assert "40 tokens a minute" in refused.json()["error"]["message"]
    headers = {"authorization": f"Bearer {ONE}"}
    with httpx.stream("POST", url, json={**chat, "max_tokens": 9000}, headers=headers, verify=False) as running:
        lines = running.iter_lines()
        next(lines)
        assert code(post(server, ONE)) == (429, "rate_limit_exceeded")
    wait_for(lambda: post(server, ONE).status_code == 200)  # who leaves makes room


def test_a_key_that_is_taken_away_or_added_counts_without_a_restart(server: ServerProcess, file: Path) -> None:
    newer = new_key()
    with httpx.stream(
        "POST",
        f"{server.url}/v1/completions",
        json={**TEXT, "max_tokens": 300, "stream": True},
        headers={"authorization": f"Bearer {ACME}"},
        verify=False,
    ) as running:
        lines = running.iter_lines()
        next(lines)
        file.write_text(key_file(gamma=newer))
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: post(server, newer).status_code == 200)
        assert code(post(server, ACME)) == (401, "invalid_api_key")
        assert list(lines)[-2] == "data: [DONE]"
    file.write_text("nonsense = 1")
    time.sleep(1.5)
    assert post(server, newer).status_code == 200  # a file that cannot be used changes nothing
    assert code(post(server, ADMIN, path="/admin/reload"))[0] == 400
    file.write_text(key_file(acme=ACME, beta=BETA, slow=SLOW, one=ONE))
    wait_for(lambda: post(server, ACME).status_code == 200)  # seen without being told
    assert post(server, newer).status_code == 401


def test_no_key_is_ever_said_or_kept(server: ServerProcess, file: Path) -> None:
    secret = "a-key-that-someone-sends"
    server.post("/v1/completions", b"{", authorization=f"Bearer {ACME}")
    refused = server.post("/v1/completions", TEXT, authorization=f"Bearer {secret}")
    said = (
        refused.text
        + str(refused.headers)
        + httpx.get(f"{server.url}/health", verify=False).text
        + "".join(server.lines)
    )
    status = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode()
    for key in (ACME, BETA, SLOW, ADMIN, secret):
        assert key not in said + file.read_text() + status


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_ring_finds_the_keys_it_has_and_no_others() -> None:
    keys = [new_key() for _ in range(50)]
    ring = KeyRing([plain_entry(key, f"t{number}") for number, key in enumerate(keys)])
    assert [ring.find(key).tenant for key in keys] == [f"t{number}" for number in range(50)]  # type: ignore[union-attr]
    for wrong in ("", keys[0][:-1], keys[0] + "x", hash_key(keys[0]), keys[0].upper(), "\udcff"):
        assert ring.find(wrong) is None
    assert len(set(keys)) == 50
    assert all(len(key) > 43 for key in keys)


def test_a_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, key = list[tuple[str, str]](), new_key()
    ring = KeyRing([plain_entry(key)])
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)))
    assert ring.find(key) is None, "nothing else than that comparison lets a key in"
    assert compared == [(hash_key(key), hash_key(key))]


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 5", "keys"),
        ("what = 5", "what"),
        ("[[keys]]", "tenant"),
        (f'[[keys]]\ntenant = "a b"\nsha256 = "{HASH}"', "a b"),
        ('[[keys]]\ntenant = "a"\nsha256 = "plain"', "64 hexadecimal"),
        (f'[[keys]]\ntenant = "a"\nsha256 = "{HASH}"\n' * 2, "twice"),
        ("[tenants.a]\nrequests = 5", "requests"),
        ("[tenants.a]\nconcurrency = -5", "concurrency is -5"),
        ("[[keys", "end of document"),
    ],
)
def test_a_file_of_keys_that_is_wrong_says_where(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"some\.toml") as caught:
        parse_key_file(text, "some.toml")
    assert said in str(caught.value)


def test_keys_of_the_environment_name_tenants_too() -> None:
    entries = keys_of_environment(f" a=k1\n b=sha256:{HASH} ")
    assert [(entry.tenant, entry.sha256) for entry in entries] == [("a", hash_key("k1")), ("b", HASH)]
    with pytest.raises(InputError) as caught:
        keys_of_environment("a=k1 only-the-secret")
    assert "entry 2" in str(caught.value)
    assert "only-the-secret" not in str(caught.value)


def test_tenants_do_not_share_cached_prefixes(server: ServerProcess) -> None:
    body = {**TEXT, "prompt": [7] * 200}

    def cached(key: str) -> int:
        usage = post(server, key, body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(ACME) == 0
    assert cached(ACME) > 0
    assert cached(ONE) == 0


def test_what_one_tenant_has_no_other_finds_by_its_id(server: ServerProcess) -> None:
    """The answer is the same as for an id that nobody has."""
    mine, theirs = {"authorization": f"Bearer {ACME}"}, {"authorization": f"Bearer {ONE}"}
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 1}}'
    with httpx.Client(base_url=server.url, headers=mine, timeout=60) as client:
        form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", line)}}
        file_id = client.post("/v1/files", **form).json()["id"]
        order = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch_id = client.post("/v1/batches", json=order).json()["id"]
        response_id = client.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}).json()["id"]
        ids = file_id, batch_id, response_id
        asks: list[tuple[str, str, dict[str, Any] | None]] = [
            ("GET", f"/v1/files/{file_id}", None),
            ("GET", f"/v1/files/{file_id}/content", None),
            ("DELETE", f"/v1/files/{file_id}", None),
            ("GET", f"/v1/files?after={file_id}", None),
            ("POST", "/v1/batches", order),
            ("GET", f"/v1/batches/{batch_id}", None),
            ("POST", f"/v1/batches/{batch_id}/cancel", None),
            ("GET", f"/v1/batches?after={batch_id}", None),
            ("GET", f"/v1/responses/{response_id}", None),
            ("DELETE", f"/v1/responses/{response_id}", None),
            ("GET", f"/v1/responses/{response_id}/input_items", None),
            ("POST", "/v1/responses", {"input": "x", "previous_response_id": response_id}),
        ]
        for method, path, body in asks:
            refused = client.request(method, path, json=body, headers=theirs)
            assert refused.status_code in (400, 404), path
            content = None if body is None else json.loads(_without(json.dumps(body), ids))
            same = client.request(method, _without(path, ids), json=content, headers=theirs)
            assert (same.status_code, same.text) == (refused.status_code, _without(refused.text, ids))
        for listing in ("/v1/files", "/v1/batches"):
            assert client.get(listing, headers=theirs).json()["data"] == []
            assert client.get(listing).json()["data"] != []
        assert client.get(f"/v1/responses/{response_id}").status_code == 200


def _without(text: str, ids: tuple[str, ...]) -> str:
    for one in ids:
        text = text.replace(one, "nobodys")
    return text
