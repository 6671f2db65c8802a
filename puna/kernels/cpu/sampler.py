"""The native sampler alone, on logits that the caller has: for comparing it with its twin, and for timing it.

In a step it runs inside the native call, where the logits are; see `puna.kernels.cpu.binding`.
"""

from __future__ import annotations

from puna.errors import InputError
from puna.kernels.batch import F32, SampleRows, StepOutput
from puna.kernels.cpu import _native


class NativeSampler:
    """`isa`: one of `paths()`, or "auto". `threads` includes the caller."""

    def __init__(self, isa: str = "auto", threads: int = 1) -> None:
        try:
            self._core = _native.Sampler(isa, threads)
        except ValueError as error:
            raise InputError(str(error), param="isa") from None

    def sample(self, logits: F32, rows: SampleRows) -> StepOutput:
        """Samples or scores `rows` of `logits`, float32 [any, vocab], which are worked on in place and left as they
        were; each is chosen once. InputError where an index leaves its range."""
        out = StepOutput.blank(rows)
        try:
            self._core.sample(logits, rows, out.tokens, out.logprob, out.rank, out.top_ids, out.top_logprobs)
        except ValueError as error:
            raise InputError(f"the rows were refused: {error}") from None
        return out
