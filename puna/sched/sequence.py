"""One token stream and what the scheduler knows of it.

A sequence has tokens that are known (prompt and output) and tokens whose keys and values are computed; the scheduler
closes that gap. It knows nothing of text, of sampling, of clients or of time.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field

from puna.sched.group import Group


class Status(enum.Enum):
    WAITING = "waiting"  # never ran, or was preempted by recompute: holds no blocks
    SWAPPED = "swapped"  # preempted with its blocks in the tier
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """A sequence. `tokens` is prompt then output; only the engine appends to it (through `Scheduler.append`).

    `priority`: lower runs first. `arrival`: a number that grows with admission, given by the caller (a time in
    seconds, say); ties are broken by `sequence_id`. `extra_keys`: tagged tuples that separate prefix-cache chains
    (adapter, model); `cache_salt` separates the first block only, the chain carries it on. `tenant` names who is
    charged. `reuse_prefix` is False where every prompt token has to be computed (prompt logprobs).
    """

    sequence_id: int
    tokens: array[int]  # typecode "i"
    prompt_len: int
    max_total_len: int  # the sequence never grows beyond this many tokens
    arrival: float = 0.0
    priority: int = 0
    tenant: str = ""
    extra_keys: tuple[tuple[str, str], ...] = ()
    cache_salt: str = ""
    reuse_prefix: bool = True
    seats: int = 1  # running slots it needs; n before a request's n samples are forked, 1 after
    group: Group | None = None  # it and its forks

    # Owned by the scheduler from here on.
    status: Status = Status.WAITING
    computed_len: int = 0  # tokens whose keys and values are in the pool
    cached_len: int = 0  # of those, tokens that came from the prefix cache when it was last admitted
    blocks: list[int] = field(default_factory=list)  # the block table
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, computed once as tokens arrive
    awaits: int = 0  # blocks at the start of its table that others of its group are computing for it
    preemptions: int = 0

    @property
    def total_len(self) -> int:
        return len(self.tokens)

    @property
    def pending_len(self) -> int:
        """Known tokens that are not computed yet: the gap."""
        return len(self.tokens) - self.computed_len

    @property
    def output_len(self) -> int:
        return len(self.tokens) - self.prompt_len
