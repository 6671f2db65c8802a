"""A request that cannot be served is refused before it costs anything, with the field and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.engine.config import EngineConfig, config_from
from puna.engine.core import Engine
from puna.engine.params import SamplingParams
from puna.errors import InputError, MemoryBudgetError, OverloadedError
from tests.engine.conftest import EngineMaker, native
from tests.engine.driving import prompt, request, run

REFUSED: list[tuple[list[int], dict[str, Any], str, str]] = [
    ([], {}, "prompt", "at least one token"),
    ([3, 300], {}, "prompt", "0 to 299"),
    ([3, -1], {}, "prompt", "0 to 299"),
    (prompt(64, 1), {}, "prompt", "shorten the prompt"),
    (prompt(60, 1), {"max_tokens": 5}, "max_tokens", "lower max_tokens to 4"),
    (prompt(60, 1), {"max_tokens": None, "min_tokens": 5}, "min_tokens", "room for 4"),
    ([3], {"n": 9}, "n", "raise max_seqs"),
    ([3], {"stop_token_ids": [300]}, "stop_token_ids", "0 to 299"),
    ([3], {"allowed_token_ids": [1, 999]}, "allowed_token_ids", "999"),
    ([3], {"logit_bias": {300: 1.0}}, "logit_bias", "300"),
    ([3], {"allowed_token_ids": [5], "bad_word_ids": [[5]]}, "bad_words", "allow another token"),
    ([3], {"allowed_token_ids": [2], "min_tokens": 1}, "min_tokens", "min_tokens=0"),
    (prompt(60, 1), {"prompt_logprobs": 256, "max_tokens": 3}, "prompt_logprobs", "lower it to 165"),
    ([3], {"bad_word_ids": [[]]}, "bad_words", "without tokens"),
    ([3], {"delivered": [[4], [4]]}, "delivered", "n is 1"),
    ([3], {"delivered": [[4] * 3], "max_tokens": 2}, "delivered", "may have 2"),
]


@pytest.mark.parametrize(("tokens", "params", "param", "remedy"), REFUSED)
def test_the_door_names_the_field_and_the_remedy(
    make_engine: EngineMaker,
    monkeypatch: pytest.MonkeyPatch,
    tokens: list[int],
    params: dict[str, Any],
    param: str,
    remedy: str,
) -> None:
    monkeypatch.setattr("puna.engine.door.MAX_PROMPT_SCORES", 10_000)
    engine = make_engine(max_model_len=64)
    with pytest.raises(InputError) as caught:
        engine.add(request("r", tokens, **params))
    assert caught.value.param == param
    assert remedy in str(caught.value)
    assert not engine.has_work


def test_a_request_id_in_use_is_refused_and_free_again_afterwards(make_engine: EngineMaker) -> None:
    engine = make_engine()
    engine.add(request("r", [3]))
    with pytest.raises(InputError, match="in use"):
        engine.add(request("r", [4]))
    engine.abort("r")
    assert run(engine, request("r", [4]))["r", 0].tokens


def test_a_full_queue_refuses_with_a_retry_hint_and_keeps_nothing(make_engine: EngineMaker) -> None:
    engine = make_engine(max_waiting_seqs=2)
    engine.add(request("a", [3]))
    resumed = request("b", [3], n=3, delivered=[[4], [5], [6]])
    with pytest.raises(OverloadedError) as caught:
        engine.add(resumed)
    assert caught.value.retry_after_s > 0
    assert engine.scheduler.stats().waiting == 1
    assert engine.live_requests == ("a",)


def test_a_context_larger_than_the_models_is_refused(make_engine: EngineMaker) -> None:
    with pytest.raises(InputError, match="use 256 or less"):
        make_engine(max_model_len=257)


def test_a_pool_too_small_for_one_request_says_what_would_fit(make_engine: EngineMaker) -> None:
    with pytest.raises(MemoryBudgetError, match=r"kv_bytes=\d+ would fit") as caught:
        make_engine(kv_bytes=20_000, max_model_len=256)
    needed = int(str(caught.value).split("kv_bytes=")[1].split()[0])
    assert make_engine(kv_bytes=needed, max_model_len=256).max_model_len == 256
    with pytest.raises(MemoryBudgetError):
        make_engine(kv_bytes=needed - 1, max_model_len=256)


def test_without_a_wish_the_context_shrinks_to_what_the_pool_holds(make_engine: EngineMaker) -> None:
    engine = make_engine(kv_bytes=60_000, kv_dtype="f32")
    assert 32 <= engine.max_model_len < 256
    assert engine.config.max_model_len == engine.max_model_len


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "gpu"},
        {"block_size": 24},
        {"block_size": 8},
        {"max_seqs": 0},
        {"memory_share": 1.5},
        {"kv_bytes": -1},
        {"budget_tokens": 0},
        {"prefix_cache": 1},
        {"model": ""},
        {"threads": 2.0},
        {"kv_dtype": "f64"},
        {"policy": "lottery"},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        EngineConfig(**options)
    assert caught.value.param == next(iter(options))


@pytest.mark.parametrize(
    "params",
    [
        {"stop": "\udc80"},
        {"stop": ["x"] * 65},
        {"bad_words": ["x"] * 1025},
        {"bad_words": ["x" * 1025]},
        {"allowed_token_ids": [0] * (2**19 + 1)},
        {"stop_token_ids": [0] * (2**19 + 1)},
        {"logit_bias": dict.fromkeys(range(2**19 + 1), 0.0)},
    ],
    ids=lambda params: next(iter(params)),
)
def test_lists_without_an_end_and_text_that_never_comes_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        SamplingParams(**params)
    assert caught.value.param == next(iter(params))
    assert len(str(caught.value)) < 200


@native
def test_more_threads_than_cores_can_serve_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="use 0 ") as caught:
        Engine(EngineConfig(model=str(tiny), threads=1024, kv_bytes=1 << 20))
    assert caught.value.param == "threads"


def test_an_unknown_option_names_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match="did you mean max_model_len"):
        config_from({"max_model_length": 5})
