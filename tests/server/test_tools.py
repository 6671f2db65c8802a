"""Tools on a real server: a model of random weights is forced to call, at every endpoint and by every choice."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess
from tests.tiny import write_tiny_llama

# As Qwen's, in short: tools, calls and results; and one that opens a block of reasoning, or an empty one.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    "<tool_call></tool_call><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}",
)
UNITS = ["celsius", "kelvin"]
WEATHER = {
    "type": "object",
    "properties": {"unit": {"enum": UNITS}, "now": {"type": "boolean"}},
    "required": ["unit", "now"],
}
SWITCH = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "get_weather", "description": "Of today", "parameters": WEATHER},
    {"name": "switch", "parameters": SWITCH},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
ASK = [{"role": "user", "content": "How warm is it?"}]
CHAT: dict[str, Any] = {"messages": ASK, "tools": TOOLS, "seed": 3, "max_tokens": 300, "parallel_tool_calls": False}
NAMED = {"type": "function", "function": {"name": "switch"}}
PATH = "/v1/chat/completions"


def start(folder: Path, template: str) -> ServerProcess:
    metadata = {"tokenizer.chat_template": template}
    path = write_tiny_llama(folder / "tools.gguf", context=8192, metadata=metadata)
    return ServerProcess.start(str(path), "--name", "tiny", "--kv-gib", "0.05", "--max-seqs", "8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start(tmp_path_factory.mktemp("model"), TEMPLATE)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start(tmp_path_factory.mktemp("model"), THINKING)
    yield running
    running.kill()


def message_of(server: ServerProcess, change: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The whole message and the finish reason, after the stream was seen to say the same."""
    response = server.post(PATH, {**CHAT, **change})
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    calls: list[list[str]] = []
    content, reason = "", None
    for event in server.events(PATH, {**CHAT, **change})[:-1]:
        for part in event["choices"]:
            content += part["delta"].get("content") or ""
            reason = part["finish_reason"] or reason
            for call in part["delta"].get("tool_calls", []):
                if "id" in call:
                    calls.append([call["function"]["name"], ""])
                calls[call["index"]][1] += call["function"]["arguments"]
    message = choice["message"]
    whole = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", [])]
    assert (calls, content, reason) == (whole, message["content"] or "", choice["finish_reason"])
    return message, choice["finish_reason"]


def check_call(name: str, arguments: dict[str, Any]) -> None:
    if name == "get_weather":
        assert set(arguments) == {"unit", "now"}
        assert arguments["unit"] in UNITS
    else:
        assert name == "switch"
        assert isinstance(arguments.pop("on"), bool)
        assert arguments == {}


def test_a_required_call_is_one_of_the_tools_with_arguments_of_its_schema(server: ServerProcess) -> None:
    for seed in range(4):
        message, reason = message_of(server, {"tool_choice": "required", "seed": seed})
        (call,) = message["tool_calls"]
        assert (message["content"], reason, call["type"]) == (None, "tool_calls", "function")
        check_call(call["function"]["name"], json.loads(call["function"]["arguments"]))


def test_several_required_calls_are_all_whole(server: ServerProcess) -> None:
    counts = set()
    for seed in range(6):
        message, reason = message_of(
            server, {"tool_choice": "required", "seed": seed, "parallel_tool_calls": True, "max_tokens": 2000}
        )
        assert reason == "tool_calls"
        for call in message["tool_calls"]:
            check_call(call["function"]["name"], json.loads(call["function"]["arguments"]))
        assert len({call["id"] for call in message["tool_calls"]}) == len(message["tool_calls"])
        counts.add(len(message["tool_calls"]))
    assert max(counts) <= 8
    assert len(counts) > 1


