"""The scheduler's figures, counted where they arise and read together here. Knows no step and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from puna.sched.block_tables import BlockTables
from puna.sched.population import Population


@dataclass(frozen=True)
class SchedulerStats:
    """Sequences by state, blocks by use (used + free = total; the null block is not counted), and counters since the
    start. A block that is free may still be cached. Prefix queries and hits are in tokens, counted on admission."""

    waiting: int
    running: int
    swapped: int
    waiting_tokens: int
    blocks_used: int
    blocks_free: int
    blocks_total: int
    blocks_cached: int
    tier_used: int
    prefix_queries: int
    prefix_hits: int
    evictions: int
    preemptions: int

    @classmethod
    def of(cls, population: Population, tables: BlockTables, preemptions: int) -> SchedulerStats:
        pool, swapped = tables.pool, len(tables.swapped)
        return cls(
            waiting=len(population.waiting) - swapped,
            running=len(population.running),
            swapped=swapped,
            waiting_tokens=population.waiting_tokens,
            blocks_used=pool.usable - pool.free_count,
            blocks_free=pool.free_count,
            blocks_total=pool.usable,
            blocks_cached=len(tables.cache),
            tier_used=tables.tier.capacity - tables.tier.free_count,
            prefix_queries=tables.prefix_queries,
            prefix_hits=tables.prefix_hits,
            evictions=tables.cache.evictions,
            preemptions=preemptions,
        )
