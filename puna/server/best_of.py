"""best_of: holds back what every sample of a prompt brings, and gives out the best of them when all are done.

Which are the best is decided in puna.engine.selection. Knows deltas; nothing of engines or of shapes that clients see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from puna.engine.params import SamplingParams
from puna.engine.selection import best, mean_logprob

if TYPE_CHECKING:
    from puna.server.deltas import Delta


async def best_samples(
    deltas: AsyncGenerator[Delta], params: SamplingParams, first_index: int
) -> AsyncGenerator[Delta]:
    """One delta a returned choice, the best first. `deltas` are numbered from `first_index`, as the choices will be."""
    parts: defaultdict[int, list[Delta]] = defaultdict(list)
    async with aclosing(deltas):
        async for delta in deltas:
            parts[delta.index - first_index].append(delta)
    samples = [_joined(parts[i]) for i in range(params.samples)]
    chosen = best((mean_logprob(sample.logprobs) for sample in samples), params.n)
    discarded = sum(len(sample.token_ids) for i, sample in enumerate(samples) if i not in chosen)
    for place, i in enumerate(chosen):
        yield replace(
            samples[i],
            index=first_index + place,
            logprobs=[] if params.logprobs is None else samples[i].logprobs,
            prompt_logprobs=None if place else samples[0].prompt_logprobs,
            discarded_tokens=0 if place else discarded,
        )


def _joined(parts: list[Delta]) -> Delta:
    """All that one sample brought. Its first part has what is said once, the last one how it ended."""
    return replace(
        parts[0],
        text="".join(part.text for part in parts),
        token_ids=[token for part in parts for token in part.token_ids],
        logprobs=[entry for part in parts for entry in part.logprobs],
        finish_reason=parts[-1].finish_reason,
        stop_reason=parts[-1].stop_reason,
    )