def test_a_named_tool_is_the_one_that_is_called_and_ends_with_stop(server: ServerProcess) -> None:
    message, reason = message_of(server, {"tool_choice": NAMED, "stop": ["{", "o"]})
    assert reason == "stop"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["switch"]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "switch"}}]}
    message, reason = message_of(server, {"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}})
    assert message["tool_calls"][0]["function"]["name"] == "switch"


def test_a_call_that_is_cut_says_so(server: ServerProcess) -> None:
    message, reason = message_of(server, {"tool_choice": NAMED, "max_tokens": 40})
    whole, _ = message_of(server, {"tool_choice": NAMED})
    assert reason == "length"
    for call, full in zip(message.get("tool_calls", []), whole["tool_calls"], strict=False):
        assert full["function"]["arguments"].startswith(call["function"]["arguments"])


def test_an_answer_of_random_words_calls_nothing_and_is_content(server: ServerProcess) -> None:
    for change in ({}, {"tool_choice": "none"}, {"tool_choice": "auto", "max_tokens": 60}):
        message, _ = message_of(server, {**change, "max_tokens": 40})
        assert "tool_calls" not in message
        assert isinstance(message["content"], str)


def test_without_tools_or_with_none_of_them_to_be_called_the_model_is_told_of_none(server: ServerProcess) -> None:
    def count(change: dict[str, Any]) -> int:
        return int(server.post("/tokenize", {"messages": ASK, **change}).json()["count"])

    assert count({"tools": TOOLS, "tool_choice": "none"}) == count({}) < count({"tools": TOOLS})


def test_old_functions_are_called_as_they_were(server: ServerProcess) -> None:
    body = {"messages": ASK, "functions": FUNCTIONS, "function_call": {"name": "switch"}, "max_tokens": 300, "seed": 1}
    choice = server.post(PATH, body).json()["choices"][0]
    assert choice["message"]["function_call"]["name"] == "switch"
    check_call("switch", json.loads(choice["message"]["function_call"]["arguments"]))
    name, arguments = "", ""
    for event in server.events(PATH, body)[:-1]:
        for part in event["choices"]:
            call = part["delta"].get("function_call", {})
            name += call.get("name", "")
            arguments += call.get("arguments", "")
    assert {"name": name, "arguments": arguments} == choice["message"]["function_call"]
    further = [*ASK, choice["message"], {"role": "function", "name": "switch", "content": "done"}]
    assert server.post(PATH, {**body, "messages": further, "function_call": "none"}).status_code == 200


def test_the_official_client_streams_calls_and_sends_results_back(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "tools": TOOLS, "seed": 3, "max_tokens": 300}
        with client.chat.completions.stream(**asked, tool_choice="required", parallel_tool_calls=False) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.tool_calls
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "20"}
        further = [*ASK, message.model_dump(exclude_none=True), result]
        assert client.chat.completions.create(**{**asked, "messages": further, "max_tokens": 5}).choices[0].message
        response = client.responses.create(
            model="tiny",
            input="How warm is it?",
            tools=[{"type": "function", "strict": True, **function} for function in FUNCTIONS],
            tool_choice={"type": "function", "name": "switch"},
        )
        (item,) = response.output
        assert item.type == "function_call"
        check_call(item.name, json.loads(item.arguments))
        output: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "done"}]
        second = client.responses.create(
            model="tiny", previous_response_id=response.id, input=output, max_output_tokens=5
        )
        kept = [entry.type for entry in client.responses.input_items.list(second.id)]
        assert kept == ["function_call_output"]


