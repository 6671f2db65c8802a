"""What a simulation is asked, and what it says of each request. Plain values; knows neither scheduler nor time model.

A prompt's tokens matter only where prompts begin alike: then they find each other in the prefix cache, as in the
engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from puna.workloads.traces import Arrival

_WRAP = (1 << 31) - 1  # token ids are 32-bit


@dataclass(frozen=True)
class SimulatedRequest:
    """`samples` answers of exactly `output_len` tokens each, to one prompt of `shared` and `own_len` further tokens.

    `number` is one's own; requests with equal `shared` begin alike. `at_s`: when it arrives.
    """

    number: int
    at_s: float
    own_len: int
    output_len: int
    samples: int = 1
    shared: tuple[int, ...] = ()
    tenant: str = ""
    priority: int = 0

    @property
    def prompt_len(self) -> int:
        return len(self.shared) + self.own_len

    def prompt(self) -> array[int]:
        """Of tokens that no other request has, behind those it shares."""
        return array("i", self.shared) + array("i", [_own_token(self.number)]) * self.own_len

    def drawn(self, sample: int, position: int) -> int:
        """The token that sample `sample` draws at `position`: different of every sample of every request."""
        return (_own_token(self.number) + 7919 * (sample + 1) + position) % _WRAP


@dataclass
class Outcome:
    """What became of a request; times are seconds of the virtual clock. `done_s` is None where it was refused or given
    up, and `refused` says why."""

    request: SimulatedRequest
    first_s: float | None = None
    done_s: float | None = None
    preemptions: int = 0
    cached_len: int = 0
    refused: str | None = None

    @property
    def wait_s(self) -> float:
        """To the first token. Only of one that has any."""
        assert self.first_s is not None
        return self.first_s - self.request.at_s

    @property
    def whole_s(self) -> float:
        assert self.done_s is not None
        return self.done_s - self.request.at_s

    @property
    def normalised_s(self) -> float:
        """Latency over tokens of an answer (PagedAttention, section 6.1)."""
        return self.whole_s / self.request.output_len


def requests_of(
    arrivals: Iterable[Arrival],
    *,
    prompt_len: int = 128,
    output_len: int = 128,
    length_scale: float = 1.0,
    speed: float = 1.0,
    max_len: int | None = None,
    priorities: dict[str, int] | None = None,
) -> list[SimulatedRequest]:
    """A trace as requests. `prompt_len` and `output_len` stand in where it has no lengths; `length_scale` multiplies
    those it has, `speed` its clock. Prompt and answer that together pass `max_len` are cut, the answer first, to half
    of it at the least. `priorities`: by client, lower first, 0 for all others."""
    made = []
    for number, arrival in enumerate(arrivals):
        prompt = prompt_len if arrival.prompt_len is None else max(1, round(length_scale * arrival.prompt_len))
        output = output_len if arrival.output_len is None else max(1, round(length_scale * arrival.output_len))
        if max_len is not None and prompt + output > max_len:
            prompt = min(prompt, max(max_len - output, max_len // 2))
            output = max_len - prompt
        block_len = max(1, round(length_scale * arrival.block_len))
        shared = [_shared_token(block) for block in arrival.blocks for _ in range(block_len)][:prompt]
        made.append(
            SimulatedRequest(
                number=number,
                at_s=arrival.at_s / speed,
                own_len=prompt - len(shared),
                output_len=output,
                shared=tuple(shared),
                tenant=arrival.client,
                priority=(priorities or {}).get(arrival.client, 0),
            )
        )
    return made


def _own_token(number: int) -> int:
    return (number * 2654435761 + 12345) % _WRAP


def _shared_token(block: int) -> int:
    return (block * 40503 + 77) % _WRAP
