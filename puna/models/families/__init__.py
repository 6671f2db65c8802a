"""The model families that Puna knows, by the names that files give them.

A family is a mapping (family.py). Adding one means writing a module of a few dozen lines and entering it here.
"""

from __future__ import annotations

from puna.models.families import (
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    granite,
    llama,
    olmo,
    opt,
    phi,
    qwen,
    stablelm,
    starcoder2,
)
from puna.models.families.family import Family
from puna.models.gguf_parse import clipped
from puna.models.model_file import ModelFile

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN2_MOE,
    qwen.QWEN3_MOE,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.FAMILY,
    olmo.OLMO1,
    olmo.OLMO2,
    olmo.OLMOE,
    granite.FAMILY,
    starcoder2.FAMILY,
    gpt_neox.FAMILY,
    gpt2.FAMILY,
    opt.FAMILY,
    falcon.FAMILY,
    stablelm.FAMILY,
)
BY_GGUF_NAME = {name: family for family in FAMILIES for name in family.gguf}
BY_CONFIG_NAME = {name: family for family in FAMILIES for name in family.config}


def family_of(file: ModelFile) -> Family:
    """Raises ModelFileError, naming the families that are known."""
    known = BY_GGUF_NAME if file.container == "gguf" else BY_CONFIG_NAME
    if file.architecture not in known:
        key = "general.architecture" if file.container == "gguf" else "model_type"
        names = ", ".join(sorted(known))
        file.fail(f"the model's architecture ({key}) is {clipped(file.architecture)!r}; Puna knows: {names}")
    return known[file.architecture]
