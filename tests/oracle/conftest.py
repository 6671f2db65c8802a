"""Small models of every family and SmolLM2, made or read once a session, and what transformers says to the text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from puna.models.load import LoadedModel, load_model
from puna.models.names import resolve


@dataclass(frozen=True)
class Answered:
    """A model as Puna opened it from its folder, transformers' own, and its logits."""

    folder: Path
    model: LoadedModel
    made: Any
    wanted: npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answered]:
    from tests.oracle.small_models import BY_NAME, IDS, answer, save

    @cache
    def of(name: str) -> Answered:
        small = BY_NAME[name]
        folder = tmp_path_factory.mktemp("small") / "model"
        made = save(small, folder)
        model = load_model(folder, length=len(IDS) if small.length else 0)
        return Answered(folder, model, made, answer(made, IDS))

    return of


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    return load_model(resolve("smollm2"))


@pytest.fixture(scope="session")
def oracle(smollm2: LoadedModel) -> Any:
    """The same file in transformers, decoded to float32."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": smollm2.path.name}
    config = getattr(transformers, "GgufConfig", None)
    if config is not None and "dequantize" in inspect.signature(config).parameters:
        options["quantization_config"] = config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2.path.parent), dtype=torch.float32, local_files_only=True, **options
    )
    return model.eval()
