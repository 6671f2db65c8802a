"""The model families that Puna knows, by the name that a GGUF file gives as `general.architecture`.

A family is two mappings: metadata to a `ModelSpec`, and program weight names to the file's tensor names. Adding one
means writing a module of a few dozen lines and entering it here.
"""

from __future__ import annotations

from puna.models.families import llama
from puna.models.families.family import Family
from puna.models.gguf import GgufFile

FAMILIES: dict[str, Family] = {llama.FAMILY.name: llama.FAMILY}


def family_of(file: GgufFile) -> Family:
    """Raises ModelFileError, naming the families that are known."""
    name = file.string("general.architecture")
    if name not in FAMILIES:
        file.fail(f"the model's architecture is {name!r}; Puna knows: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
