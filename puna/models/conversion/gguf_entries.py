"""A model's numbers as GGUF metadata, by the keys that llama.cpp reads.

Most come from the description (`ModelSpec`), whichever container it was read from; rotary rules that a description has
already settled are taken from config.json once more. Knows nothing of vocabularies and weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from puna.kernels.tensor import RawTensor
from puna.models.conversion.encoding import Target
from puna.models.facts import Facts
from puna.models.families.family import Family
from puna.models.model_file import Container, ModelFile
from puna.models.rope import GGUF_FACTORS, GGUF_LONG, GGUF_SHORT, ORIGINAL
from puna.models.spec import AttentionSpec, ExpertsSpec, ModelSpec, NormSpec, RopeSpec

LOCAL_PATTERNS = {"gemma2": 2, "gemma3": 6, "olmo2": 4}  # where a file says nothing, every so manieth layer is global


def gguf_architecture(family: Family, file: ModelFile) -> str:
    """Raises ModelFileError where GGUF has no name for such a model."""
    if not family.gguf:
        file.fail(f"GGUF files have no architecture for {file.architecture!r} models; convert to a folder instead")
    return file.architecture if file.architecture in family.gguf else family.gguf[0]


def gguf_entries(arch: str, spec: ModelSpec, file: ModelFile) -> dict[str, Any]:
    """Entries under the architecture's prefix, and general ones."""
    attention, layers = spec.layers[0].attention, spec.layers
    entries: dict[str, Any] = {
        "block_count": len(layers),
        "context_length": spec.context_length,
        "embedding_length": spec.width,
        "feed_forward_length": _common([_feed_forward(spec, layer) for layer in range(len(layers))]),
        "attention.head_count": _common([layer.attention.heads for layer in layers]),
        "attention.head_count_kv": _common([layer.attention.kv_heads for layer in layers]),
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "vocab_size": spec.vocab_size,
        **_norms(spec),
        **_windows(arch, spec),
        **_rope(arch, spec, file.facts()),
        **_experts(spec),
    }
    if arch == "granite" or not math.isclose(attention.scale, attention.head_dim**-0.5):
        entries["attention.scale"] = attention.scale
    if attention.softcap:
        entries["attn_logit_softcapping"] = attention.softcap
    if spec.logit_softcap:
        entries["final_logit_softcapping"] = spec.logit_softcap
    if arch == "granite":
        entries["embedding_scale"], entries["logit_scale"] = spec.embedding_scale, spec.logit_divisor
        entries["residual_scale"] = layers[0].branches[0].factor
    if arch in ("gptneox", "stablelm"):
        entries["use_parallel_residual"] = layers[0].parallel
    general = {"general.architecture": arch, "general.type": "model", "general.name": file.name or file.path.name}
    if file.licence:
        general["general.license"] = file.licence
    return {**general, **{f"{arch}.{key}": value for key, value in entries.items()}}


def rope_tensors(spec: ModelSpec, file: ModelFile) -> list[Target]:
    """Divisors of rotary frequencies, one a pair: those that hold always, or those for short and for long texts."""
    rule, kind = _rule(file.facts())
    rope = _global_rope(spec)
    if rope is None:
        return []
    if kind in ("longrope", "su"):
        pairs = ((GGUF_LONG, rule.get("long_factor", ())), (GGUF_SHORT, rule.get("short_factor", ())))
        return [_table(name, values) for name, values in pairs]
    if rope.frequency_factors and kind == "llama3":
        return [_table(GGUF_FACTORS, rope.frequency_factors)]
    return []


def rules_by_length(facts: Facts, container: Container) -> list[str]:
    """What a rotary rule that follows a text's length loses where only its outcome is written."""
    _, kind = _rule(facts)
    if container == "gguf" and kind == "dynamic":
        return ["the rotary rule 'dynamic', which GGUF has no word for: read as no scaling"]
    return []


def _table(name: str, values: Sequence[float]) -> Target:
    data = np.asarray(values, "<f4")
    return Target(name, "F32", RawTensor(name, "F32", data.shape, data.view(np.uint8)))


