"""The description at /openapi.json is true, and no request that is made from it meets a bug."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.process import ServerProcess

schemathesis = pytest.importorskip("schemathesis")
CASES = 8  # an operation


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/openapi.json", verify=False).json())


def test_every_path_that_takes_json_has_its_struct(document: dict[str, Any]) -> None:
    forms = {"/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel", "/admin/reload"}
    plain = [path for path, item in document["paths"].items() if "post" in item and "requestBody" not in item["post"]]
    assert set(plain) <= forms, "say in puna/server/openapi.py what these take"
    chat = document["components"]["schemas"]["ChatRequest"]
    assert "messages" in chat["required"]
    assert {"max_tokens", "temperature", "stream"} <= set(chat["properties"])


def test_every_path_of_the_description_is_there(server: ServerProcess, document: dict[str, Any]) -> None:
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"} <= set(document["paths"])
    for path, item in document["paths"].items():
        allowed = httpx.request("PATCH", server.url + path.replace("{", "").replace("}", ""), verify=False)
        if path.startswith("/admin/"):
            assert allowed.status_code == 403, path  # nobody here has the key
            continue
        assert allowed.status_code == 405, path
        assert set(item) <= {method.strip().lower() for method in allowed.headers["allow"].split(",")}


def test_no_request_made_from_the_description_meets_a_bug(server: ServerProcess, document: dict[str, Any]) -> None:
    described = schemathesis.openapi.from_dict(document)
    checks = [schemathesis.checks.not_a_server_error]
    quick = settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    asked = 0
    for result in described.get_all_operations():
        operation = result.ok()
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.body:
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:

            @quick
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                # a connection of its own: one that was kept may be closed while the next request is on its way
                case.call_and_validate(base_url=server.url, checks=checks, timeout=60, headers={"connection": "close"})

            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong with what takes nothing
                ask()
    assert asked > 60
    assert server.health()["status"] == "ok"
