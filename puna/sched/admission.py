"""Who may join the waiting queue: what can never run is refused for good, what is too much now is refused for a while.

Knows the limits, the length of the queue and how quickly sequences have been leaving; it keeps no sequences.
"""

from __future__ import annotations

from puna.errors import InputError, MemoryBudgetError, OverloadedError
from puna.sched.config import SchedulerConfig
from puna.sched.group import common_with_fork, longest_len, most_blocks, together
from puna.sched.sequence import Sequence

_SMOOTHING = 0.1  # weight of the newest interval between exits
_LONGEST_RETRY_S = 60.0


def check_fits(sequence: Sequence, config: SchedulerConfig) -> None:
    """Raises InputError or MemoryBudgetError if `sequence` could not run even alone on an idle scheduler."""
    if not sequence.tokens:
        raise InputError("the prompt has no tokens; it needs at least one", param="prompt")
    if sequence.total_len > sequence.max_total_len:
        raise InputError(
            f"{sequence.total_len} tokens are known but the sequence may have {sequence.max_total_len} at most; "
            "shorten the prompt or raise the limit",
            param="prompt",
        )
    if sequence.max_total_len > config.max_model_len:
        raise InputError(
            f"prompt ({sequence.prompt_len} tokens) and output may come to {sequence.max_total_len} tokens, the "
            f"context holds {config.max_model_len} (max_model_len); shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    if not 1 <= sequence.seats <= config.max_seqs:
        raise InputError(
            f"n is {sequence.seats} but at most {config.max_seqs} sequences run at once (max_seqs); lower n or raise "
            "max_seqs",
            param="n",
        )
    needed = most_blocks(sequence, config.block_size)
    if needed > config.usable_blocks:
        raise MemoryBudgetError(_too_large(sequence, needed, config))


def _too_large(sequence: Sequence, needed: int, config: SchedulerConfig) -> str:
    """Says what does not fit, and what would."""
    seats = sum(member.seats for member in together(sequence))
    room = longest_len(sequence.prompt_len, seats, config.usable_blocks, config.block_size)
    who = "prompt and output" if seats == 1 else f"{seats} outputs from one prompt (n, best_of or beams)"
    shorter = f"lower max_tokens to at most {room - sequence.prompt_len}" if sequence.prompt_len < room else ""
    fewer = "" if seats == 1 else "ask for fewer outputs, "
    return (
        f"{who} of up to {sequence.max_total_len} tokens need {needed} KV blocks of {config.block_size} tokens, the "
        f"pool holds {config.usable_blocks} ({config.usable_blocks * config.block_size} tokens); {fewer}"
        f"{shorter or 'shorten the prompt'} or give the KV pool more memory (num_blocks)"
    )


def check_fork(parent: Sequence, seats_taken: int, config: SchedulerConfig) -> None:
    """Raises OverloadedError or MemoryBudgetError if another fork of `parent` finds no seat, or no pool that could hold
    them all."""
    is_seated = parent.seats > 1  # its seat was kept when the parent was admitted
    if not is_seated and seats_taken >= config.max_seqs:
        raise OverloadedError(
            f"all {config.max_seqs} running places are taken (max_seqs), so the sequence cannot be forked; add it with "
            "as many seats as it will have forks"
        )
    more = 0 if is_seated else 1
    needed = most_blocks(parent, config.block_size, more=more, common_len=common_with_fork(parent))
    if needed > config.usable_blocks:
        raise MemoryBudgetError(
            f"with another fork the sequence and its forks may need {needed} KV blocks, the pool holds "
            f"{config.usable_blocks}; fork it less often, or give the KV pool more memory (num_blocks)"
        )


class WaitingLimits:
    """Refuses new sequences while the queue is full, with a hint of when a place may be free."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._max_seqs = config.max_waiting_seqs
        self._max_tokens = config.max_waiting_tokens
        self._last_exit: float | None = None
        self._exit_interval_s = 0.0  # smoothed

    def check(self, sequence: Sequence, waiting_seqs: int, waiting_tokens: int) -> None:
        """Raises OverloadedError. An empty queue takes any sequence, however long."""
        if waiting_seqs >= self._max_seqs:
            raise OverloadedError(
                f"{waiting_seqs} sequences are waiting, the queue takes {self._max_seqs} (max_waiting_seqs); try "
                "again later",
                retry_after_s=self.retry_after_s(),
            )
        wanted = waiting_tokens + sequence.total_len
        if self._max_tokens and waiting_seqs and wanted > self._max_tokens:
            raise OverloadedError(
                f"{waiting_tokens} tokens are waiting, these {sequence.total_len} would pass the queue's limit of "
                f"{self._max_tokens} (max_waiting_tokens); try again later",
                retry_after_s=self.retry_after_s(),
            )

    def on_exit(self, now: float) -> None:
        """A sequence left: the pace of exits is the pace at which places in the queue come free."""
        if self._last_exit is not None:
            interval_s = max(now - self._last_exit, 0.0)
            self._exit_interval_s += _SMOOTHING * (interval_s - self._exit_interval_s)
        self._last_exit = now

    def retry_after_s(self) -> float:
        """Seconds until about one more sequence will have left, between 1 and 60."""
        return min(max(self._exit_interval_s, 1.0), _LONGEST_RETRY_S)
