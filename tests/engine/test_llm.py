"""The offline API: the shapes it takes, the shapes it gives, and an end at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna import LLM, SamplingParams
from puna.errors import InputError, ModelNotFoundError
from tests.tiny import write_tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def llm(tiny: Path, backend: str) -> Iterator[LLM]:
    with LLM(str(tiny), backend=backend, kv_bytes=1 << 20, max_seqs=4, budget_tokens=64) as llm:
        yield llm
        stats = llm.engine.scheduler.stats()
        assert (stats.blocks_used, stats.waiting, stats.running) == (0, 0, 0)


def test_prompts_may_come_in_any_of_the_known_shapes(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("hello llama")
    wanted = llm.generate("hello llama", GREEDY)[0].outputs[0].token_ids
    shapes = [
        ["hello llama"],
        ids,
        [ids],
        {"prompt": "hello llama"},
        {"prompt_token_ids": ids},
        [{"prompt_token_ids": ids, "prompt": "hello llama"}],
        (ids,),
    ]
    for shape in shapes:
        (output,) = llm.generate(shape, GREEDY)
        assert output.outputs[0].token_ids == wanted
        assert output.prompt_token_ids == ids


def test_outputs_stand_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [f"{'word ' * (20 - i)}{i}" for i in range(20)]
    outputs = llm.generate(prompts, [SamplingParams(max_tokens=1 + i % 5, ignore_eos=True) for i in range(20)])
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + i % 5 for i in range(20)]
    assert all(output.finished for output in outputs)


def test_more_prompts_than_the_queue_takes_are_fed_bit_by_bit(tiny: Path, backend: str) -> None:
    with LLM(str(tiny), backend=backend, kv_bytes=1 << 19, max_seqs=2, max_waiting_seqs=3, budget_tokens=64) as llm:
        assert len(llm.generate([[5 + i] for i in range(40)], GREEDY)) == 40


def test_an_output_has_every_field(llm: LLM) -> None:
    params = SamplingParams(n=2, seed=3, logprobs=2, prompt_logprobs=1, max_tokens=5, ignore_eos=True, temperature=2.0)
    (output,) = llm.generate("hello llama this is it", params)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.num_cached_tokens == 0
    for index, sample in enumerate(output.outputs):
        assert sample.index == index
        assert sample.text == llm.get_tokenizer().decode(sample.token_ids)
        assert sample.logprobs is not None
        assert sample.cumulative_logprob == pytest.approx(
            sum(entry[token].logprob for entry, token in zip(sample.logprobs, sample.token_ids, strict=True))
        )
        assert (sample.finish_reason, sample.stop_reason) == ("length", None)


def test_without_a_seed_two_runs_differ_and_with_one_they_agree(llm: LLM) -> None:
    free = SamplingParams(temperature=5.0, max_tokens=20, ignore_eos=True)
    texts = {llm.generate("hello", free)[0].outputs[0].text for _ in range(4)}
    assert len(texts) > 1
    seeded = SamplingParams(temperature=5.0, max_tokens=20, ignore_eos=True, seed=11)
    assert len({llm.generate("hello", seeded)[0].outputs[0].text for _ in range(3)}) == 1


def test_a_stop_string_ends_the_sample_in_the_engine_too(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True, logit_bias={100: 90.0})
    whole = llm.generate("hello", params)[0].outputs[0].text
    stop = whole[10:12]
    steps = llm.engine.counters.steps
    (output,) = llm.generate("hello", SamplingParams(**{**_fields(params), "stop": [stop]}))
    assert output.outputs[0].text == whole[: whole.index(stop)]
    assert output.outputs[0].stop_reason == stop
    assert llm.engine.counters.steps - steps < 40


def _fields(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__struct_fields__}


def test_a_bad_word_is_spelled_with_and_without_a_space(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    plain, spaced = tokenizer.encode("x"), tokenizer.encode(" the")
    assert len(plain) == len(spaced) == 1
    biased = {plain[0]: 60.0, spaced[0]: 70.0, 50: 30.0}
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias=biased, bad_words=["x", "the"])
    assert llm.generate("hello", params)[0].outputs[0].token_ids == [50, 50, 50]


def test_a_chat_goes_through_the_models_template(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": "hello"}], GREEDY)
    assert output.prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt_token_ids[0] == 1, "special tokens are tokens, not text"
    both = llm.chat([[{"role": "user", "content": text}] for text in ("hello", "you")], GREEDY)
    assert both[0].outputs == output.outputs


def test_a_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "bare.gguf", metadata={"tokenizer.chat_template": None})
    with LLM(str(path), backend="reference", kv_bytes=1 << 20) as llm, pytest.raises(InputError, match="generate"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_one_wrong_prompt_is_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InputError, match=r"prompt 1: .*0 to 299") as caught:
        llm.generate([[5], [999], [6]], GREEDY)
    assert caught.value.param == "prompt"
    assert llm.engine.counters.steps == 0


@pytest.mark.parametrize("prompts", [5, [None], {"text": "x"}, [[1, "a"]], [True]])
def test_another_shape_is_refused_with_those_that_are_known(llm: LLM, prompts: object) -> None:
    with pytest.raises(InputError, match="prompt_token_ids"):
        llm.generate(prompts, GREEDY)


def test_the_number_of_params_has_to_fit(llm: LLM) -> None:
    with pytest.raises(InputError, match="3 prompts but 2"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])
    assert llm.generate([], GREEDY) == []


def test_a_text_that_no_context_holds_is_refused_unread(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding megabytes takes seconds, which are lost if they only tell that there are too many tokens."""
    text = "word " * 200_000
    cut = SamplingParams(max_tokens=1, truncate_prompt_tokens=4)
    assert len(llm.generate(text[:10_000], cut)[0].prompt_token_ids) == 4
    monkeypatch.setattr(llm.get_tokenizer(), "encode", pytest.fail)
    for prompts in (text, [text, "short"], {"prompt": text}):
        with pytest.raises(InputError, match=r"the context is \d+ tokens; shorten it"):
            llm.generate(prompts, GREEDY)


def test_an_unknown_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LLM(str(tmp_path / "missing.gguf"))


def test_two_models_live_in_one_process(llm: LLM, tmp_path: Path) -> None:
    wanted = llm.generate("hello llama", GREEDY)[0].outputs[0].token_ids
    other = write_tiny_llama(tmp_path / "other.gguf", tied=False, seed=9)
    with LLM(str(other), backend="reference", kv_bytes=1 << 20) as second:
        assert second.generate("hello llama", GREEDY)[0].outputs[0].token_ids != wanted
    assert llm.generate("hello llama", GREEDY)[0].outputs[0].token_ids == wanted


SCRIPT = """
import sys
from puna import LLM, SamplingParams
llm = LLM(sys.argv[1], backend="reference", kv_bytes=1 << 20, budget_tokens=64)
print("ready", flush=True)
try:
    while True:
        llm.generate(["hello"] * 4, SamplingParams(max_tokens=200, ignore_eos=True))
except KeyboardInterrupt:
    print("used", llm.engine.scheduler.stats().blocks_used, llm.engine.has_work, flush=True)
    outputs = llm.generate("again", SamplingParams(max_tokens=3, ignore_eos=True))
    print("tokens", len(outputs[0].outputs[0].token_ids), flush=True)
    sys.exit(130)
"""


def test_an_interrupt_frees_the_blocks_and_the_model_can_go_on(tiny: Path) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tiny)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert out == "used 0 False\ntokens 3\n", err
    assert child.returncode == 130
