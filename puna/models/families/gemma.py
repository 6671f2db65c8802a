"""Gemma 1 to 3: scaled embeddings, norms on both sides of each branch (2, 3), soft caps (2), normalised heads (3).

Layers of 2 and 3 differ: most see a window, every second (2) or sixth (3) sees everything; in 3 local layers rotate
with a base of their own, and a stretched context holds for global ones alone. config.json's norms are stored as their
distance from one; GGUF files have the one added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.family import (
    Family,
    Reading,
    Sizes,
    attention,
    feed_forward,
    model_spec,
    read_activation,
    read_sizes,
    windowed_layers,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import BranchSpec, LayerSpec, NormSpec, RopeSpec
from puna.models.weights import PlusOne, Source

GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
GLOBAL_BASE = {"gemma": 10_000.0, "gemma2": 10_000.0, "gemma3": 1_000_000.0}
LOCAL_BASE = 10_000.0


def read_gemma(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "gemma")


def read_gemma2(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "gemma2")


def read_gemma3(facts: Facts, length: int) -> Reading:
    return _read(facts.part("text_config") or facts, length, "gemma3")


def _read(facts: Facts, length: int, family: str) -> Reading:
    sizes = read_sizes(facts, length, head_dim=256)
    sources = gguf_sources(sizes.layers) if facts.is_gguf else _config_sources(sizes.layers, family)
    norm = NormSpec("rms", facts.number("rms_eps", None if facts.is_gguf else 1e-6))
    after = norm if family != "gemma" else None
    windows = _windows(facts, sizes.layers, family)
    rope, local_rope = _ropes(facts, sizes, family)
    activation = read_activation(facts, "gelu_tanh", "hidden_activation", "hidden_act")
    softcap = _softcap(facts, "attention_softcap", 50.0, family)
    layers = []
    for layer, window in enumerate(windows):
        attends = attention(
            facts,
            sizes,
            layer,
            local_rope if window else rope,
            window=window,
            scale=_scale(facts, sizes),
            softcap=softcap,
            query_key_norm=norm if family == "gemma3" else None,
            sources=sources,
        )
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(
            LayerSpec((BranchSpec("attention", attends, norm, after), BranchSpec("feed_forward", feeds, norm, after)))
        )
    spec = model_spec(
        family,
        facts,
        sizes,
        layers,
        norm,
        sources,
        embedding_scale=math.sqrt(sizes.width),
        logit_softcap=_softcap(facts, "logit_softcap", 30.0, family),
    )
    return Reading(spec, sources)


GEMMA = Family("gemma", ("gemma",), ("gemma",), read_gemma)
GEMMA2 = Family("gemma2", ("gemma2",), ("gemma2",), read_gemma2)
GEMMA3 = Family("gemma3", ("gemma3",), ("gemma3_text", "gemma3"), read_gemma3)


def _windows(facts: Facts, layers: int, family: str) -> list[int]:
    if family == "gemma":
        return [0] * layers
    window = facts.integer("window", 4096, least=0, most=MAX_LENGTH)
    every = GLOBAL_EVERY[family] if facts.is_gguf else facts.integer("sliding_window_pattern", GLOBAL_EVERY[family])
    return windowed_layers(facts, layers, window, every)


def _ropes(facts: Facts, sizes: Sizes, family: str) -> tuple[RopeSpec, RopeSpec]:
    """Of global and of local layers."""
    rope = read_rope(facts, sizes.head_dim, sizes.length, base=GLOBAL_BASE[family], layer_type="full_attention")
    if family != "gemma3":
        return rope, rope
    base = facts.number("rope.freq_base_swa", LOCAL_BASE, above=1.0) if facts.is_gguf else LOCAL_BASE
    if not facts.is_gguf:
        parameters = facts.part("rope_parameters")
        local = parameters.part("sliding_attention") if parameters else None
        values, name = (local, "rope_theta") if local else (facts, "rope_local_base_freq")
        base = values.number(name, LOCAL_BASE, above=1.0)
    plain = replace(rope, base=base, linear_factor=1.0, frequency_factors=(), magnitude=1.0)
    return rope, plain


def _scale(facts: Facts, sizes: Sizes) -> float:
    """By config.json's `query_pre_attn_scalar`. GGUF leaves it out: it is a head's length, but for the 27B models,
    where it is width / heads."""
    if not facts.is_gguf:
        return 1 / math.sqrt(facts.number("query_pre_attn_scalar", float(sizes.head_dim)))
    large = (sizes.layers, facts.file.architecture) in ((46, "gemma2"), (62, "gemma3"))
    return 1 / math.sqrt(sizes.width / sizes.heads[0] if large else sizes.head_dim)


def _softcap(facts: Facts, name: str, default: float, family: str) -> float:
    """Gemma 2 has caps unless its file says null; Gemma 3 has none unless its file says so."""
    if facts.has(name):
        return facts.number(name)
    return default if family == "gemma2" and facts.is_gguf else 0.0


def _config_sources(layers: int, family: str) -> Mapping[str, Source]:
    changed: dict[str, Source] = {}
    if family != "gemma":
        changed = {
            "attention__norm_after": PlusOne("post_attention_layernorm.weight"),
            "feed_forward__norm": PlusOne("pre_feedforward_layernorm.weight"),
            "feed_forward__norm_after": PlusOne("post_feedforward_layernorm.weight"),
        }
    else:
        changed = {"feed_forward__norm": PlusOne("post_attention_layernorm.weight")}
    sources = config_sources(
        layers,
        attention__norm=PlusOne("input_layernorm.weight"),
        attention__query_norm=PlusOne("self_attn.q_norm.weight"),
        attention__key_norm=PlusOne("self_attn.k_norm.weight"),
        **changed,
    )
    return sources | {"output_norm": PlusOne("model.norm.weight")}