def _common(numbers: list[int]) -> Any:
    return numbers[0] if len(set(numbers)) == 1 else np.array(numbers, np.int32)


def _feed_forward(spec: ModelSpec, layer: int) -> int:
    dense = [part.width for each in spec.layers for part in each.feed_forwards]
    own = [part.width for part in spec.layers[layer].feed_forwards]
    return (own or dense or [part.width for part in spec.layers[layer].experts])[0]


def _norms(spec: ModelSpec) -> dict[str, Any]:
    norms = [norm for branch in spec.layers[0].branches for norm in (branch.norm_before, branch.norm_after) if norm]
    norm: NormSpec | None = spec.final_norm or next(iter(norms), None)
    if norm is None:
        return {}
    return {"attention.layer_norm_rms_epsilon" if norm.kind == "rms" else "attention.layer_norm_epsilon": norm.eps}


def _windows(arch: str, spec: ModelSpec) -> dict[str, Any]:
    windows = [layer.attention.window for layer in spec.layers]
    if not any(windows):
        return {}
    every = LOCAL_PATTERNS.get(arch)
    usual = [(index + 1) % every != 0 if every else True for index in range(len(windows))]
    local = [window > 0 for window in windows]
    entries: dict[str, Any] = {"attention.sliding_window": max(windows)}
    if local != usual or arch == "olmo2":
        entries["attention.sliding_window_pattern"] = np.array(local, np.bool_)
    return entries


def _rope(arch: str, spec: ModelSpec, facts: Facts) -> dict[str, Any]:
    rope = _global_rope(spec)
    if rope is None:
        return {}
    entries: dict[str, Any] = {"rope.dimension_count": rope.dimensions, "rope.freq_base": rope.base}
    local = next((layer.attention.rope for layer in spec.layers if layer.attention.window), None)
    if arch == "gemma3" and local is not None:
        entries["rope.freq_base_swa"] = local.base
    rule, kind = _rule(facts)
    if kind == "linear":
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.linear_factor}
    elif kind == "yarn":
        context = float(spec.context_length)
        factor = rule.get("factor") or context / float(rule.get(ORIGINAL) or context)
        entries |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor)}
        entries["rope.scaling.yarn_beta_fast"] = float(rule.get("beta_fast") or 32.0)
        entries["rope.scaling.yarn_beta_slow"] = float(rule.get("beta_slow") or 1.0)
    elif kind in ("longrope", "su"):
        entries["rope.scaling.attn_factor"] = rope.magnitude
    if kind in ("yarn", "longrope", "su"):
        entries["rope.scaling.original_context_length"] = int(rule.get(ORIGINAL) or spec.context_length)
    return entries


def _global_rope(spec: ModelSpec) -> RopeSpec | None:
    """That of layers which see everything, where there are such; else any."""
    turned = [layer.attention for layer in spec.layers if layer.attention.rope is not None]
    whole: list[AttentionSpec] = [attention for attention in turned if not attention.window]
    return (whole or turned)[0].rope if turned else None


def _rule(facts: Facts) -> tuple[Mapping[str, Any], str]:
    """config.json's rotary rule and its kind; of GGUF only that there is none."""
    if facts.is_gguf:
        return {}, "default"
    values = facts.part("text_config") or facts
    part = values.part("rope_parameters") or values.part("rope_scaling")
    if part is not None:
        part = part.part("full_attention") or part
    rule = dict(part.values) if part is not None else {}
    if values.has(ORIGINAL):
        rule.setdefault(ORIGINAL, values.integer(ORIGINAL))
    return rule, str(rule.get("rope_type", rule.get("type", "default")))


def _experts(spec: ModelSpec) -> dict[str, Any]:
    found: list[ExpertsSpec] = [experts for layer in spec.layers for experts in layer.experts]
    if not found:
        return {}
    experts = found[0]
    entries: dict[str, Any] = {
        "expert_count": experts.experts,
        "expert_used_count": experts.used,
        "expert_feed_forward_length": experts.width,
        "expert_weights_norm": experts.normalised,
    }
    if experts.shared_width:
        entries["expert_shared_feed_forward_length"] = experts.shared_width
    return entries
