"""How long a step takes, without running it: a few measured numbers, and what they say of any step.

A step's time is that of its tokens through the weights (measured at some counts, straight lines between), and of the
keys that its tokens look at. It knows what the scheduler hands out; neither a model nor a device. Where the numbers
come from: puna/plan/profiles.py reads them, puna/bench/step_profile.py measures them.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from puna.errors import InputError
from puna.kernels.batch import MOVE_COPY
from puna.sched.step import ScheduledStep


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """`points`: (tokens of a step, seconds) in rising order; beyond the last the line through the last two goes on.

    row_s         more for every row of a single token (it is drawn from; its cache is looked up)
    key_s         a key that a single token looks at: bound by memory
    prompt_key_s  a key that one of many tokens of a prompt looks at: bound by arithmetic
    copy_s        a block copied within the pool
    swap_s        a block moved out to the tier, or in
    """

    name: str
    points: tuple[tuple[int, float], ...]
    row_s: float = 0.0
    key_s: float = 0.0
    prompt_key_s: float = 0.0
    copy_s: float = 0.0
    swap_s: float = 0.0

    def __post_init__(self) -> None:
        tokens = [point[0] for point in self.points]
        if not tokens or tokens != sorted(set(tokens)) or tokens[0] < 0:
            raise InputError(f"step times at {tokens} tokens; they are given in rising order, one at least")
        rest = (self.row_s, self.key_s, self.prompt_key_s, self.copy_s, self.swap_s)
        if any(not 0 < seconds < float("inf") for _, seconds in self.points) or any(not 0 <= s < 60 for s in rest):
            raise InputError(f"the step times {self.name!r} hold one that is no time; they are seconds above 0")

    def seconds(self, step: ScheduledStep) -> float:
        singles = keys = prompt_keys = 0
        for row in step.rows:
            if row.count == 1:
                singles += 1
                keys += row.start + 1
            else:
                prompt_keys += row.count * row.start + row.count * (row.count + 1) // 2
        seconds = self.of_tokens(step.tokens) + singles * self.row_s + keys * self.key_s
        seconds += prompt_keys * self.prompt_key_s
        for kind, _, _ in step.moves:
            seconds += self.copy_s if kind == MOVE_COPY else self.swap_s
        return seconds

    def of_tokens(self, tokens: int) -> float:
        """Without attention. Never less than the least of the points."""
        return _on_lines(self.points, tokens)


def _on_lines(points: tuple[tuple[int, float], ...], tokens: int) -> float:
    if len(points) == 1 or tokens <= points[0][0]:
        return points[0][1]
    at = min(max(bisect_left(points, (tokens, 0.0)), 1), len(points) - 1)
    (low, before), (high, after) = points[at - 1], points[at]
    return max(before + (after - before) * (tokens - low) / (high - low), min(seconds for _, seconds in points))
