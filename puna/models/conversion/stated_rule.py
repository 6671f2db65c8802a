"""Rotary rules that GGUF files state in full, in the words of config.json: YaRN and LongRoPE.

What such a rule does depends on how long texts are, so its outcome alone, which a description has, would not do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.rope import GGUF_LONG, GGUF_SHORT, ORIGINAL
from puna.models.spec import RopeSpec


def stated_rule(facts: Facts, rope: RopeSpec | None) -> dict[str, Any]:
    """Entries of "rope_parameters"; empty where the file states no such rule."""
    if not facts.is_gguf or rope is None:
        return {}
    context = facts.integer("context", most=MAX_LENGTH)
    original = facts.integer("rope.scaling.original_context_length", context, most=MAX_LENGTH)
    rule: dict[str, Any] = {ORIGINAL: original, "attention_factor": rope.magnitude}
    if GGUF_LONG in facts.file.tensors:
        tables = {"long_factor": GGUF_LONG, "short_factor": GGUF_SHORT}
        rule |= {key: _numbers(facts, name) for key, name in tables.items()}
        return rule | {"rope_type": "longrope", "factor": context / original}
    if facts.text("rope.scaling.type", "none") != "yarn":
        return {}
    rule |= {"rope_type": "yarn", "factor": facts.number("rope.scaling.factor", 1.0)}
    for key in ("beta_fast", "beta_slow"):
        if facts.has(f"rope.scaling.yarn_{key}"):
            rule[key] = facts.number(f"rope.scaling.yarn_{key}")
    return rule


def _numbers(facts: Facts, name: str) -> list[float]:
    """The family has read the table already, and has checked it."""
    values: list[float] = np.frombuffer(facts.file.tensors[name].data.tobytes(), "<f4").tolist()
    return values
