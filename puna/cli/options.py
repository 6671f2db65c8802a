"""The options that several commands share, in groups, and how they become a SamplingParams and an EngineConfig.

It knows names, help texts and defaults. A value out of range is wrong usage (exit code 2). Commands take a group whole
(option_group.py), or an option alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.errors import InputError

if TYPE_CHECKING:
    from puna.engine.config import EngineConfig
    from puna.engine.params import SamplingParams

DEFAULT_MODEL = "smollm2"

MAX_GIB = 1 << 20
_OPTIONS = {"n": "samples", "kv_bytes": "kv_gib", "max_waiting_seqs": "max_waiting"}  # options named otherwise

_SAMPLING = "Sampling"
_ENGINE = "Engine"

Model = Annotated[
    str, typer.Option("--model", "-m", help="A name (see `puna models`), a .gguf file, a folder, or pypi:... or hf:...")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", "-t", rich_help_panel=_SAMPLING, help="0 takes the likeliest token; above, answers vary."
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", rich_help_panel=_SAMPLING, help="Longest answer, in tokens.")
]
TopP = Annotated[float | None, typer.Option("--top-p", rich_help_panel=_SAMPLING, help="Nucleus sampling, 0 to 1.")]
TopK = Annotated[int | None, typer.Option("--top-k", rich_help_panel=_SAMPLING, help="Only the k likeliest tokens.")]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", rich_help_panel=_SAMPLING, help="Only tokens at least this likely, next to the best."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", rich_help_panel=_SAMPLING, help="Above 1: seen tokens get less likely."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", rich_help_panel=_SAMPLING, help="Same seed, same answer. Default: a new one.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", rich_help_panel=_SAMPLING, help="End before this text. May be repeated.")
]
TruncatePromptTokens = Annotated[
    int | None,
    typer.Option(
        "--truncate-prompt-tokens",
        rich_help_panel=_SAMPLING,
        help="Cut longer prompts to so many tokens, and say so; -1: to what the answer leaves. Default: refuse them.",
    ),
]
Backend = Annotated[
    str,
    typer.Option("--backend", rich_help_panel=_ENGINE, help="cpu: the native core. reference: NumPy, slow, readable."),
]
Threads = Annotated[int, typer.Option("--threads", rich_help_panel=_ENGINE, help="0: one a core.")]
Pin = Annotated[
    bool, typer.Option(rich_help_panel=_ENGINE, help="A core of its own for each thread, where no others need it.")
]
Compute = Annotated[
    str, typer.Option("--compute", rich_help_panel=_ENGINE, help="int8 (quick) or float32, for the native core.")
]
Isa = Annotated[
    str,
    typer.Option(
        "--isa",
        rich_help_panel=_ENGINE,
        help="Instruction path of the native core. auto: the best (puna doctor) for the sequences at once.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", rich_help_panel=_ENGINE, help="Context in tokens. Default: what the model allows."),
]
KvGib = Annotated[
    float | None,
    typer.Option("--kv-gib", rich_help_panel=_ENGINE, help="Memory for keys and values. Default: from what is free."),
]
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype",
        rich_help_panel=_ENGINE,
        help="How keys and values are kept: auto (bf16 on tiles, else f16), f16, bf16, f32, or int8 (half of f16).",
    ),
]
Record = Annotated[
    str | None, typer.Option("--record", rich_help_panel=_ENGINE, help="Write every step to this file (puna replay).")
]


MaxSeqs = Annotated[int, typer.Option("--max-seqs", rich_help_panel=_ENGINE, help="Most sequences computed at once.")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn. What is None keeps the default of SamplingParams, but for `max_tokens`: None is up to the
    context limit."""

    temperature: Temperature = 0.0
    max_tokens: MaxTokens = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    seed: Seed = None
    stop: Stop = None
    truncate_prompt_tokens: TruncatePromptTokens = None

    def params(self, **further: Any) -> SamplingParams:
        from puna.engine.params import SamplingParams

        fields = {name: value for name, value in asdict(self).items() if value is not None or name == "max_tokens"}
        try:
            return SamplingParams(**fields, **further)
        except InputError as error:
            raise wrong_usage(error) from None


@dataclass(frozen=True, kw_only=True)
class CoreOptions:
    """How the native core computes."""

    threads: Threads = 0
    compute: Compute = "int8"
    isa: Isa = "auto"
    pin: Pin = True

    def config(self, model: str, **further: Any) -> EngineConfig:
        """`further`: fields of EngineConfig that are no options of this group."""
        from puna.engine.config import EngineConfig

        try:
            return EngineConfig(model=model, **self._fields(), **further)
        except InputError as error:
            raise wrong_usage(error) from None

    def _fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(CoreOptions):
    """What every engine is started with, by whatever command."""

    backend: Backend = "cpu"
    max_model_len: MaxModelLen = None
    kv_gib: KvGib = None
    kv_dtype: KvDtype = "auto"

    def _fields(self) -> dict[str, Any]:
        fields = super()._fields()
        kv_gib = fields.pop("kv_gib")
        if kv_gib is None:
            return fields
        if not 0 < kv_gib <= MAX_GIB:
            raise typer.BadParameter(f"{kv_gib:g} is not above 0 and up to {MAX_GIB}", param_hint="--kv-gib")
        return fields | {"kv_bytes": int(kv_gib * 2**30)}


def wrong_usage(error: InputError) -> typer.BadParameter:
    name = _OPTIONS.get(error.param or "", error.param)
    hint = f"--{name.replace('_', '-')}" if name else None
    return typer.BadParameter(str(error), param_hint=hint)
