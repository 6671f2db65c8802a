"""The options that several commands share, in groups, and how they become a SamplingParams and an EngineConfig.

It knows names, help texts and defaults. A value out of range is wrong usage (exit code 2). Commands take a group whole
(option_group.py), or an option alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.errors import InputError

if TYPE_CHECKING:
    from puna.engine.config import EngineConfig
    from puna.engine.params import SamplingParams
    from puna.engine.structure import StructuredOutputs

DEFAULT_MODEL = "smollm2"

MAX_GIB = 1 << 20
_FORM_OPTIONS = ("json_object", "json_schema", "regex", "choice", "grammar", "any_whitespace")
_OPTIONS = {"n": "samples", "kv_bytes": "kv_gib", "max_waiting_seqs": "max_waiting"}  # options named otherwise

_SAMPLING = "Sampling"
_ENGINE = "Engine"
_FORM = "Form of the answer"

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
JsonObject = Annotated[bool, typer.Option("--json-object", rich_help_panel=_FORM, help="A JSON object.")]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", rich_help_panel=_FORM, help="JSON that follows this schema: a file, or the schema."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", rich_help_panel=_FORM, help="Text that this expression matches as a whole.")
]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", rich_help_panel=_FORM, help="One of these texts. To be repeated.")
]
Grammar = Annotated[
    str | None, typer.Option("--grammar", rich_help_panel=_FORM, help="Text of this grammar: a file, Lark or GBNF.")
]
AnyWhitespace = Annotated[
    bool, typer.Option("--any-whitespace", rich_help_panel=_FORM, help="JSON need not be compact.")
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of",
        rich_help_panel=_SAMPLING,
        help="Draw so many answers, keep the --samples of highest mean log-probability.",
    ),
]
BeamWidth = Annotated[
    int | None,
    typer.Option(
        "--beam-width",
        rich_help_panel=_SAMPLING,
        help="Search with so many beams instead of drawing; --samples: answers to keep of them.",
    ),
]
LengthPenalty = Annotated[
    float,
    typer.Option("--length-penalty", rich_help_panel=_SAMPLING, help="Of beams. Above 0 favours long answers."),
]
EarlyStopping = Annotated[
    str,
    typer.Option(
        "--early-stopping",
        rich_help_panel=_SAMPLING,
        help="Of beams: true (when there are enough answers), false (when the best beam is no better) or never.",
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
    json_object: JsonObject = False
    json_schema: JsonSchema = None
    regex: Regex = None
    choice: Choice = None
    grammar: Grammar = None
    any_whitespace: AnyWhitespace = False

    def params(self, **further: Any) -> SamplingParams:
        from puna.engine.params import SamplingParams

        given = {name: value for name, value in asdict(self).items() if name not in _FORM_OPTIONS}
        fields = {name: value for name, value in given.items() if value is not None or name == "max_tokens"}
        try:
            return SamplingParams(**fields, structured_outputs=self._form(), **further)
        except InputError as error:
            raise wrong_usage(error) from None

    def _form(self) -> StructuredOutputs | None:
        from puna.engine.structure import StructuredOutputs

        given: dict[str, dict[str, Any]] = {}
        if self.json_object:
            given["json_object"] = {"json_object": True}
        if self.json_schema is not None:
            given["json_schema"] = {"json": text_or_file(self.json_schema, "--json-schema")}
        if self.regex is not None:
            given["regex"] = {"regex": self.regex}
        if self.choice:
            given["choice"] = {"choice": self.choice}
        if self.grammar is not None:
            given["grammar"] = {"grammar": text_or_file(self.grammar, "--grammar")}
        if not given and not self.any_whitespace:
            return None
        if len(given) != 1:
            raise typer.BadParameter(
                "give one of --json-object, --json-schema, --regex, --choice and --grammar (--any-whitespace goes with "
                "the first two)"
            )
        ((named, form),) = given.items()
        return StructuredOutputs(**form, any_whitespace=self.any_whitespace, named=named)


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


def text_or_file(given: str, option: str) -> str:
    """What stands in the file of that name, or what was given where it is plainly no name of a file."""
    if given.lstrip()[:1] in ("{", "") or given in ("true", "false") or "\n" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise typer.BadParameter(f"cannot read {given}: {reason}", param_hint=option) from None


def wrong_usage(error: InputError) -> typer.BadParameter:
    name = _OPTIONS.get(error.param or "", error.param)
    hint = f"--{name.replace('_', '-')}" if name else None
    return typer.BadParameter(str(error), param_hint=hint)
