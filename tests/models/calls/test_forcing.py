"""Grammars that force calls: what they let through is read as calls, and ends nowhere else."""

from __future__ import annotations

import pytest

from puna.models.calls.endless import is_endless
from puna.models.calls.forcing import forced_calls, forced_format, held_calls
from puna.models.calls.formats import FORMATS
from puna.models.calls.reasoning import KNOWN
from puna.models.calls.tool import Tool

llguidance = pytest.importorskip("llguidance")

EOS, THINK, THOUGHT, CALLS = 256, 257, 258, 259
SPECIAL = {"<think>": THINK, "</think>": THOUGHT, "[TOOL_CALLS]": CALLS}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [Tool("get_weather", parameters=SCHEMA, strict=True), Tool("f")]


class Bytes:
    """A vocabulary of all bytes and four special tokens."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = [bytes([i]) for i in range(256)] + [b"\xff" + name.encode() for name in ("</s>", *SPECIAL)]
    special_token_ids = [EOS, *SPECIAL.values()]  # noqa: RUF012

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def accepted(grammar: str, *parts: str | int) -> tuple[bool, bool]:
    """Whether the text can be, and whether it can end there."""
    ids = [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]
    matcher = llguidance.LLMatcher(TOKENIZER, grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids), matcher.is_accepting()


def plain_text(_: str) -> None:
    """No mark is a token of its own."""


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_forced_answer_is_calls_and_ends_behind_one(kind: str) -> None:
    form = forced_format(FORMATS[kind])
    before, between, behind = form.call
    one = before + "get_weather" + between + '{"city": "P}", "days": 3}' + behind
    two = one + form.between + before + "f" + between + "{}" + behind
    single, several = (forced_calls(form, TOOLS, plain_text, several=many) for many in (False, True))
    assert accepted(single, one) == accepted(several, one) == accepted(several, two) == (True, True)
    assert accepted(single, two)[0] is False
    for end in range(1, len(one) - 1):
        assert accepted(single, one[:end]) == (True, False)
    for wrong in ("Hello", before + "nobody", before + "f" + between + '{"', before + "get_weather" + between + "{}"):
        assert accepted(single, wrong)[0] is False
    reader = form.make_reader(["get_weather", "f"], ["get_weather", "f"])
    assert [piece.name for piece in reader.feed(two) + reader.end() if hasattr(piece, "name")] == ["get_weather", "f"]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_strict_calls_in_any_text_follow_their_schema(kind: str) -> None:
    form = forced_format(FORMATS[kind])
    before, between, behind = form.call
    grammar = held_calls(form, TOOLS, plain_text)
    call = before + "get_weather" + between + '{"city": "Paris"}' + behind
    loose = before + "f" + between + '{"anything": [1]}' + behind
    assert accepted(grammar, "It rains.") == accepted(grammar, call) == accepted(grammar, loose) == (True, True)
    assert accepted(grammar, before + "get_weather" + between + '{"town')[0] is False
    if form.trigger:
        assert accepted(grammar, "I look. " + call + "\n" + loose + " Done.") == (True, True)
        assert accepted(grammar, "I look. " + before + "nobody")[0] is False


def test_marks_that_are_tokens_are_forced_as_tokens() -> None:
    text = '[{"name": "f", "arguments": {}}]'
    for make in (lambda: forced_calls(FORMATS["mistral"], TOOLS, SPECIAL.get, several=True),):
        assert accepted(make(), CALLS, text, CALLS, text) == (True, True)
        assert accepted(make(), "[TOOL_CALLS]")[0] is False
    held = held_calls(FORMATS["mistral"], TOOLS, SPECIAL.get)
    assert accepted(held, "Yes. ", CALLS, text, " Done.") == accepted(held, "Yes.") == (True, True)


def test_a_model_may_reason_before_it_is_forced() -> None:
    form = FORMATS["hermes"]
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    opened, free = (
        forced_calls(form, TOOLS, plain_text, several=False, reasoning=KNOWN[0], is_open=is_open)
        for is_open in (True, False)
    )
    assert accepted(opened, "Hm, <tool_call>?\n</think>\n\n", call) == (True, True)
    assert accepted(opened, call) == (True, False)
    assert accepted(free, "<think>\nhm</think>", call) == accepted(free, call) == (True, True)
    assert accepted(free, "Hm")[0] is False
    tokens = forced_calls(form, TOOLS, SPECIAL.get, several=False, reasoning=KNOWN[0], is_open=True)
    assert accepted(tokens, "Hm\n", THOUGHT, "\n\n", call) == (True, True)


def test_a_schema_that_needs_itself_in_every_value_is_told_from_one_that_ends() -> None:
    def node(child: object, *required: str) -> dict[str, object]:
        return {"type": "object", "properties": {"child": child}, "required": list(required)}

    assert is_endless(node({"$ref": "#"}, "child"))
    assert is_endless(node({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "child"))
    assert is_endless({**node({"$ref": "#/$defs/a"}, "child"), "$defs": {"a": {"$ref": "#/$defs/a"}}})
    assert not is_endless(node({"$ref": "#"}))
    assert not is_endless(node({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "child"))
    assert not is_endless(node({"type": "array", "items": {"$ref": "#"}}, "child"))
    assert not is_endless(node({"$ref": "#/$defs/gone"}, "child"))
    doubled: dict[str, object] = {str(n): node({"$ref": f"#/$defs/{n + 1}"}, "child") for n in range(200)}
    assert not is_endless({**node({"$ref": "#/$defs/0"}, "child"), "$defs": {**doubled, "200": {"type": "string"}}})
