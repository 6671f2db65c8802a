"""The native core as `csrc/binding.cpp` offers it. Arrays are C-contiguous and of exactly these dtypes."""

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import F32, I32, U32, U64, SampleRows

def paths() -> list[str]: ...
def read_bytes_per_second(path: str, threads: int, bytes: int, seconds: float) -> float: ...
def operations_per_second(path: str, threads: int, kind: str, seconds: float) -> float: ...
def barrier_seconds(threads: int, seconds: float) -> float: ...
def dispatch_seconds(threads: int, seconds: float) -> float: ...

class Core:
    def __init__(self, path: str, threads: int, cores: int, pin: bool, /) -> None: ...
    def add_weight(
        self, type: str, raw: npt.NDArray[np.uint8], rows: int, width: int, matrix: bool, integer: bool, /
    ) -> int: ...
    def bind(
        self,
        widths: list[int],
        body: list[tuple[int, list[int], list[float]]],
        head: list[tuple[int, list[int], list[float]]],
        layers: list[tuple[int, int]],
        hidden: int,
        logits: int,
        num_blocks: int,
        tier_blocks: int,
        block_size: int,
        cache: str,
        tiles: bool,
        touched_ahead: int,
        /,
    ) -> None: ...
    def step(
        self,
        token_ids: I32,
        positions: I32,
        query_start: I32,
        tables: I32,
        moves: I32,
        index: I32,
        target: I32,
        num_logprobs: I32,
        temperature: F32,
        top_k: I32,
        top_p: F32,
        min_p: F32,
        repetition: F32,
        frequency: F32,
        presence: F32,
        seed: U64,
        position: I32,
        history: I32,
        history_row: I32,
        prompt_len: I32,
        total_len: I32,
        allowed_start: I32,
        allowed_ids: I32,
        banned_start: I32,
        banned_ids: I32,
        bias_start: I32,
        bias_ids: I32,
        bias_values: F32,
        mask: U32,
        ready: U32,
        tokens: I32,
        logprob: F32,
        rank: I32,
        top_ids: I32,
        top_logprobs: F32,
        logits: F32,
        /,
    ) -> int: ...
    def step_again(self) -> int: ...
    def set_progress(self, shared: U64, /) -> None: ...
    def progress(self) -> int: ...
    def path(self) -> str: ...
    def threads(self) -> int: ...
    def engaged_threads(self) -> int: ...
    def packed_bytes(self) -> int: ...
    def experts_scratch_bytes(self) -> int: ...
    def profile(self, on: bool) -> None: ...
    def profile_times(self) -> list[tuple[str, int, int, int, int]]: ...
    def break_batch_invariance(self, broken: bool, /) -> None: ...

class Sampler:
    def __init__(self, path: str, threads: int) -> None: ...
    def sample(
        self, logits: F32, rows: SampleRows, tokens: I32, logprob: F32, rank: I32, top_ids: I32, top_logprobs: F32, /
    ) -> None: ...
