"""Decides, step by step, which tokens of which sequences are computed.

One idea: a sequence has known and computed tokens, and a step hands out a budget of tokens to close the gaps. Prefill,
its chunks, decode, a prefix hit and resuming after preemption are that one case. Running sequences come first, then
waiting ones, but only if memory did not run out. Who waits in which order and who gives way is the policy's business.
It knows no model, text, sampling or clock. Time is passed in; the same calls give the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from puna.sched.admission import WaitingLimits, check_fits, check_fork
from puna.sched.block_tables import BlockTables
from puna.sched.config import SchedulerConfig
from puna.sched.draft import Draft
from puna.sched.group import Group, common_with_fork, together
from puna.sched.policy import Policy
from puna.sched.population import Population
from puna.sched.preemption import preempt, start_over
from puna.sched.sequence import Sequence, Status
from puna.sched.stats import SchedulerStats
from puna.sched.steady import repeat_rows
from puna.sched.step import ScheduledStep


class Scheduler:
    """Call `schedule`, run the step, `commit` it (or `abandon` it, if running it failed), then `append` what was drawn.

    `add`, `abort`, `finish` and `fork` may come at any time in between. Every `now` is in seconds of any one clock.
    `tables`: other bookkeeping of memory than blocks, for a simulation of what others do.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy, tables: BlockTables | None = None) -> None:
        self.config = config
        self.policy = policy
        self._tables = BlockTables(config) if tables is None else tables
        self._limits = WaitingLimits(config)
        self._population = Population()
        self._waiting, self._running = self._population.waiting, self._population.running  # the same objects, to read
        self._preemptions = 0
        self._open_step: ScheduledStep | None = None
        self._steady = False  # all that run had one token in the last step, and nobody came or went since
        self._policy_hears_tokens = type(policy).on_tokens is not Policy.on_tokens

    # --- arrivals and exits ---

    def add(self, sequence: Sequence, now: float, *, admitted: bool = False) -> None:
        """Puts a new sequence into the queue. `admitted`: it was in one before, and is taken however full this one is.

        Raises InputError or MemoryBudgetError if it could not run even alone, OverloadedError while the queue is full.
        """
        self._check_new(sequence)
        check_fits(sequence, self.config)
        if not admitted:
            self._limits.check(sequence, len(self._waiting), self._population.waiting_tokens)
        self._population.queue(sequence)
        self.policy.on_arrival(sequence, now)

    def fork(self, parent: Sequence, child: Sequence, now: float) -> None:
        """Starts `child` with the tokens and the computed blocks of the running `parent`; no keys or values are copied.
        From then on the two are admitted and give way together, with all forks of theirs.

        The child takes one of the parent's seats if it has more than one. Else it needs a free one (OverloadedError if
        none is), and a pool that holds all of them (MemoryBudgetError).
        """
        self._check_new(child)
        if parent.status is not Status.RUNNING or child.tokens != parent.tokens or child.seats != 1:
            raise ValueError("a fork needs a running parent and a child of one seat with the very same tokens")
        check_fits(child, self.config)
        check_fork(parent, self._population.seats_taken, self.config)
        self._steady = False
        behind = together(parent)[-1]
        Group.join(parent, child)
        self._tables.fork(parent, child)
        self._population.join(child, parent, behind)
        self.policy.on_arrival(child, now)

    def refork(self, parent: Sequence, sequence: Sequence) -> None:
        """`sequence` drops what it has and goes on as another fork of `parent`, in its own seat. Both run, are of one
        group, and have computed what all of that share."""
        group = sequence.group
        if group is None or group is not parent.group or sequence is parent or sequence.status is not Status.RUNNING:
            raise ValueError("only a running sequence can go on as a fork of another one of its group")
        if any(member.awaits for member in group.members) or common_with_fork(parent) < group.common_len:
            raise ValueError("the parent, or another one, has yet to compute what the group has in common")
        self._steady = False
        sequence.tokens[:] = parent.tokens
        self._tables.fork(parent, sequence)

    def abort(self, sequence: Sequence, now: float) -> None:
        """Ends a sequence in whatever state it is; does nothing if it has ended or was never added."""
        self.finish(sequence, now)

    def finish(self, sequence: Sequence, now: float) -> None:
        """Ends a sequence and gives back all it holds; its full blocks stay findable until their memory is needed."""
        if sequence not in self._population:
            return
        self._steady = False
        self._tables.close(sequence)
        self._population.remove(sequence)
        if sequence.group is not None:
            sequence.group.members.remove(sequence)
            if any(member.awaits for member in sequence.group.members):  # blocks that it may have been to compute
                start_over(sequence.group.members, self._population, self._tables)
        self._limits.on_exit(now)
        self.policy.on_exit(sequence, now)

    def append(self, sequence: Sequence, token: int, now: float) -> None:
        """A drawn token becomes known."""
        if sequence.status is Status.FINISHED or len(sequence.tokens) >= sequence.max_total_len:
            raise ValueError(f"sequence {sequence.sequence_id} has ended or is as long as it may get")
        sequence.tokens.append(token)
        self._population.note_token(sequence)
        self.policy.on_tokens(sequence, 0, 1, now)

    # --- steps ---

    def schedule(self, now: float) -> ScheduledStep:
        """The next step. The one before must have been committed or abandoned, if it had rows."""
        if self._open_step is not None:
            raise ValueError("the last step is neither committed nor abandoned")
        if (
            self._steady
            and not self._waiting
            and (repeated := repeat_rows(self._running, self._tables.pool, self.config.block_size))
        ):
            self._open_step = repeated
            return repeated
        draft = Draft(self._budget(), self.config.history_tokens)
        shed = self._shed(now) if self._waiting else ()
        if self._waiting and self._running:
            given_up = self.policy.reclaim(self._waiting, self._running)
            if given_up is not None:
                self._preemptions += preempt(given_up, draft, self._population, self._tables)
        self._serve_running(draft, now)
        if self._waiting and not draft.out_of_memory:
            self._serve_waiting(draft)
        step = ScheduledStep(
            rows=tuple(draft.rows),
            moves=tuple(draft.moves),
            preempted=tuple(draft.preempted),
            tokens=draft.whole_budget - draft.budget,
            shed=shed,
            impossible=tuple(draft.impossible),
        )
        if step.rows:
            self._open_step = step
        one_each = len(step.rows) == len(self._running) == step.tokens and not step.moves
        self._steady = one_each and all(row.completes for row in step.rows)
        return step

    def commit(self, step: ScheduledStep, now: float) -> None:
        """The step has run: its tokens are computed, and the blocks that they filled can be found by others."""
        if step is not self._open_step and step.rows:
            raise ValueError("only the last scheduled step can be committed, and only once")
        self._open_step = None
        tables, running, block_size = self._tables, Status.RUNNING, self.config.block_size
        for row in step.rows:
            sequence, start, count = row.sequence, row.start, row.count
            if sequence.status is running:  # else it was aborted meanwhile
                sequence.computed_len = end = start + count
                if count > 1 or end % block_size == 0 or tables.uncached_from:
                    tables.publish(sequence, start)
                if self._policy_hears_tokens:
                    self.policy.on_tokens(sequence, count, 0, now)

    def commit_drawn(self, step: ScheduledStep, tokens: list[int], now: float) -> list[int]:
        """`commit`, and `append` of one token to the sequence of every row, in one go; where a row drew none (a number
        below 0), nothing is appended. Every row has to be one token that completes a running sequence.

        Returns the numbers of the rows whose sequences are as long now as they may get.
        """
        if step is not self._open_step:
            raise ValueError("only the last scheduled step can be committed, and only once")
        self._open_step = None
        tables, block_size, whole = self._tables, self.config.block_size, []
        for number, (row, token) in enumerate(zip(step.rows, tokens, strict=True)):
            sequence = row.sequence
            sequence.computed_len = end = row.start + 1
            if end % block_size == 0 or tables.uncached_from:
                tables.publish(sequence, row.start)
            if token >= 0:
                sequence.tokens.append(token)
                if end + 1 >= sequence.max_total_len:
                    whole.append(number)
        if self._policy_hears_tokens:
            for row, token in zip(step.rows, tokens, strict=True):
                self.policy.on_tokens(row.sequence, 1, int(token >= 0), now)
        return whole

    def abandon(self, step: ScheduledStep) -> None:
        """Running the step failed, and what it wrote cannot be trusted: the sequences in it start over by recomputing,
        from the front of the queue. Blocks in the cache were not written to. Abort those that are to blame."""
        self._open_step = None
        self._steady = False
        for sequence in step.preempted:
            if sequence.status is Status.SWAPPED:
                self._tables.close(sequence)
                sequence.status, sequence.computed_len = Status.WAITING, 0
        returned = [self._population[sequence_id] for sequence_id in self._tables.uncached_from]
        for sequence in [*reversed(returned), *(row.sequence for row in reversed(step.rows))]:
            if sequence.status is Status.RUNNING:
                start_over(together(sequence), self._population, self._tables)

    # --- the two halves of a step ---

    def _budget(self) -> int:
        """Of the next step: that of prompts, unless somebody waits for the next token of an answer."""
        prefill_tokens = self.config.prefill_tokens
        if not prefill_tokens or any(sequence.output_len for sequence in self._running):
            return self.config.budget_tokens
        return prefill_tokens

    def _serve_running(self, draft: Draft, now: float) -> None:
        block_size, refs = self.config.block_size, self._tables.pool.refs
        cap = self.config.long_prefill_tokens or draft.whole_budget
        running, add_row, chunk = self._running, draft.add_row, draft.chunk
        while draft.cursor < len(running) and draft.budget > 0:
            sequence = running[draft.cursor]
            if sequence.awaits and not self._tables.caught_up(sequence):
                draft.cursor += 1
                continue
            start, known, blocks = sequence.computed_len, len(sequence.tokens), sequence.blocks
            count = min(known - start, cap, draft.budget)
            if count > 1:
                count = chunk(start, count, block_size)
            if count > 0:
                end = start + count
                offset = start % block_size
                roomy = end <= len(blocks) * block_size and (offset == 0 or refs[blocks[start // block_size]] == 1)
                if not roomy and not self._grow(sequence, end, draft, now):
                    continue  # it left the list, so the cursor stands at the next one
                add_row(sequence, start, count, end == known)
            draft.cursor += 1

    def _grow(self, sequence: Sequence, end: int, draft: Draft, now: float) -> bool:
        """Finds blocks for positions up to `end`, if need be those of others. False if the sequence itself gave way."""
        tables = self._tables
        while tables.blocks_missing(sequence, end) > tables.pool.free_count:
            draft.out_of_memory = True
            victim = self.policy.victim(self._running)
            self._preemptions += preempt(victim, draft, self._population, tables)
            if victim is sequence and tables.blocks_for(end) > tables.pool.usable:
                self.finish(sequence, now)
                draft.impossible.append(sequence)
            if sequence.status is not Status.RUNNING:
                return False
        copy = tables.grow(sequence, end)
        if copy is not None:
            draft.add_copy(sequence, copy)
        return True

    def _serve_waiting(self, draft: Draft) -> None:
        cap = self.config.long_prefill_tokens or draft.whole_budget
        admitted: list[Sequence] = []
        looked_at: set[Group | None] = {None}
        seats_kept = 0
        coming = self._tables.hashes_to_come(draft.rows)
        for sequence in self.policy.order(self._waiting, self._tables.cached_len_of):
            if sequence.group in looked_at and sequence.group is not None:
                continue  # where the first of them stood
            looked_at.add(sequence.group)
            members = together(sequence)
            seats = sum(member.seats for member in members)
            if draft.budget == 0 or self._population.seats_taken + seats_kept + seats > self.config.max_seqs:
                break
            if sequence in draft.preempted:
                continue  # pushed out a moment ago: not back within the same step
            if coming and self._tables.next_hash(members[0]) in coming:
                seats_kept += seats
                continue  # what it needs next is being computed: it will share that instead of computing it again
            moves = self._tables.open(members, self.config.watermark_blocks if self._running else 0)
            if moves is None:
                break  # those behind it must not overtake: it would starve
            draft.moves += moves
            for member in members:
                self._population.run(member)
                admitted.append(member)
                start, known = member.computed_len, len(member.tokens)
                wanted = 0 if member.awaits else min(known - start, cap, draft.budget)
                count = draft.chunk(start, wanted, self.config.block_size) if wanted else 0
                if count > 0:
                    draft.add_row(member, start, count, start + count == known)
                    coming |= self._tables.hashes_to_come(draft.rows[-1:])
        self._population.leave_line(admitted)

    def _shed(self, now: float) -> tuple[Sequence, ...]:
        chosen = dict.fromkeys(member for each in self.policy.shed(self._waiting, now) for member in together(each))
        for sequence in chosen:
            if sequence.status not in (Status.WAITING, Status.SWAPPED):
                raise ValueError(f"sequence {sequence.sequence_id} does not wait, so it cannot be shed")
            self.finish(sequence, now)
        return tuple(chosen)

    def _check_new(self, sequence: Sequence) -> None:
        if self._population.knows(sequence.sequence_id) or sequence.status is not Status.WAITING or sequence.blocks:
            raise ValueError(f"sequence {sequence.sequence_id} is not new: its id is in use, or it ran before")

    # --- looking in ---

    @property
    def running(self) -> SequenceOf[Sequence]:
        """In the order in which they are served; to read."""
        return self._running

    def stats(self) -> SchedulerStats:
        return SchedulerStats.of(self._population, self._tables, self._preemptions)

    def check_invariants(self) -> None:
        """Asserts all that must hold between calls. For tests and debugging: it walks over everything."""
        self._tables.check(self._running, self._waiting)
        self._population.check(self.config.max_seqs)
