"""Every family beside transformers: small random models that transformers itself made, saved and answered for.

Needs the extra `oracle` and is skipped without it. Each model is also run with a part of its description switched off,
which has to be noticed: a comparison that would pass without the window proves nothing about the window. `-s` prints
the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.kernels.cpu import paths
from puna.models.spec import RopeSpec

torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

from tests.oracle.running import changed, deviation, logits, native  # noqa: E402
from tests.oracle.small_models import BY_NAME, IDS  # noqa: E402

pytestmark = [pytest.mark.oracle]

CLOSE = 1e-3
FAR = 1e-2


@pytest.mark.parametrize("name", BY_NAME)
def test_logits_are_those_of_transformers_within_a_thousandth(answered: Any, name: str) -> None:
    case = answered(name)
    assert case.wanted.std() >= 1
    found = deviation(logits(case.model, IDS), case.wanted)
    print(f"\n{name}: {found:.1e}")
    assert found <= CLOSE


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("name", BY_NAME)
def test_the_native_core_says_the_same(answered: Any, name: str, isa: str) -> None:
    case = answered(name)
    found = deviation(logits(case.model, IDS, native(isa)), case.wanted)
    print(f"\n{name}, {isa}: {found:.1e}")
    assert found <= CLOSE


def _plain(rope: RopeSpec | None) -> RopeSpec | None:
    return rope and RopeSpec(rope.style, rope.dimensions, 10_000.0)


def _rotating(rope: RopeSpec | None) -> RopeSpec:
    return rope or RopeSpec("halves", 16, 10_000.0)


def _whole_heads(rope: RopeSpec | None) -> RopeSpec | None:
    return rope and RopeSpec(rope.style, 16, rope.base)


SWITCHES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama, linear", "scaling", {"rope": _plain}),
    ("llama, dynamic", "scaling", {"rope": _plain}),
    ("llama, yarn", "scaling", {"rope": _plain}),
    ("llama, yarn", "magnitude", {"magnitude": 1.0}),
    ("llama, llama3", "scaling", {"rope": _plain}),
    ("llama, longrope", "scaling", {"rope": _plain}),
    ("llama, longrope", "magnitude", {"magnitude": 1.0}),
    ("mistral", "window", {"window": 0}),
    ("smollm3", "layers without rotation", {"rope": _rotating}),
    ("qwen2", "window", {"window": 0}),
    ("qwen2", "biases", {"query_bias": False, "key_bias": False, "value_bias": False}),
    ("qwen3", "normalised heads", {"query_key_norm": None}),
    ("gemma", "scale of embeddings", {"embedding_scale": 1.0}),
    ("gemma2", "window", {"window": 0}),
    ("gemma2", "cap of scores", {"softcap": 0.0}),
    ("gemma2", "cap of logits", {"logit_softcap": 0.0}),
    ("gemma2", "norms after branches", {"norm_after": None}),
    ("gemma2", "scale of scores", {"scale": 32**-0.5}),
    ("gemma3", "window", {"window": 0}),
    ("gemma3", "normalised heads", {"query_key_norm": None}),
    ("gemma3", "base of local layers", {"base": 1_000_000.0}),
    ("phi3", "window", {"window": 0}),
    ("phi3, longrope", "scaling", {"rope": _plain}),
    ("phi3, longrope", "part of heads that rotates", {"frequency_factors": (), "dimensions": 32}),
    ("olmo", "kind of norm", {"kind": "rms"}),
    ("olmo2", "normalised rows", {"query_key_norm": None}),
    ("olmo2", "norms after branches", {"norm_after": None}),
    ("olmo3", "window", {"window": 0}),
    ("olmo3", "scaling", {"rope": _plain}),
    ("granite", "scale of embeddings", {"embedding_scale": 1.0}),
    ("granite", "scale of scores", {"scale": 0.25}),
    ("granite", "scale of branches", {"factor": 1.0}),
    ("granite", "divisor of logits", {"logit_divisor": 1.0}),
    ("starcoder2", "window", {"window": 0}),
    ("starcoder2", "kind of norm", {"kind": "rms"}),
    ("gpt_neox", "branches beside each other", {"parallel": False}),
    ("gpt_neox", "part of heads that rotates", {"rope": _whole_heads}),
    ("gpt2", "positions", {"learned_positions": 0}),
    ("gpt2, scaled by layer", "scale of scores", {"scale": 0.25}),
    ("opt", "first row of positions", {"position_offset": 0}),
    ("opt", "activation", {"activation": "gelu"}),
    ("falcon", "branches beside each other", {"parallel": False}),
    ("falcon, grouped", "branches beside each other", {"parallel": False}),
    ("stablelm", "part of heads that rotates", {"rope": _whole_heads}),
    ("stablelm", "biases", {"query_bias": False, "key_bias": False, "value_bias": False}),
    ("stablelm, beside each other", "branches beside each other", {"parallel": False}),
    ("mixtral", "window", {"window": 0}),
    ("mixtral", "shares that sum to one", {"normalised": False}),
    ("mixtral, skewed", "shares that sum to one", {"normalised": False}),
    ("qwen2_moe", "shares that do not sum to one", {"normalised": True}),
    ("qwen2_moe", "gate of the shared one", {"shared_gate": False}),
    ("qwen2_moe, every second", "shares that sum to one", {"normalised": False}),
    ("qwen3_moe", "window", {"window": 0}),
    ("qwen3_moe", "shares that sum to one", {"normalised": False}),
    ("qwen3_moe", "normalised heads", {"query_key_norm": None}),
    ("olmoe", "shares that do not sum to one", {"normalised": True}),
    ("olmoe", "normalised rows", {"query_key_norm": None}),
]


@pytest.mark.parametrize(("name", "part", "values"), SWITCHES, ids=[f"{name}: {part}" for name, part, _ in SWITCHES])
def test_what_is_switched_off_is_missed(answered: Any, name: str, part: str, values: dict[str, Any]) -> None:
    case = answered(name)
    found = deviation(logits(changed(case.model, **values), IDS), case.wanted)
    print(f"\n{name} without {part}: {found:.1e}")
    assert found > FAR


def test_skewed_routing_is_skewed(answered: Any) -> None:
    """Else the case would show nothing."""
    with torch.no_grad():
        scores = answered("mixtral, skewed").made(torch.tensor([IDS]), output_router_logits=True).router_logits
    first = np.array([layer.argmax(dim=-1).eq(0).float().mean().item() for layer in scores])
    assert (first > 0.95).all()
