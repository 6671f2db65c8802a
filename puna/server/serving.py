"""What every endpoint needs to know: the served model, its tokenizer and way to speak, its engine, who may come in.

It decides which model a request may name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request

from puna.server.database import StateError
from puna.server.errors import RequestError
from puna.server.state import State
from puna.server.tenants import tenant_of

if TYPE_CHECKING:
    from puna.engine.supervisor import Supervisor
    from puna.models.tokenizer import Tokenizer
    from puna.server.batch_work import BatchWork
    from puna.server.dialect import Dialect
    from puna.server.draining import Draining
    from puna.server.tenants import Tenants
    from puna.server.turn import Speech

MAX_PRIORITY = 2**31 - 1


@dataclass(eq=False)
class Serving:
    """One served model. `names`: what clients may call it; the first is how answers call it. `strict`: refuse names in
    a request that are not known, instead of leaving them out and saying so. `store_bytes`: for stored responses.
    `state`: what is kept across restarts, or why nothing is."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    speech: Speech
    client: Supervisor
    context_tokens: int
    fingerprint: str
    tenants: Tenants
    draining: Draining
    max_body_bytes: int
    dialect: Dialect
    strict: bool
    store_bytes: int
    metrics_names: Literal["puna", "vllm"] = "puna"
    state: State | StateError | None = None
    max_file_bytes: int = 1 << 30
    batches: BatchWork | None = None  # set once there is an application to ask
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    def owner(self, request: Request) -> str:
        """The tenant that asks, whose stored responses, files and batches are its own."""
        return tenant_of(request).name

    def need_state(self) -> State:
        """RequestError (503) where this server keeps nothing."""
        if isinstance(self.state, State):
            return self.state
        reason = str(self.state) if self.state else "this server was started without a folder for them"
        raise RequestError(f"there are no files and batches here: {reason}", status=503, code="no_state")

    def check_model(self, name: str | None) -> None:
        """RequestError (404) where `name` is not a model of this server. None means the one that is served."""
        if name is not None and name not in self.names:
            raise RequestError(
                f"the model {name[:200]!r} is not served here; served: {', '.join(self.names)}",
                status=404,
                code="model_not_found",
                param="model",
            )

    def check_priority(self, priority: int | None) -> None:
        """RequestError where a priority would be ignored, or is no number that the engine can hold."""
        if priority and self.client.info.config.policy != "priority":
            raise RequestError(
                "priority is of no use here: this server runs first come, first served; leave it out, or start the "
                "server with --policy priority",
                param="priority",
                code="unsupported_parameter",
            )
        if priority and abs(priority) > MAX_PRIORITY:
            raise RequestError(
                f"priority is {str(priority)[:40]}; allowed: {-MAX_PRIORITY} to {MAX_PRIORITY}", param="priority"
            )
