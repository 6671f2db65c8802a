"""What a server is asked in a load test, and when: sessions of one turn or more, drawn from a seed.

A closed loop has clients that take one session after the other; in an open one each session has the moment when it is
due. Prompts are lists of numbers that stand for token ids, or for words where text is sent. Knows no server.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from puna.errors import InputError
from puna.workloads.traces import Arrival, read_trace

UNITS = 192  # different numbers in prompts
MOST_TOKENS = 1 << 20


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of `clients`, `rate` (sessions a second) and `trace` says when. Lengths are in tokens.

    `spread`: sigma of log-normal lengths around `input_len` and `output_len`; 0: all alike. `shared_len` tokens at the
    beginning are those of one of `groups`. A session has `turns`, each `think_s` after the answer before.
    `length_scale`: of a trace's lengths; `speed`: of its clock. `max_len`: what a prompt and its answer may have;
    longer ones are cut. `skip_first`: the first session of each client does not count.
    """

    clients: int | None = None
    rate: float | None = None
    trace: Path | None = None
    sessions: int | None = 64
    input_len: int = 128
    output_len: int = 128
    spread: float = 0.0
    shared_len: int = 0
    groups: int = 1
    turns: int = 1
    think_s: float = 0.0
    speed: float = 1.0
    length_scale: float = 1.0
    max_len: int | None = None
    skip_first: bool = False
    endpoint: Literal["completions", "chat"] = "completions"
    temperature: float = 0.0
    ignore_eos: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.clients, self.rate, self.trace)) != 1:
            raise InputError("a load has exactly one of clients, rate and trace", param="clients")
        if self.turns > 1 and self.endpoint != "chat":
            raise InputError("turns are those of a chat; take endpoint chat", param="turns")
        if self.skip_first and self.clients is None:
            raise InputError("only a closed loop has clients whose first session can be left out", param="skip_first")
        if self.sessions is None and self.trace is None:
            raise InputError("without a trace the number of sessions has to be given", param="sessions")
        for name in ("clients", "sessions", "groups", "turns", "input_len", "output_len", "max_len"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST_TOKENS:
                raise InputError(f"{name} is {value}; it takes a whole number from 1 to {MOST_TOKENS}", param=name)
        if not 0 <= self.shared_len <= MOST_TOKENS:
            raise InputError(f"shared_len is {self.shared_len}; it takes 0 to {MOST_TOKENS}", param="shared_len")
        for name in ("rate", "speed", "length_scale"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise InputError(f"{name} is {value}; it is above 0", param=name)
        if self.spread < 0 or self.think_s < 0:
            raise InputError("spread and think_s are 0 or more", param="spread" if self.spread < 0 else "think_s")


@dataclass(frozen=True)
class Turn:
    units: list[int]  # what is new in the prompt
    output_len: int


@dataclass(frozen=True)
class Session:
    """`due_s` after the start, None in a closed loop. `shared`: what the prompt of every turn begins with."""

    number: int
    due_s: float | None
    shared: list[int]
    turns: list[Turn]
    was_cut: bool = False


def sessions(load: Load) -> list[Session]:
    """All of a load, in the order in which they begin. The same load is always the same."""
    dice = random.Random(f"{load.seed}/{load.input_len}/{load.output_len}/{load.shared_len}")
    groups = [_units(dice, load.shared_len) for _ in range(load.groups)]
    if load.trace is not None:
        arrivals = read_trace(load.trace, load.sessions, load.seed)
        return [_traced(load, number, arrival, dice) for number, arrival in enumerate(arrivals)]
    assert load.sessions is not None
    due, made = 0.0, []
    for number in range(load.sessions):
        shared = groups[dice.randrange(load.groups)]
        turns = [_turn(load, dice, len(shared)) for _ in range(load.turns)]
        made.append(Session(number, None if load.rate is None else due, shared, turns))
        due += 0.0 if load.rate is None else dice.expovariate(load.rate)
    return made


def _turn(load: Load, dice: random.Random, before: int) -> Turn:
    prompt, output = (_drawn(dice, length, load.spread) for length in (load.input_len, load.output_len))
    prompt, output, _ = _fitted(load, prompt, output, before)
    return Turn(_units(dice, prompt), output)


def _drawn(dice: random.Random, length: int, spread: float) -> int:
    return max(1, round(length * math.exp(dice.gauss(0, spread)))) if spread else length


def _traced(load: Load, number: int, arrival: Arrival, dice: random.Random) -> Session:
    scale = load.length_scale
    prompt = load.input_len if arrival.prompt_len is None else max(1, round(scale * arrival.prompt_len))
    output = load.output_len if arrival.output_len is None else max(1, round(scale * arrival.output_len))
    prompt, output, was_cut = _fitted(load, prompt, output, 0)
    block_len = max(1, round(scale * arrival.block_len))
    units: list[int] = []
    for block in arrival.blocks[: -(-prompt // block_len)]:
        units += _units(random.Random(f"{load.seed}/block/{block}"), block_len)
    units = units[:prompt] + _units(dice, prompt - len(units))
    return Session(number, arrival.at_s / load.speed, [], [Turn(units, output)], was_cut)


def _fitted(load: Load, prompt: int, output: int, before: int) -> tuple[int, int, bool]:
    """Lengths that fit, the answer's half of the room at least."""
    if load.max_len is None or before + prompt + output <= load.max_len:
        return prompt, output, False
    room = max(2, load.max_len - before)
    prompt = min(prompt, max(room - output, room // 2))
    return prompt, min(output, room - prompt), True


def _units(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(UNITS) for _ in range(max(0, count))]
