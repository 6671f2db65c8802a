"""The measured half of sharing.py: blocks that beams hold, counted in the engine while it searches.

Prompts are pieces of a real text, cut at drawn lengths; answers have exactly the drawn length (no end token), so that
beams and forks are counted over the same lengths. Counted as in puna/plan/sharing.py, at the same moment of a step: its
tokens are computed, what was drawn is not known yet.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path
from typing import Any

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.workloads.lengths import ALPACA, SHAREGPT, Lengths

WIDTHS = (2, 4, 6)
LONGEST = 512  # of prompts and of answers
REQUESTS = {SHAREGPT.name: 4, ALPACA.name: 12}  # a run
TEXT = Path(__file__).resolve().parents[1] / "tests" / "data" / "accuracy_text.txt"


class _Counted:
    """Stands between an engine and the `commit` of its scheduler."""

    def __init__(self, engine: Engine) -> None:
        self.held = self.alone = 0
        self._scheduler = engine.scheduler
        self._commit = engine.scheduler.commit
        engine.scheduler.commit = self.commit  # type: ignore[method-assign]

    def commit(self, *arguments: Any) -> None:
        self._commit(*arguments)
        self.held += self._scheduler.stats().blocks_used
        self.alone += sum(sequence.seats * len(sequence.blocks) for sequence in self._scheduler.running)


def beam_savings(model: str, seeds: range) -> dict[str, Any]:
    config = EngineConfig(model=model, max_model_len=2 * LONGEST, kv_bytes=1 << 29, prefix_cache=False, max_seqs=64)
    engine = Engine(config)
    counted = _Counted(engine)
    tokens = engine.backend.model.tokenizer.encode(TEXT.read_text())
    rows = []
    try:
        for lengths in (ALPACA.cut(LONGEST), SHAREGPT.cut(LONGEST)):
            for width in WIDTHS:
                saved = [_run(engine, counted, tokens, lengths, width, seed) for seed in seeds]
                rows.append(
                    {
                        "set": lengths.name,
                        "width": width,
                        "saved": statistics.median(saved),
                        "low": min(saved),
                        "high": max(saved),
                        "requests": REQUESTS[lengths.name] * len(saved),
                    }
                )
                print(rows[-1], file=sys.stderr)
    finally:
        engine.close()
    return {"model": model, "rows": rows}


def _run(engine: Engine, counted: _Counted, tokens: list[int], lengths: Lengths, width: int, seed: int) -> float:
    dice = random.Random(f"beams {seed}")
    counted.held = counted.alone = 0
    for number, (prompt, answer) in enumerate(lengths.draw(REQUESTS[lengths.name], dice)):
        start = dice.randrange(len(tokens) - prompt)
        params = SamplingParams(beam_width=width, n=1, max_tokens=answer, ignore_eos=True, temperature=0.0)
        request_id = f"{lengths.name}/{width}/{seed}/{number}"
        engine.add(EngineRequest(request_id=request_id, prompt_token_ids=tokens[start : start + prompt], params=params))
    while engine.has_work:
        for update in engine.step():
            if update.finish_reason == "error":
                raise RuntimeError(update.error)
    return 1 - counted.held / counted.alone
