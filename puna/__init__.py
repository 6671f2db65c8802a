"""Puna serves, places, trains and judges large language models.

`from puna import LLM, SamplingParams` is the offline API. Importing the package stays quick: names are loaded when
they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.engine.beam_api import BeamSearchParams
    from puna.engine.llm import LLM
    from puna.engine.params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "BeamSearchParams", "SamplingParams", "__version__"]

_HOMES = {
    "BeamSearchParams": "puna.engine.beam_api",
    "LLM": "puna.engine.llm",
    "SamplingParams": "puna.engine.params",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'puna' has no attribute {name!r}")
