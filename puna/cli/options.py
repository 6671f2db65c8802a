"""The options that several commands share, and how they become a SamplingParams and an EngineConfig.

It knows names, help texts and defaults. A value out of range is wrong usage (exit code 2).
"""

from __future__ import annotations

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
    str, typer.Option("--model", "-m", help="A name (see `puna models`), a .gguf file, or pypi:... or hf:...")
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
        help="How keys and values are kept: f16, bf16, f32, or int8 (half of f16).",
    ),
]
Record = Annotated[
    str | None, typer.Option("--record", rich_help_panel=_ENGINE, help="Write every step to this file (puna replay).")
]


def sampling_params(**options: Any) -> SamplingParams:
    """Options that are None keep their defaults, but for `max_tokens`: None is up to the context limit."""
    from puna.engine.params import SamplingParams

    given = {name: value for name, value in options.items() if value is not None or name == "max_tokens"}
    try:
        return SamplingParams(**given)
    except InputError as error:
        raise wrong_usage(error) from None


def engine_config(model: str, *, kv_gib: float | None = None, **options: Any) -> EngineConfig:
    from puna.engine.config import EngineConfig

    if kv_gib is not None:
        if not 0 < kv_gib <= MAX_GIB:
            raise typer.BadParameter(f"{kv_gib:g} is not above 0 and up to {MAX_GIB}", param_hint="--kv-gib")
        options["kv_bytes"] = int(kv_gib * 2**30)
    try:
        return EngineConfig(model=model, **options)
    except InputError as error:
        raise wrong_usage(error) from None


def wrong_usage(error: InputError) -> typer.BadParameter:
    name = _OPTIONS.get(error.param or "", error.param)
    hint = f"--{name.replace('_', '-')}" if name else None
    return typer.BadParameter(str(error), param_hint=hint)
