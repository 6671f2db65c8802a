"""Rotary embeddings as files describe them: base, share of a head that turns, and the rule that stretches contexts.

Every rule ends as one divisor a pair of dimensions and one factor of cos and sin. Sources: linear interpolation
(arXiv:2306.15595), "dynamic" NTK-aware bases, YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753), Llama 3.1's
smoothed interpolation; forms and defaults are those of Hugging Face transformers, which files follow. Rules that depend
on how long a text is ("dynamic", "longrope") are settled once, by the longest text that will be run: keys in the cache
were turned already and cannot be turned anew.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from puna.kernels.program import RopeStyle
from puna.models.facts import MAX_LENGTH, Facts
from puna.models.spec import RopeSpec

GGUF_FACTORS = "rope_freqs.weight"
LEAST_TURN, MOST_TURN = 1e-30, 1e6  # radians a token: what float32 holds, and a multiple of what any model has
RULES = ("none", "default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
ORIGINAL = "original_max_position_embeddings"
GGUF_LONG, GGUF_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def read_rope(
    facts: Facts,
    head_dim: int,
    length: int,
    *,
    gguf_style: RopeStyle = "halves",
    base: float = 10_000.0,
    share: float = 1.0,
    context: int | None = None,
    layer_type: str | None = None,
) -> RopeSpec:
    """`length`: the longest text that will be run. `gguf_style`: how the family's GGUF files pair dimensions;
    config.json always means halves. `base`, `share` and `context` are the family's defaults. `layer_type`: of models
    whose layers differ ("full_attention", "sliding_attention"). Raises ModelFileError."""
    context = facts.integer("context", context, least=2, most=MAX_LENGTH)
    if facts.is_gguf:
        rope = _from_gguf(facts, head_dim, context, length, gguf_style, base, share)
    else:
        rope = _from_config(facts, head_dim, context, length, base, share, layer_type)
    if not all(LEAST_TURN <= turn <= MOST_TURN for turn in rope.inverse_frequencies()):
        facts.fail(f"{_base_key(facts)} and the rotary scaling turn by angles that are no numbers")
    return rope


def _from_gguf(
    facts: Facts, head_dim: int, context: int, length: int, style: RopeStyle, base: float, share: float
) -> RopeSpec:
    dimensions = facts.integer("rope.dimension_count", int(head_dim * share), most=head_dim)
    if dimensions % 2:
        facts.fail(f"metadata '{facts.prefix}.rope.dimension_count' is {dimensions}; expected an even number")
    base = facts.number("rope.freq_base", base)
    kind = facts.text("rope.scaling.type", "linear" if facts.has("rope.scale_linear") else "none")
    rule: dict[str, Any] = {}
    if kind in ("linear", "yarn"):
        rule["factor"] = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 1.0))
    if facts.has("rope.scaling.original_context_length"):
        rule[ORIGINAL] = facts.integer("rope.scaling.original_context_length", most=MAX_LENGTH)
    if GGUF_LONG in facts.file.tensors:
        kind = "longrope"
        rule["long_factor"] = _table(facts, GGUF_LONG, dimensions // 2)
        rule["short_factor"] = _table(facts, GGUF_SHORT, dimensions // 2)
        rule["attention_factor"] = facts.number("rope.scaling.attn_factor", 1.0)
    elif kind == "yarn":
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if facts.has(f"rope.scaling.{theirs}"):
                rule[ours] = facts.number(f"rope.scaling.{theirs}")
    spec = _settled(facts, kind, rule, dimensions, base, context, length, style)
    if GGUF_FACTORS not in facts.file.tensors:
        return spec
    return RopeSpec(style, dimensions, base, spec.linear_factor, _table(facts, GGUF_FACTORS, dimensions // 2))


def _from_config(
    facts: Facts, head_dim: int, context: int, length: int, base: float, share: float, layer_type: str | None
) -> RopeSpec:
    parameters = facts.part("rope_parameters") or facts.part("rope_scaling")
    if parameters is not None and layer_type is not None and parameters.part(layer_type) is not None:
        parameters = parameters.part(layer_type)
    rule = dict(parameters.values) if parameters is not None else {}
    inner = parameters or facts
    base = inner.number("rope_theta", facts.number("rope_theta", base))
    share = inner.number("partial_rotary_factor", facts.number("partial_rotary_factor", share), most=1.0)
    dimensions = int(head_dim * share)
    if dimensions < 2 or dimensions % 2:
        facts.fail(
            f"config.json: 'partial_rotary_factor' is {share:g} and 'head_dim' {head_dim}, so {dimensions} values of a "
            "head are rotated; expected an even number"
        )
    if facts.has(ORIGINAL):
        rule.setdefault(ORIGINAL, facts.integer(ORIGINAL, most=MAX_LENGTH))
    kind = inner.text("rope_type", inner.text("type", "default")) if parameters is not None else "default"
    return _settled(facts, kind, rule, dimensions, base, context, length, "halves")


def _settled(
    facts: Facts,
    kind: str,
    rule: dict[str, Any],
    dimensions: int,
    base: float,
    context: int,
    length: int,
    style: RopeStyle,
) -> RopeSpec:
    if kind not in RULES:
        facts.fail(f"rotary scaling of type {kind!r} is not supported; supported: {', '.join(RULES)}")
    if base <= 1:
        facts.fail(f"{_base_key(facts)} is {base:g}; expected more than 1")
    pairs = dimensions // 2
    plain = RopeSpec(style, dimensions, base)
    match kind:
        case "default" | "none":
            return plain
        case "linear":
            return replace(plain, linear_factor=_number(facts, rule, "factor"))
        case "dynamic":
            factor, longest = _number(facts, rule, "factor"), max(length, context)
            growth = (factor * longest / context) - (factor - 1)
            stretched = base * growth ** (dimensions / max(1, dimensions - 2))
            return replace(plain, base=stretched, reach=_reach(context, factor))
        case "llama3":
            return replace(plain, frequency_factors=_llama3(facts, rule, pairs, base, context))
        case "yarn":
            factors, magnitude = _yarn(facts, rule, dimensions, base, context), _yarn_magnitude(facts, rule, context)
            original = _original(facts, rule, context)
            reach = _reach(original, _number(facts, rule, "factor", max(1.0, context / original)))
            return replace(plain, frequency_factors=factors, magnitude=magnitude, reach=reach)
    original = int(_original(facts, rule, context))  # longrope
    factors = _numbers(facts, rule, "long_factor" if length > original else "short_factor", pairs)
    return replace(plain, frequency_factors=factors, magnitude=_long_magnitude(facts, rule, original, context))


def _llama3(facts: Facts, rule: dict[str, Any], pairs: int, base: float, context: int) -> tuple[float, ...]:
    factor = _number(facts, rule, "factor")
    low, high = _number(facts, rule, "low_freq_factor", 1.0), _number(facts, rule, "high_freq_factor", 4.0)
    original = _original(facts, rule, context)
    if high <= low:
        facts.fail(f"config.json: 'high_freq_factor' is {high:g}; expected more than 'low_freq_factor', {low:g}")
    factors = []
    for pair in range(pairs):
        turns = original * base ** (-pair / pairs) / (2 * math.pi)  # within the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _yarn(facts: Facts, rule: dict[str, Any], dimensions: int, base: float, context: int) -> tuple[float, ...]:
    original = _original(facts, rule, context)
    factor = _number(facts, rule, "factor", max(1.0, context / original))
    fast, slow = _number(facts, rule, "beta_fast", 32.0), _number(facts, rule, "beta_slow", 1.0)

    def dimension_of(turns: float) -> float:
        return dimensions * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_of(fast), dimension_of(slow)
    if rule.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dimensions - 1)
    if first == last:
        last += 0.001
    factors = []
    for pair in range(dimensions // 2):
        ramp = min(1.0, max(0.0, (pair - first) / (last - first)))
        factors.append(1 / (ramp / factor + (1 - ramp)))
    return tuple(factors)


def _yarn_magnitude(facts: Facts, rule: dict[str, Any], context: int) -> float:
    if rule.get("attention_factor") is not None:
        return _number(facts, rule, "attention_factor")
    original = _original(facts, rule, context)
    factor = _number(facts, rule, "factor", max(1.0, context / original))

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if rule.get("mscale") and rule.get("mscale_all_dim"):
        return magnitude(_number(facts, rule, "mscale")) / magnitude(_number(facts, rule, "mscale_all_dim"))
    return magnitude(1.0)


def _long_magnitude(facts: Facts, rule: dict[str, Any], original: int, context: int) -> float:
    if rule.get("attention_factor") is not None:
        return _number(facts, rule, "attention_factor")
    factor = _number(facts, rule, "factor", context / original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _base_key(facts: Facts) -> str:
    return facts.key("rope.freq_base" if facts.is_gguf else "rope_theta")


def _original(facts: Facts, rule: dict[str, Any], context: int) -> float:
    original = _number(facts, rule, ORIGINAL, context)
    if original < 2:
        facts.fail(f"rotary scaling: {ORIGINAL!r} is {original:g}; expected at least 2 tokens")
    return original


def _reach(original: float, factor: float) -> int:
    return int(min(MAX_LENGTH, original * factor))


def _number(facts: Facts, rule: dict[str, Any], key: str, default: float | None = None) -> float:
    value = rule.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        facts.fail(f"rotary scaling: {key!r} is {value!r:.60}; expected a number above zero")
    return float(value)


def _numbers(facts: Facts, rule: dict[str, Any], key: str, count: int) -> tuple[float, ...]:
    values = rule.get(key)
    if not isinstance(values, list | tuple) or len(values) != count:
        facts.fail(f"rotary scaling: {key!r} has to be {count} numbers above zero")
    return tuple(_number(facts, {key: value}, key) for value in values)


def _table(facts: Facts, name: str, pairs: int) -> tuple[float, ...]:
    tensor = facts.file.tensors.get(name)
    if tensor is None:
        facts.fail(f"tensor {name!r} is missing; the file's rotary scaling needs it")
    if tensor.type != "F32" or tensor.shape != (pairs,):
        facts.fail(f"tensor {name!r} is {tensor.type} of shape {tensor.shape}; expected F32 of shape ({pairs},)")
    values = np.frombuffer(tensor.data.tobytes(), "<f4")
    if not (np.isfinite(values).all() and (values > 0).all()):
        facts.fail(f"tensor {name!r} holds a factor that is not above zero")
    return tuple(float(value) for value in values)
