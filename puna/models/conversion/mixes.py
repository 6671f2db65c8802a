"""Which element type each tensor of a GGUF file gets, for a kind of file that people ask for.

The kinds and their mixes are those that llama.cpp's users know: in the "_M" ones values and the feed-forwards' last
matrices get more bits in layers at both ends and in every third between, the output matrix most. Vectors, routers and
tables of positions stay F32. Rows that do not divide into a type's blocks get the nearest type that they do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from puna.kernels.tensor import BLOCK_SIZES


@dataclass(frozen=True)
class Mix:
    """`most` is the type of nearly all matrices, `more` that of those which matter more, `output` that of the matrix
    that makes logits. `number` is `general.file_type`."""

    number: int
    most: str
    more: str
    output: str


MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32", "F32", "F32"),
    "F16": Mix(1, "F16", "F16", "F16"),
    "BF16": Mix(32, "BF16", "BF16", "BF16"),
    "Q8_0": Mix(7, "Q8_0", "Q8_0", "Q8_0"),
    "Q6_K": Mix(18, "Q6_K", "Q6_K", "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", "Q6_K", "Q6_K"),
    "Q5_1": Mix(9, "Q5_1", "Q5_1", "Q6_K"),
    "Q5_0": Mix(8, "Q5_0", "Q5_0", "Q6_K"),
    "Q4_K_M": Mix(15, "Q4_K", "Q6_K", "Q6_K"),
    "Q4_1": Mix(3, "Q4_1", "Q4_1", "Q6_K"),
    "Q4_0": Mix(2, "Q4_0", "Q4_0", "Q6_K"),
}
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where rows do not divide into superblocks

_KEPT_F32 = re.compile(r"_norm(_\d)?\.|position_embd|ffn_gate_inp|rope_(freqs|factors)|\.bias$")
_MATTERS = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down|ffn_down_exps)\.weight")


def type_of(name: str, shape: tuple[int, ...], kind: str, *, layers: int, tied: bool) -> str:
    """`name` as GGUF files have it; `tied`: the embedding matrix makes the logits, too."""
    if len(shape) < 2 or _KEPT_F32.search(name):
        return "F32"
    mix = MIXES[kind]
    matters = _MATTERS.fullmatch(name)
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        wanted = mix.output
    elif matters and _has_more(int(matters[1]), layers):
        wanted = mix.more
    else:
        wanted = mix.most
    return fitting(wanted, shape[-1])


def fitting(type: str, width: int) -> str:
    """The type, or the nearest that rows of `width` divide into."""
    if width % BLOCK_SIZES[type][0] and type in NARROWER:
        type = NARROWER[type]
    return type if width % BLOCK_SIZES[type][0] == 0 else "F16"


def _has_more(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
