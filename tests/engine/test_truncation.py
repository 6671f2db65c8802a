"""Prompts that are too long: refused, or cut where that is asked for, and the answer says by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna import LLM, SamplingParams
from puna.engine.truncation import fit_conversation, last_tokens, prompt_limit
from puna.errors import InputError
from puna.models.load import load_model
from puna.models.tokenizer import Tokenizer
from tests.tiny import write_tiny_llama

CONTEXT = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_model(write_tiny_llama(tmp_path_factory.mktemp("m") / "m.gguf")).tokenizer


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=CONTEXT)
    return LLM(str(path), backend="reference")


def cutting(most: int, max_tokens: int | None = 4) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, truncate_prompt_tokens=most)


def talk(*turns: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *said] if system else said


class Rendered:
    """Renders each message as "role:content\\n", and remembers the last text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, messages: Any) -> list[int]:
        return self.tokenizer.encode("".join(f"{m['role']}:{m['content']}\n" for m in messages))

    def fit(self, messages: list[dict[str, str]], limit: int) -> tuple[str, int]:
        ids, cut = fit_conversation(messages, limit, self, self.tokenizer)
        assert len(ids) <= limit
        assert cut == len(self(messages)) - len(ids)
        return self.tokenizer.decode(ids), cut


def test_a_prompt_that_is_too_long_is_refused_unless_it_may_be_cut(llm: LLM) -> None:
    with pytest.raises(InputError, match="truncate_prompt_tokens"):
        llm.generate("z" * 500, SamplingParams(max_tokens=4))
    (output,) = llm.generate("z" * 500, cutting(-1))
    assert len(output.prompt_token_ids) == CONTEXT - 4
    assert output.truncated_tokens == 500 - len(output.prompt_token_ids)
    assert output.prompt == "z" * 500


def test_a_prompt_that_fits_is_not_touched(llm: LLM) -> None:
    free, may = (
        llm.generate("a short one", SamplingParams(temperature=0, max_tokens=4)),
        llm.generate("a short one", cutting(-1)),
    )
    assert may[0].truncated_tokens == 0
    assert may[0].prompt_token_ids == free[0].prompt_token_ids
    assert may[0].outputs[0].token_ids == free[0].outputs[0].token_ids


def test_the_answer_to_a_cut_prompt_is_the_answer_to_what_is_left(llm: LLM) -> None:
    ids = [100 + place % 50 for place in range(300)]
    (cut,) = llm.generate([ids], cutting(40))
    (left,) = llm.generate([ids[-40:]], cutting(40))
    assert (cut.truncated_tokens, left.truncated_tokens) == (260, 0)
    assert cut.outputs[0].token_ids == left.outputs[0].token_ids


def test_each_prompt_is_cut_by_its_own_parameters(llm: LLM) -> None:
    outputs = llm.generate(["z" * 100, "z" * 100], [cutting(10), SamplingParams(max_tokens=1)])
    assert [output.truncated_tokens for output in outputs] == [90, 0]


def test_a_chat_loses_its_oldest_turns_and_says_so(llm: LLM) -> None:
    messages = talk("x" * 150, "y" * 150, "what?", system="be brief")
    with pytest.raises(InputError):
        llm.chat(messages, SamplingParams(max_tokens=4))
    (output,) = llm.chat(messages, cutting(-1))
    text = llm.get_tokenizer().decode(output.prompt_token_ids, skip_special_tokens=False)
    assert output.truncated_tokens > 180
    assert "be brief" in text
    assert "what?" in text
    assert "x" not in text
    assert (
        cut := llm.chat(talk("what?", system="be brief"), cutting(-1))[0]
    ).prompt_token_ids == output.prompt_token_ids
    assert cut.truncated_tokens == 0


def test_as_many_turns_stay_as_fit(tokenizer: Tokenizer) -> None:
    rendered = Rendered(tokenizer)
    messages = talk(*(f"{letter * 20}" for letter in "QWZXVBN"), system="S")
    last: str | None = None
    for limit in range(40, len(rendered(messages)) + 1):
        text, cut = rendered.fit(messages, limit)
        assert text.startswith("system:S\n")
        assert text.endswith(f"user:{'N' * 20}\n")
        first = text.removeprefix("system:S\n")
        assert first.startswith("user:")
        assert "system:S\n" + first in (full := tokenizer.decode(rendered(messages))) or full.endswith(first)
        if last is not None:
            assert len(text) >= len(last)
        last = text
    assert (last, cut) == (tokenizer.decode(rendered(messages)), 0)


def test_a_question_that_is_too_long_by_itself_loses_its_middle_with_a_mark(tokenizer: Tokenizer) -> None:
    question = "Sum this up: " + "Z" * 1000 + " and be quick"
    text, _ = Rendered(tokenizer).fit(talk("old", "older", question, system="S"), 150)
    assert text.startswith("system:S\nuser:Sum this up: Z")
    assert text.endswith("Z and be quick\n")
    assert "tokens left out ...]" in text
    parts = [{"type": "text", "text": question}]
    ids, _ = fit_conversation(
        [{"role": "user", "content": parts}], 150, lambda of: tokenizer.encode(str(of[0]["content"])), tokenizer
    )
    assert "tokens left out" in tokenizer.decode(ids)


def test_a_system_message_that_is_too_long_is_refused_and_not_cut(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="shorten the system message"):
        Rendered(tokenizer).fit(talk("hi", system="Z" * 300), 100)


def test_the_beginning_token_stays(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_bos_token": True})
    tokenizer = load_model(path).tokenizer
    ids = tokenizer.encode("z" * 100)
    assert tokenizer.adds_bos
    assert last_tokens(ids, 10, tokenizer) == [ids[0], *ids[-9:]]
    assert last_tokens(ids, 1, tokenizer) == ids[-1:]
    assert last_tokens(ids[1:], 10, tokenizer) == ids[-10:]


@pytest.mark.parametrize(
    ("most", "max_tokens", "limit"),
    [(-1, 56, 200), (-1, None, 192), (10, 4, 10), (1000, 4, 252), (1000, None, 255)],
)
def test_the_answer_keeps_its_room(most: int, max_tokens: int | None, limit: int) -> None:
    assert prompt_limit(cutting(most, max_tokens), CONTEXT) == limit
    assert prompt_limit(SamplingParams(max_tokens=max_tokens), CONTEXT) is None


def test_an_answer_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InputError, match="lower max_tokens"):
        prompt_limit(cutting(-1, 256), CONTEXT)


@pytest.mark.parametrize("value", [0, -2, 2**31, True, 1.5, "all"])
def test_a_limit_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="truncate_prompt_tokens is"):
        SamplingParams(truncate_prompt_tokens=value)
