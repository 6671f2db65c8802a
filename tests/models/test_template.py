"""Chat templates: what they write, what they refuse, and that no template can hang or break out of the process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from puna.errors import TemplateError
from puna.models.load import LoadedModel
from puna.models.template import ChatTemplate
from tests.tiny import CHATML

HELLO = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Any = None, **options: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>", deadline_s=0.5).render(
        HELLO if messages is None else messages, **options
    )


def test_a_conversation_becomes_a_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert render(CHATML, messages, add_generation_prompt=False) == expected
    assert render(CHATML, messages) == expected + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),  # trim_blocks and lstrip_blocks
        ("{{ {'ü': '<a>', 'b': [1, true, none]} | tojson }}", '{"ü": "<a>", "b": [1, true, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% for m in [1,2,3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}", "13"),
        ("{% for m in [1,2,3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{% generation %}kept{% endgeneration %}", "kept"),
        ("{{ tools is none }}{{ documents is none }}{{ missing is defined }}", "TrueTrueFalse"),
        ("{{ '%s-%03d' % ('a', 7) }}{{ '%s' | format('b') }}", "a-007b"),
        ("{{ messages[0].content.strip().upper().replace('H', 'J') }}", "JI"),
        ("{{ ['a', 'b'] | join(', ') }}{{ 'a,b'.split(',') | length }}{{ ', '.join(['c', 'd']) }}", "a, b2c, d"),
        ("{% set ns = namespace(n=0) %}{% for m in [1,2] %}{% set ns.n = ns.n + m %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}{{ f(x='b') }}", "[a][b]"),
        ("{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{% endfor %}", "0True1"),
        ("{% set a, b = 1, 2 %}{{ a ~ b ~ none }}{{ (1, 2)[1] }}{{ 'abc'[::-1] }}", "12None2cba"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "x=1"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 'ab' * 2 }}", "102433abab"),
    ],
)
def test_templates_find_what_they_are_written_for(source: str, written: str) -> None:
    assert render(source) == written


def test_tools_and_further_variables_reach_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert render("{{ tools[0].function.name }}{{ thinking }}", tools=tools, thinking=True) == "fTrue"


def test_todays_date_is_there() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(time.gmtime().tm_year + i) for i in (-1, 0, 1)}


def test_a_refusal_of_the_template_is_passed_on() -> None:
    with pytest.raises(TemplateError, match="refuses the conversation: roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


def test_broken_syntax_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError, match="broken at line 3"):
        ChatTemplate("a\nb\n{% for %}")


def test_a_failure_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError, match="line 2 fails: 'x' is undefined"):
        render("a\n{{ x.y.z }}")


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([*HELLO, {"role": 3, "content": "x"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ],
)
def test_a_malformed_message_is_named(messages: Any, where: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(CHATML, messages)
    assert caught.value.param == where
    assert where in str(caught.value)


def test_a_tool_call_needs_no_content() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    assert render("{{ messages[0].tool_calls[0].function.name }}", messages) == "f"


def test_text_parts_are_joined_for_templates_that_want_a_string() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render("{{ messages[0].content }}", messages) == "a\nb"
    assert messages[0]["content"][1] == {"type": "text", "text": "b"}


@pytest.mark.parametrize("content", ["message.content", "message['content']", "message.content | list"])
def test_text_parts_reach_templates_that_walk_through_them(content: str) -> None:
    source = "{% for message in messages %}{% for part in " + content + " %}<{{ part.text }}>{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render(source, messages) == "<a><b>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages[0].content.format() }}",
        "{{ ''|attr('__class__') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends 'x' %}",
        "{{ lipsum() }}",
    ],
)
def test_what_lies_outside_the_sandbox_cannot_be_reached(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{{ range(10 ** 12) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
        "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    ],
)
def test_endless_work_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match=r"is stopped|Range too big|recurses"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 2 ** 10000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a'.center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a'.zfill(10 ** 9) }}",
        "{{ '\\t'.expandtabs(10 ** 9) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ (1).to_bytes(10 ** 9, 'big') }}",
        "{{ 'aaaa'.translate({97: 'b' * 8000000}) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace(old='', new='b' * 100000) }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('b' * 1000000).join(range(100000) | map('string') | list) }}",
        "{{ range(100000) | map('string') | join('b' * 1000000) }}",
        "{{ ('\\n' * 1000000) | indent('b' * 1000) }}",
        "{{ ('\\n' * 1000000) | indent(width=1000) }}",
        "{{ [1] | batch(10 ** 9, 'x') | list }}",
        "{{ {'a': 1} | tojson(indent=10 ** 9) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
        "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
        "{% set b = 'a' * 8000000 %}{% for i in range(100000) %}{{ b }}{% endfor %}",
        "{% set b = 'a' * 8000000 %}{% set c %}{% for i in range(100000) %}{{ b }}{% endfor %}{% endset %}",
        "{% set c %}{% for i in range(100000) %}{% for j in range(99) %}"
        + "x" * 9999
        + "{% endfor %}{% endfor %}{% endset %}",
    ],
)
def test_enormous_values_are_refused_before_they_are_built(source: str) -> None:
    with pytest.raises(TemplateError, match=r"is stopped"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
        "{% if x %}" * 5000,
        "{% for a in b %}" * 90 + "{% endfor %}" * 90,
        "x" * 1_000_001,
    ],
)
def test_source_that_would_overwhelm_the_compiler_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source)


def test_one_template_renders_in_many_threads_at_once() -> None:
    template = ChatTemplate(CHATML)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: template.render([{"role": "user", "content": str(i)}]), range(200)))
    assert all(f"user\n{i}<" in text for i, text in enumerate(texts))


def test_a_long_conversation_stays_within_the_bounds() -> None:
    messages = [{"role": "user", "content": "word " * 500}] * 2000
    assert len(render(CHATML, messages)) > 5_000_000


@pytest.mark.model
def test_smollm2_writes_its_system_prompt_where_none_is_given(smollm2: LoadedModel) -> None:
    assert smollm2.chat_template is not None
    text = ChatTemplate(smollm2.chat_template).render(HELLO)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
