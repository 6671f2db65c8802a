"""Tokenizers of folders and chat templates beside transformers, on files and templates written for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puna.models.charsmap import Charsmap
from puna.models.template import ChatTemplate
from tests.models.small_tokenizers import folder_tokenizer, sentencepiece_bpe, unigram

transformers = pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

pytestmark = [pytest.mark.oracle]

TEXTS = [json.loads(line) for line in (Path(__file__).parents[1] / "models/data/corpus.txt").read_text().splitlines()]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Now <in> a "city" & its country, é',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "hi"}],
    "system": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello "},
        {"role": "user", "content": "more"},
    ],
    "call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": '{"t": 3}'},
    ],
}
# Each uses what real templates use: tools as JSON with and without indent, macros with namespaces, loop controls,
# refusals, dates, generation blocks, slices, tests, trimming.
TEMPLATES = {
    "tools": """{%- if tools %}
    {{- 'TOOLS' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}{{ tool.function.parameters | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '<call>' ~ call.name ~ call.arguments | tojson ~ '</call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<' + message.role + '>' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}""",
    "macro": """{% macro shown(message, first=false) %}
  {{ bos_token if first }}{{ message.role | upper }}: {{ message.content }}
{% endmacro %}
{% set state = namespace(seen=0, last=none) %}
{% for message in messages %}
  {% if message.role == 'tool' %}{% continue %}{% endif %}
  {{ shown(message, loop.first) }}
  {% set state.seen = state.seen + 1 %}
  {% set state.last = message.role %}
  {% if state.seen > 2 %}{% break %}{% endif %}
{% endfor %}
{{ state.seen }} {{ state.last }} {{ messages[-1].role }} {{ messages[1:] | length }}
{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}""",
    "alternating": """{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% generation %}[{{ loop.index0 }}{{ message.role[:4] }}]{% endgeneration %}{% endfor %}
{{ strftime_now('%Y-%m') }} {{ {'b': 1, 'a': [true, none, 'é<']} | tojson(sort_keys=true) }}
{{ {'a': 1} | tojson(separators=(',', ':')) }}
{{ 'x' is string }} {{ tools is none }} {{ undefined_one is defined }}""",
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("source", TEMPLATES)
def test_conversations_render_as_transformers_renders_them(
    source: str, tools: list[dict[str, Any]] | None, conversation: str
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template, messages = ChatTemplate(TEMPLATES[source], "<s>", "</s>"), CONVERSATIONS[conversation]
    options = {"tools": tools, "add_generation_prompt": True}

    def theirs() -> str:
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        rendered, _ = render_jinja_template([messages], chat_template=TEMPLATES[source], **tokens, **options)
        return str(rendered[0])

    if source == "alternating" and conversation == "system":
        for refusing in (theirs, lambda: template.render(messages, **options)):
            with pytest.raises(Exception, match="System role not supported"):
                refusing()
    else:
        assert template.render(messages, **options) == theirs()


@pytest.mark.parametrize("described", [sentencepiece_bpe(), sentencepiece_bpe(prefix=False), unigram()])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False, "add_eos_token": True}], ids=["processor", "config"])
def test_a_folders_tokenizer_gives_transformers_ids_and_text(
    tmp_path: Path, described: dict[str, Any], flags: dict[str, bool]
) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **flags}
    ours = folder_tokenizer(tmp_path, tokenizer=described, tokenizer_config=config)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ["the lama", " the  lama\n", "<s>the</s> the", *TEXTS]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text, add_special=False, parse_special=False) == plain, text
        # Both drop the first space; transformers drops a whole first run of them where the decoder is Metaspace.
        assert ours.decode(ids).lstrip() == theirs.decode(ids, skip_special_tokens=True).lstrip(), text


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_a_charsmap_normalises_as_sentencepiece_does(rule: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    plain = dict.fromkeys(("add_dummy_prefix", "escape_whitespaces", "remove_extra_whitespaces"), False)
    theirs = sentencepiece.SentencePieceNormalizer(rule_name=rule, **plain)
    described = model.ModelProto.FromString(theirs.serialized_model_proto())
    ours = Charsmap(described.normalizer_spec.precompiled_charsmap)
    letters = "".join(map(chr, range(0x20, 0xD800)))
    marked = "".join(f"{letter}\u0301{letter}\u09be{letter}\u093c" for letter in letters)
    for text in ["cafe\u0301 \u09c7\u09be \u1025\u102e", letters, marked, *TEXTS]:
        assert ours.normalize(text) == theirs.normalize(text), text[:80]
