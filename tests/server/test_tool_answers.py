"""Answers with calls and reasoning, as every endpoint shows them: the stream joined is the whole, however text comes.

The text is given, so that every way to cut it can be tried; what a model makes of tools is tried in test_tools.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.params import SamplingParams
from puna.models.calls.formats import FORMATS
from puna.models.calls.reasoning import KNOWN, ReasoningReader, ReasoningTokens
from puna.server.chat import ChatShape, chat_chunks, whole_chat
from puna.server.conversation import Conversation
from puna.server.deltas import Delta, Heading, UsageCount
from puna.server.dialect import DIALECTS
from puna.server.messages.stream import message_events, whole_message
from puna.server.parts import AnswerParts
from puna.server.prompts import Prompt
from puna.server.responses.shapes import Response, ResponseEvent
from puna.server.responses.stream import ResponseStream, answer_message, whole_response

HEADING = Heading("x", 1, "m", "print")
CALLS = '<tool_call>{"name": "f", "arguments": {"a": "\u00e9"}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
ANSWERS = [
    f"<think>\nI need f.\n</think>\n\nLook:\n{CALLS}",
    CALLS,
    "<think>hm</think>Just words.",
    "Words. <tool_call>{nothing}</tool_call>",
    '<tool_call>{"name": "f", "arguments": {"a": 1',
    "<think>never done",
    "",
]
NOTHING: Any = None
Summary = dict[str, Any]


def parts(text: str, bound: tuple[str, ...] = ()) -> AnswerParts:
    return AnswerParts(
        lambda: ReasoningReader(KNOWN[0], FORMATS["hermes"].make_reader(["f", "g"], bound)),
        lambda: ReasoningTokens(KNOWN[0], text.__getitem__),  # a token a character
    )


async def deltas_of(text: str, ends: list[int], finish: str, index: int = 0) -> AsyncGenerator[Delta]:
    places = [0, *sorted({end for end in ends if 0 < end < len(text)}), len(text)]
    for number, (a, b) in enumerate(itertools.pairwise(places)):
        last = number == len(places) - 2
        yield Delta(index, text[a:b], list(range(a, b)), [], finish_reason=finish if last else None)


def conversation(text: str, ends: list[int], finish: str, bound: tuple[str, ...] = ()) -> Conversation:
    deltas = deltas_of(text, ends, finish)
    return Conversation(
        HEADING, Prompt("", []), SamplingParams(max_tokens=9), UsageCount(0), deltas, parts(text, bound)
    )


def shown(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


async def chat(text: str, ends: list[int], finish: str, dialect: str, bound: tuple[str, ...]) -> list[Summary]:
    """Of the stream, and of the whole."""
    shape = ChatShape(
        dialect=DIALECTS[dialect],
        logprobs=False,
        prompt_logprobs=False,
        token_ids=False,
        include_usage=True,
        continuous_usage=False,
    )

    def chunks() -> tuple[AsyncGenerator[Any], UsageCount]:
        count = UsageCount(0)
        deltas = deltas_of(text, ends, finish)
        return chat_chunks(HEADING, Prompt("", []), deltas, count, NOTHING, shape, parts(text, bound)), count

    streamed: Summary = {"content": "", "reasoning": "", "calls": [], "finish": None}
    async for chunk in chunks()[0]:
        for choice in shown(chunk)["choices"]:
            delta = choice["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            streamed["content"] += delta.get("content") or ""
            streamed["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    assert (call["type"], call["index"]) == ("function", len(streamed["calls"]))
                    streamed["calls"].append([call["function"]["name"], ""])
                streamed["calls"][call["index"]][1] += call["function"].get("arguments", "")
            assert streamed["finish"] is None
            streamed["finish"] = choice["finish_reason"]
    made, count = chunks()
    body = shown(await whole_chat(made, count))
    message = body["choices"][0]["message"]
    assert (message["content"] is None) <= ("tool_calls" in message)
    whole = {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning_content", ""),
        "calls": [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", [])],
        "finish": body["choices"][0]["finish_reason"],
    }
    assert len({call["id"] for call in message.get("tool_calls", [])}) == len(whole["calls"])
    whole["reasoning_tokens"] = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return [{**streamed, "reasoning_tokens": whole["reasoning_tokens"]}, whole]


async def messages(text: str, ends: list[int], finish: str, bound: tuple[str, ...]) -> list[Summary]:
    blocks: list[Any] = []
    stop = None
    async for event in message_events(conversation(text, ends, finish, bound), 9):
        said = shown(event)
        match said["type"]:
            case "content_block_start":
                assert said["index"] == len(blocks)
                blocks.append({**said["content_block"], "open": True, "json": ""})
            case "content_block_delta":
                block, delta = blocks[said["index"]], said["delta"]
                assert block["open"]
                block["json"] += delta.get("partial_json", "")
                for name in ("text", "thinking"):
                    if name in delta:
                        block[name] += delta[name]
            case "content_block_stop":
                blocks[said["index"]]["open"] = False
            case "message_delta":
                stop = said["delta"]["stop_reason"]
    assert not any(block.pop("open") for block in blocks)
    for block in blocks:
        written = block.pop("json")
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(written)
            except ValueError:
                block["input"] = {"INVALID_JSON": written}
    whole = shown(await whole_message(message_events(conversation(text, ends, finish, bound), 9)))
    assert whole["stop_reason"] == stop
    for block in [*blocks, *whole["content"]]:
        block.pop("id", None)
    return [{"blocks": blocks, "stop": stop}, {"blocks": whole["content"], "stop": whole["stop_reason"]}]


def response_stream(text: str, ends: list[int], finish: str, bound: tuple[str, ...]) -> AsyncIterator[Any]:
    fields: dict[str, Any] = {"max_output_tokens": 9, "instructions": None, "previous_response_id": None, "user": None}
    opening = Response(
        id="resp_1",
        created_at=1,
        status="in_progress",
        model="m",
        output=[],
        store=False,
        temperature=1.0,
        top_logprobs=0,
        top_p=1.0,
        truncation="disabled",
        metadata={},
        system_fingerprint="print",
        **fields,
    )
    talk = conversation(text, ends, finish, bound)

    async def done(whole: Response) -> Response:
        return whole

    return ResponseStream(talk, opening, NOTHING, done).events()


async def responses(text: str, ends: list[int], finish: str, bound: tuple[str, ...]) -> list[Summary]:
    items: list[Any] = []
    texts: list[str] = []
    numbers = []
    async for event in response_stream(text, ends, finish, bound):
        said = shown(event)
        numbers.append(said["sequence_number"])
        kind = said["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert said["output_index"] == len(items)
            items.append(None)
            texts.append("")
        elif kind.endswith(".delta"):
            texts[said["output_index"]] += said["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert said["text"] == texts[said["output_index"]]
        elif kind == "function_call_arguments.done":
            assert said["arguments"] == texts[said["output_index"]]
        elif kind == "output_item.done":
            assert items[said["output_index"]] is None
            items[said["output_index"]] = said["item"]
    assert numbers == list(range(len(numbers)))
    last = [event async for event in response_stream(text, ends, finish, bound)][-1]
    assert isinstance(last, ResponseEvent)
    whole = shown(last.response)

    async def once() -> AsyncIterator[Any]:
        yield last

    assert shown(await whole_response(once())) == whole
    for item in [*items, *whole["output"]]:
        item.pop("id")
        item.pop("call_id", None)
    answer = answer_message(last.response.output)
    assert len(answer.get("tool_calls", [])) == sum(item["type"] == "function_call" for item in items)
    return [{"items": items}, {"items": whole["output"]}]


async def every_way(text: str, ends: list[int], finish: str, bound: tuple[str, ...]) -> list[Summary]:
    of_chat = [await chat(text, ends, finish, dialect, bound) for dialect in DIALECTS]
    assert all(one == of_chat[0][0] for pair in of_chat for one in pair)
    of_messages = await messages(text, ends, finish, bound)
    of_responses = await responses(text, ends, finish, bound)
    assert of_messages[0] == of_messages[1]
    assert of_responses[0] == of_responses[1]
    return [of_chat[0][0], of_messages[0], of_responses[0]]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ANSWERS),
    st.lists(st.integers(0, 100)),
    st.sampled_from(["stop", "length"]),
    st.sampled_from([(), ("f", "g")]),
)
def test_a_stream_joined_is_the_whole_however_the_text_comes(
    text: str, ends: list[int], finish: str, bound: tuple[str, ...]
) -> None:
    wanted = asyncio.run(every_way(text, [], finish, bound))
    assert asyncio.run(every_way(text, ends, finish, bound)) == wanted
    assert asyncio.run(every_way(text, list(range(len(text))), finish, bound)) == wanted


def test_every_endpoint_shows_reasoning_content_and_calls() -> None:
    of_chat, of_messages, of_responses = asyncio.run(every_way(ANSWERS[0], [], "stop", ()))
    assert of_chat == {
        "content": "Look:",
        "reasoning": "I need f.",
        "calls": [["f", '{"a": "\u00e9"}'], ["g", "{}"]],
        "finish": "tool_calls",
        "reasoning_tokens": len("<think>\nI need f.\n</think>"),
    }
    assert of_messages == {
        "blocks": [
            {"type": "thinking", "thinking": "I need f.", "signature": ""},
            {"type": "text", "text": "Look:", "citations": None},
            {"type": "tool_use", "name": "f", "input": {"a": "\u00e9"}},
            {"type": "tool_use", "name": "g", "input": {}},
        ],
        "stop": "tool_use",
    }
    assert [item["type"] for item in of_responses["items"]] == ["reasoning", "message", *["function_call"] * 2]
    assert of_responses["items"][2]["arguments"] == '{"a": "\u00e9"}'


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_bound_call_that_is_cut_keeps_its_beginning(finish: str) -> None:
    of_chat, of_messages, _ = asyncio.run(every_way(ANSWERS[4], [], finish, ("f", "g")))
    assert of_chat["calls"] == [["f", '{"a": 1']]
    assert of_messages["blocks"][-1]["input"] == {"INVALID_JSON": '{"a": 1'}
    assert of_chat["finish"] == ("tool_calls" if finish == "stop" else "length")


def test_calls_beyond_the_first_are_left_out_where_one_is_wanted_and_a_named_one_is_no_news() -> None:
    async def read(**options: bool) -> tuple[int, str | None]:
        apart = AnswerParts(lambda: FORMATS["hermes"].make_reader(["f", "g"], ()), None, **options)
        calls, finish = 0, None
        async for delta in deltas_of(CALLS, [], "stop"):
            calls += sum(hasattr(piece, "name") for piece in apart.read(delta))
            finish = apart.finish_reason(delta)
        return calls, finish

    assert asyncio.run(read()) == (2, "tool_calls")
    assert asyncio.run(read(parallel=False)) == (1, "tool_calls")
    assert asyncio.run(read(is_named=True)) == (2, "stop")
