"""litellm, which speaks to this server as to OpenAI's and as to Anthropic's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import client_library
from tests.server.process import ServerProcess

litellm = client_library("litellm")
pytestmark = [pytest.mark.clients, pytest.mark.model]

ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello llama"}],
    "max_tokens": 12,
    "temperature": 0,
    "api_key": "secret",
    "num_retries": 0,
}


@pytest.fixture(autouse=True)
def local_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from elsewhere."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.mark.parametrize(
    ("model", "path"), [("openai/smollm2", "/v1"), ("hosted_vllm/smollm2", "/v1"), ("anthropic/smollm2", "")]
)
def test_a_whole_answer_and_a_stream(server: ServerProcess, said: str, model: str, path: str) -> None:
    whole = litellm.completion(model=model, api_base=server.url + path, **ASKED)
    assert whole.choices[0].message.content == said
    assert whole.usage.completion_tokens > 0
    chunks = litellm.completion(model=model, api_base=server.url + path, stream=True, **ASKED)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said


def test_a_refusal_has_its_class(server: ServerProcess) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/smollm2", api_base=f"{server.url}/v1", **{**ASKED, "temperature": -1})
