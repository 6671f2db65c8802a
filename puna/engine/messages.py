"""What the engine's process and its clients say to each other, and how it lies on the wire.

A frame is a uint32 length, little-endian, and that many bytes of msgpack. To the engine go Start (first, once),
EngineRequest, Abort and Stop; from it come Ready or Failed (first, once), then one Stepped a step for all requests,
and Refused for a request that was turned away at the door. The same frames work over any stream socket.
"""

from __future__ import annotations

import struct
from typing import Literal, cast

import msgspec

from puna import errors
from puna.engine.config import EngineConfig
from puna.engine.params import EngineRequest, SampleUpdate
from puna.engine.stats import EngineStats
from puna.errors import InputError, OverloadedError, PunaError

MAX_FRAME_BYTES = 64 << 20
LENGTH = struct.Struct("<I")
STATS_S = 0.1  # seconds between the figures of an engine that is stepping

# The board: 4 int64 in memory that both processes see, for health.
BOARD_BYTES = 32
BOARD_OPERATORS = 0  # moves with every operator of the native backend
BOARD_STEPS = 1  # steps begun and steps ended: odd while one is running
BOARD_STEP_NS = 2  # monotonic clock when the last step began or ended


class Start(msgspec.Struct, frozen=True, tag=True):
    config: EngineConfig


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Ends a request, or one sample of it."""

    request_id: str
    index: int | None = None


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The engine process ends now; what is alive is dropped."""


class MemoryLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of the account of memory, ready to print."""

    name: str
    size: str
    note: str


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is, told once when it is ready. `config` has its open fields settled."""

    pid: int
    model_name: str
    model_path: str
    model_fingerprint: str
    fingerprint: str  # of everything that decides the bits of an answer
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    batch_invariant: bool
    config: EngineConfig
    memory: list[MemoryLine]


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


ErrorKind = Literal[
    "PunaError",
    "InputError",
    "ModelFileError",
    "ModelNotFoundError",
    "TemplateError",
    "MemoryBudgetError",
    "OverloadedError",
    "EngineError",
]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start: the one error to show."""

    kind: ErrorKind
    message: str
    param: str | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request was turned away at the door. `heard`: as in Stepped, the request itself included."""

    heard: int
    request_id: str
    kind: ErrorKind
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class Stepped(msgspec.Struct, frozen=True, tag=True):
    """What one step brought for all requests. `tokens[i]` is for the sample that stands at place i of the roster, as
    (request id, index); below 0 it has none, or an update. `roster` is None while it is the one that was sent last.
    `stats` come every STATS_S, when the engine has become idle, and after aborts. `heard`: how many messages after
    Start the engine had acted on before the step. A request that left and came back under its name is told by it from
    the one that left, whose last tokens may still be under way."""

    heard: int
    tokens: list[int]
    roster: tuple[tuple[str, int], ...] | None = None
    updates: list[SampleUpdate] = []
    stats: EngineStats | None = None


ToEngine = Start | EngineRequest | Abort | Stop
FromEngine = Ready | Failed | Refused | Stepped


def frame(message: ToEngine | FromEngine) -> bytes:
    """The bytes of one frame. InputError where the message is larger than a frame may be."""
    body = msgspec.msgpack.encode(message)
    check_length(len(body))
    return LENGTH.pack(len(body)) + body


def check_length(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise InputError(
            f"a message of {length} bytes is too large; the limit is {MAX_FRAME_BYTES}: shorten the prompt"
        )


def kind_of(error: PunaError) -> ErrorKind:
    """The class that the other side raises again."""
    for cls in type(error).__mro__:
        if getattr(errors, cls.__name__, None) is cls and issubclass(cls, PunaError):
            return cast(ErrorKind, cls.__name__)
    return "PunaError"


def as_error(message: Failed | Refused) -> PunaError:
    """The exception that the engine met."""
    cls: type[PunaError] = getattr(errors, message.kind)
    if issubclass(cls, InputError):
        return cls(message.message, param=message.param)
    if issubclass(cls, OverloadedError):
        retry_after_s = message.retry_after_s if isinstance(message, Refused) else None
        return OverloadedError(message.message, retry_after_s=retry_after_s or 1.0)
    return cls(message.message)
