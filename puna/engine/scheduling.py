"""The scheduler that an engine's options ask for, over the pool that its backend made.

Knows both sides' names for the same numbers; neither requests nor steps.
"""

from __future__ import annotations

from puna.engine.backend import Backend
from puna.sched.config import SchedulerConfig
from puna.sched.policies import POLICIES
from puna.sched.scheduler import Scheduler


def open_scheduler(backend: Backend) -> Scheduler:
    config, kv = backend.config, backend.memory.kv
    return Scheduler(
        SchedulerConfig(
            num_blocks=kv.num_blocks,
            max_model_len=backend.memory.max_model_len,
            block_size=kv.block_size,
            budget_tokens=config.budget_tokens or 1,
            prefill_tokens=backend.prefill_tokens,
            max_seqs=config.max_seqs,
            prefix_cache=config.prefix_cache,
            history_tokens=backend.history_tokens,
            watermark_blocks=int(config.watermark * kv.num_blocks),
            long_prefill_tokens=config.long_prefill_tokens,
            tier_blocks=kv.tier_blocks,
            max_waiting_seqs=config.max_waiting_seqs,
            max_waiting_tokens=config.max_waiting_tokens,
        ),
        POLICIES[config.policy](),
    )
