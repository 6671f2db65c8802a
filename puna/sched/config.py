"""The limits that a scheduler works under, checked once when they are given.

Knows counts of blocks, tokens and sequences. It does not know bytes: whoever sizes the pool divides memory by the
bytes of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.errors import InputError


@dataclass(frozen=True)
class SchedulerConfig:
    """`num_blocks` includes the null block, so `num_blocks - 1` blocks can hold tokens.

    max_model_len        longest sequence, prompt and output, that the model takes
    budget_tokens        tokens that one step may compute, over all sequences
    prefill_tokens       the same for a step while no running sequence has begun its answer; 0: budget_tokens
    max_seqs             sequences that may run at once (seats)
    prefix_cache         keep full blocks findable by what they hold
    watermark_blocks     free blocks that an admission leaves untouched while others run
    history_tokens       keys before a token that cost as much as the rest of computing it; 0: history costs nothing
    long_prefill_tokens  most tokens of one sequence in one step; 0: only the budget limits it
    tier_blocks          blocks outside the pool for swapping; 0: preempted sequences are recomputed
    max_waiting_seqs     length of the waiting queue at which new sequences are refused
    max_waiting_tokens   known tokens in the waiting queue at which new sequences are refused; 0: unlimited
    """

    num_blocks: int
    max_model_len: int
    block_size: int = 16
    budget_tokens: int = 2048
    prefill_tokens: int = 0
    max_seqs: int = 128
    prefix_cache: bool = True
    watermark_blocks: int = 0
    history_tokens: int = 0
    long_prefill_tokens: int = 0
    tier_blocks: int = 0
    max_waiting_seqs: int = 1024
    max_waiting_tokens: int = 0

    def __post_init__(self) -> None:
        lowest = {"num_blocks": 2, "max_model_len": 1, "block_size": 1, "budget_tokens": 1, "max_seqs": 1}
        lowest["max_waiting_seqs"] = 1
        for name in (
            "prefill_tokens",
            "watermark_blocks",
            "history_tokens",
            "long_prefill_tokens",
            "tier_blocks",
            "max_waiting_tokens",
        ):
            lowest[name] = 0
        for name, low in lowest.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name} is {value!r}; it takes a whole number of {low} or more", param=name)

    @property
    def usable_blocks(self) -> int:
        """Blocks that can hold tokens: all but the null block."""
        return self.num_blocks - 1

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` consecutive tokens of one sequence occupy."""
        return -(-tokens // self.block_size)
