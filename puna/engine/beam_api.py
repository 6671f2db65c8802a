"""Beam search as vLLM's offline API has it: `LLM.beam_search` with BeamSearchParams, and what that returns.

Only names and shapes: what is searched, and how, is asked for by SamplingParams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from puna.engine.beams import EarlyStopping
from puna.engine.collect import CompletionOutput, Logprob, RequestOutput
from puna.engine.params import FinishReason, SamplingParams

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True):
    """`beam_width` beams, all of which are returned. Scores are sums of log-probabilities divided by (tokens of the
    answer, its end included) ** `length_penalty`. `temperature` is there for its name; 0 and 1 leave beams alone, and
    others are refused."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    include_stop_str_in_output: bool = False

    def sampling_params(self) -> SamplingParams:
        """InputError where a value is out of range."""
        return SamplingParams(
            n=self.beam_width,
            beam_width=self.beam_width,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=0,
        )


@dataclass(frozen=True)
class BeamSearchSequence:
    """`tokens` and `text` begin with the prompt; `logprobs` are of the answer's tokens, `cum_logprob` their sum."""

    tokens: list[int]
    logprobs: list[dict[int, Logprob]]
    cum_logprob: float
    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    score: float | None


@dataclass(frozen=True)
class BeamSearchOutput:
    """Of one prompt, the highest score first."""

    sequences: list[BeamSearchSequence]


def beam_output(output: RequestOutput, tokenizer: Tokenizer) -> BeamSearchOutput:
    def sequence(answer: CompletionOutput) -> BeamSearchSequence:
        tokens = output.prompt_token_ids + answer.token_ids
        return BeamSearchSequence(
            tokens=tokens,
            logprobs=answer.logprobs or [],
            cum_logprob=answer.cumulative_logprob or 0.0,
            text=tokenizer.decode(tokens, skip_special_tokens=True),
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            score=answer.score,
        )

    return BeamSearchOutput([sequence(answer) for answer in output.outputs])