def test_a_response_streams_the_events_of_its_calls(server: ServerProcess) -> None:
    body = {
        "input": "How warm is it?",
        "tools": [{"type": "function", **function} for function in FUNCTIONS],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 3,
        "max_output_tokens": 300,
    }
    whole = server.post("/v1/responses", body).json()["output"]
    response = server.post("/v1/responses", {**body, "stream": True})
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    arguments = "".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta")
    (done,) = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert arguments == done["arguments"] == whole[0]["arguments"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call"]


def test_a_message_uses_a_tool_and_takes_its_result(server: ServerProcess) -> None:
    tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS]
    body = {"messages": ASK, "tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    message = server.post("/v1/messages", {**body, "max_tokens": 300, "seed": 3}).json()
    (block,) = message["content"]
    assert (message["stop_reason"], block["type"]) == ("tool_use", "tool_use")
    check_call(block["name"], dict(block["input"]))
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "20"}]}
    further = [*ASK, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": [result]}]
    chat = {"messages": further, "tools": tools, "tool_choice": {"type": "auto"}, "max_tokens": 5}
    assert server.post("/v1/messages", chat).status_code == 200
    counted = server.post("/v1/messages/count_tokens", {"messages": further, "tools": tools}).json()["input_tokens"]
    assert counted > server.post("/v1/messages/count_tokens", {"messages": further}).json()["input_tokens"]


def test_reasoning_that_the_prompt_opens_is_split_off_and_counted(thinker: ServerProcess) -> None:
    body = {"messages": ASK, "max_tokens": 20, "seed": 1, "chat_template_kwargs": {"enable_thinking": True}}
    body["logit_bias"] = {"2": -100, "0": -100, "1": -100, "13": -100}
    answer = thinker.post(PATH, body).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning"] == message["reasoning_content"] != ""
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 20}
    plain = thinker.post(PATH, {**body, "chat_template_kwargs": {"enable_thinking": False}}).json()
    assert "reasoning" not in plain["choices"][0]["message"]
    assert thinker.post(PATH, {**body, "chat_template_kwargs": {"mood": 1}}).headers["puna-ignored"] == (
        "chat_template_kwargs.mood"
    )


def test_a_form_or_a_prefix_of_the_answer_stands_behind_the_reasoning(thinker: ServerProcess) -> None:
    variables = {"chat_template_kwargs": {"enable_thinking": True}}
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    message = thinker.post(PATH, {"messages": ASK, **variables, **form}).json()["choices"][0]["message"]
    assert message["content"] in ("yes", "no")
    begun = [*ASK, {"role": "assistant", "content": "It is"}]
    asked = {"messages": begun, "continue_final_message": True, **variables}
    ids = thinker.post("/tokenize", asked).json()["tokens"]
    text = thinker.post("/detokenize", {"tokens": ids}).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\nIt is")


def test_an_answer_goes_on_in_the_last_message(server: ServerProcess) -> None:
    begun = [*ASK, {"role": "assistant", "content": "It is"}]
    count = server.post("/tokenize", {"messages": begun, "continue_final_message": True}).json()["count"]
    whole = server.post("/tokenize", {"messages": ASK}).json()["count"]
    words = server.post("/tokenize", {"prompt": "It is", "add_special_tokens": False}).json()["count"]
    assert count == whole + words
    answer = server.post(PATH, {"messages": begun, "continue_final_message": True, "max_tokens": 3}).json()
    assert answer["usage"]["prompt_tokens"] == count


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a{1000}){1000}"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]},
        {"properties": 5},
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_or_followed(
    server: ServerProcess, parameters: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    response = server.post(PATH, {**CHAT, "tools": tools, "tool_choice": "required", "max_tokens": 20})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"].startswith("tools")
    assert server.post(PATH, {**CHAT, "tools": tools, "max_tokens": 2}).status_code == 200


def test_hundreds_of_tools_are_served(server: ServerProcess) -> None:
    tools = [{"type": "function", "function": {"name": f"tool_{i}"}} for i in range(40)]
    message, _ = message_of(server, {"tools": tools, "tool_choice": "required"})
    assert message["tool_calls"][0]["function"]["name"].startswith("tool_")


def test_calls_go_on_identically_when_the_engine_is_killed(server: ServerProcess) -> None:
    bits = {"type": "array", "items": {"type": "boolean"}, "minItems": 300, "maxItems": 300}
    schema = {"type": "object", "properties": {"bits": bits}, "required": ["bits"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    change = {"tools": tools, "tool_choice": "required", "max_tokens": 3000}

    def ask(seed: int) -> Any:
        return message_of(server, {**change, "seed": seed})[0]["tool_calls"][0]["function"]

    wanted = [ask(seed) for seed in range(2)]
    assert len(json.loads(wanted[0]["arguments"])["bits"]) == 300
    before = server.health()["engine"]["restarts"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, seed) for seed in range(2)]
        while server.health()["engine"]["live_requests"] < 2:
            time.sleep(0.01)
        os.kill(server.engine_pid, signal.SIGKILL)
        assert [one.result(timeout=100) for one in asked] == wanted
    assert server.health()["engine"]["restarts"] > before
