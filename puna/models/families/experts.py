"""What mixtures of experts share: how many there are, how a token's are chosen, where their matrices lie.

config.json's folders keep each expert's matrices apart; GGUF files keep them stacked (very old ones apart, too).
"""

from __future__ import annotations

from collections.abc import Mapping

from puna.kernels.program import Activation
from puna.kernels.tensor import RawTensor
from puna.models.facts import Facts
from puna.models.families.family import Sizes, has_tensor
from puna.models.families.tables import stacked_experts
from puna.models.spec import ExpertsSpec
from puna.models.weights import Source

MAX_EXPERTS = 2**12
TENSORS_SLACK = 8  # expert tensors are three an expert, but not every layer of a mixture has experts
PARTS = ("gate", "up", "down")
PROJECTIONS = {part: f"mlp.experts.{{e}}.{part}_proj.weight" for part in PARTS}  # Qwen's and OLMoE's names


def expert_count(facts: Facts) -> int:
    return facts.integer("experts", most=MAX_EXPERTS)


def count_apart(facts: Facts, layers: int) -> int:
    """The count where each expert has tensors of its own, so that a file cannot claim many more than it has."""
    count, tensors = expert_count(facts), len(facts.file.tensors)
    if count * layers > TENSORS_SLACK * tensors:
        facts.fail(f"{layers} layers of {count} experts cannot be in {tensors} tensors")
    return count


def experts(
    facts: Facts, sizes: Sizes, layer: int, activation: Activation, *, normalised: bool, sources: Mapping[str, Source]
) -> ExpertsSpec:
    """`normalised`: what the family does with the chosen experts' shares, where the file does not say. A shared
    feed-forward is there where its tensors are."""
    count = expert_count(facts)
    shared = has_tensor(facts, sources, f"layers.{layer}.experts.shared.up")
    return ExpertsSpec(
        experts=count,
        used=facts.integer("experts_used", most=count),
        width=facts.integer("expert_width", sizes.feed_forward[layer]),
        activation=activation,
        normalised=facts.flag("experts_normalised", normalised),
        shared_width=facts.integer("shared_width", sizes.feed_forward[layer]) if shared else 0,
        shared_gate=has_tensor(facts, sources, f"layers.{layer}.experts.shared.router"),
    )


def config_experts(facts: Facts, layers: int, names: Mapping[str, str]) -> dict[str, Source]:
    """`names`: of an expert's gate, up and down, each with {e} for its number."""
    count = count_apart(facts, layers)
    return {f"experts.{part}": stacked_experts(name, count) for part, name in names.items()}


def gguf_experts(facts: Facts, layers: int) -> dict[str, Source]:
    """What differs from the table of GGUF names: stacks made of single matrices, a shared gate without its one row."""
    tensors, found = facts.file.tensors, dict[str, Source]()
    if "blk.0.ffn_gate.0.weight" in tensors:
        count = count_apart(facts, layers)
        found |= {f"experts.{part}": stacked_experts(f"ffn_{part}.{{e}}.weight", count) for part in PARTS}
    gate = tensors.get("blk.0.ffn_gate_inp_shexp.weight") or _of_any_layer(tensors, ".ffn_gate_inp_shexp.weight")
    if gate is not None and len(gate.shape) == 1:
        found["experts.shared.router"] = stacked_experts("ffn_gate_inp_shexp.weight", 1)
    return found


def _of_any_layer(tensors: Mapping[str, RawTensor], ending: str) -> RawTensor | None:
    return next((tensor for name, tensor in tensors.items() if name.endswith(ending)), None)
