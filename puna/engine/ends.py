"""When a sample ends, and what its last update says.

The order: end-of-sequence ids, then stop ids, then a grammar that allows nothing more, then length; all but the last
only behind `min_tokens`. Knows samples and their sequences; text and stop strings are the client's, and freeing what a
sample held is the engine's.
"""

from __future__ import annotations

from puna.engine.live import Sample
from puna.engine.params import FinishReason, SampleUpdate
from puna.kernels.batch import NO_TOKEN
from puna.sched.sequence import Sequence

NOT_NUMBERS = (
    "the model computed logits that are not numbers after this sample's tokens; other requests are not touched by it: "
    "look for damaged weights, or try compute='float32' and kv_dtype='f32'"
)
GIVEN_UP = "given up by the scheduler: it waited too long, or its keys and values do not fit into the pool"


def finish_rule(sample: Sample, sequence: Sequence) -> tuple[FinishReason | None, int | None]:
    """Why the sample has ended with its sequence's last token, and the stop id if that is why. None: it goes on."""
    recipe, token = sample.recipe, sequence.tokens[-1]
    if sequence.output_len > recipe.params.min_tokens:
        if token in recipe.eos_ids:
            return "stop", None
        if token in recipe.stop_ids:
            return "stop", token
    return ("length", None) if sequence.total_len >= sequence.max_total_len else (None, None)


def form_rule(sample: Sample, sequence: Sequence) -> SampleUpdate | None:
    """The last update of a sample whose form does not let it go on behind its sequence's last token: because the answer
    is complete, which is a stop, or because of an error. None: it may go on, or no form is asked for."""
    matcher = sample.matcher
    if matcher is None:
        return None
    if matcher.error is not None:
        return ended(sample, "error", error=matcher.error)
    if matcher.over and sequence.output_len >= sample.recipe.params.min_tokens:
        return ended(sample, "stop")
    return None


def no_token(sample: Sample, sequence: Sequence, token: int) -> SampleUpdate:
    """The last update of a sample that drew none: `token` says why."""
    if token == NO_TOKEN:
        return ended(sample, "error", error=NOT_NUMBERS)
    matcher, written = sample.matcher, sequence.output_len
    if matcher is not None and matcher.error is not None:
        return ended(sample, "error", error=matcher.error)
    if matcher is not None and matcher.accepts and written >= sample.recipe.params.min_tokens:
        return ended(sample, "stop")
    return ended(
        sample,
        "error",
        error=f"after {written} tokens no token is left: what structured_outputs allows here is ruled out by "
        "allowed_token_ids, bad_words, min_tokens or stop_token_ids; allow more",
    )


def ended(
    sample: Sample, reason: FinishReason, *, stop_token_id: int | None = None, error: str | None = None
) -> SampleUpdate:
    """The update of a sample that ends without a further token."""
    return SampleUpdate(
        request_id=sample.request_id,
        index=sample.index,
        token_ids=[],
        finish_reason=reason,
        stop_token_id=stop_token_id,
        error=error,
    )
