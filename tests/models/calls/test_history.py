"""Tools, calls and results reach chat templates as they expect them: own templates in the manner of known families."""

from __future__ import annotations

import json
from typing import Any

import pytest

from puna.errors import TemplateError
from puna.models.calls.formats import call_format, reasoning_marks
from puna.models.calls.history import for_template
from puna.models.calls.tool import Tool
from puna.models.template import ChatTemplate

TOOL = Tool("get_weather", "Of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
ARGUMENTS = {"city": "Paris", "days": [1, 2]}
CALL = {"id": "call_1234567890", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "name": "get_weather", "content": "20"}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    RESULT,
    {"role": "user", "content": "Thanks."},
]

OBJECTS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}\n{% endfor %}"
)
ITEMS = OBJECTS.replace(
    "{{ c.function.arguments | tojson }}", "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}"
)
TEXTS = OBJECTS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
SHORT_IDS = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_CALLS][{{ c.function | tojson }}]{{ c.id }}{% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_RESULTS]{{ m.content }}{{ m.tool_call_id }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
NO_TOOLS = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('a role') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def rendered(source: str, tools: list[Tool] | None = None) -> str:
    template = ChatTemplate(source)
    messages, shapes = for_template(template, TALK, [TOOL] if tools is None else tools)
    return template.render(messages, tools=shapes)


def test_arguments_reach_a_template_as_the_object_that_it_writes_or_walks_through() -> None:
    text = rendered(OBJECTS)
    assert json.loads(text.splitlines()[0]) == TOOL.shape
    assert f'"arguments": {json.dumps(ARGUMENTS)}' in text
    assert "city=Paris;days=[1, 2];" in rendered(ITEMS)


def test_a_template_that_can_only_write_text_gets_text() -> None:
    assert f'"arguments": {json.dumps(ARGUMENTS)}' in rendered(TEXTS)


def test_ids_have_nine_letters_where_a_template_insists_and_stay_those_of_one_call() -> None:
    text = rendered(SHORT_IDS)
    short = text.split("[TOOL_RESULTS]")[0][-9:]
    assert text.count(short) == 2
    assert short.isalnum()
    with pytest.raises(TemplateError, match="nine letters"):
        ChatTemplate(SHORT_IDS).render(TALK)


def test_a_template_that_knows_no_tools_is_told_of_them_in_words() -> None:
    text = rendered(NO_TOOLS)
    assert text.startswith("<system>You can call functions.")
    assert json.dumps(TOOL.shape["function"]) in text
    assert f"<assistant>{json.dumps({'name': 'get_weather', 'arguments': ARGUMENTS})}" in text
    assert "<user>Result of get_weather: 20\nThanks." in text
    assert rendered(NO_TOOLS, []).startswith("<user>How warm?")


def test_the_block_of_tools_stands_below_what_the_system_message_says() -> None:
    messages, _ = for_template(ChatTemplate(NO_TOOLS), [{"role": "system", "content": "Be brief."}, *TALK], [TOOL])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\nYou can call functions.")


def test_the_format_and_the_marks_of_reasoning_are_told_by_the_template() -> None:
    llama = "{% if tools %}{{ tools }}<|python_tag|>{% endif %}"
    pythonic = "{% if tools %}[func_name1(params_name1=params_value1)]{% endif %}"
    signs = {OBJECTS: "hermes", SHORT_IDS: "mistral", NO_TOOLS: "plain", llama: "llama", pythonic: "pythonic"}
    for source, name in signs.items():
        assert call_format(ChatTemplate(source)).name == name
        assert reasoning_marks(ChatTemplate(source)) is None
    assert call_format(ChatTemplate(SHORT_IDS + "[ARGS]")).name == "mistral-args"
    assert call_format(ChatTemplate(OBJECTS + "<function=f>")).name == "plain"
    assert call_format(ChatTemplate(NO_TOOLS), "hermes").name == "hermes"
    thinking = reasoning_marks(ChatTemplate(OBJECTS + "{{ '<think></think>' }}"))
    assert thinking is not None
    assert thinking.opens == "<think>"
    assert reasoning_marks(ChatTemplate(OBJECTS + "</think>"), "none") is None
