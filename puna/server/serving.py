"""What every endpoint needs to know: the served model, its tokenizer and template, its engine, the limits at the door.

It decides who may come in and which model they may name.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request

from puna.server.errors import RequestError

if TYPE_CHECKING:
    from puna.engine.supervisor import Supervisor
    from puna.models.template import ChatTemplate
    from puna.models.tokenizer import Tokenizer
    from puna.server.dialect import Dialect

MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True)
class Serving:
    """One served model. `names`: what clients may call it; the first is how answers call it. `strict`: refuse names in
    a request that are not known, instead of leaving them out and saying so. `store_bytes`: for stored responses."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    template: ChatTemplate | None
    client: Supervisor
    context_tokens: int
    fingerprint: str
    api_key: str | None
    max_body_bytes: int
    dialect: Dialect
    strict: bool
    store_bytes: int
    metrics_names: Literal["puna", "vllm"] = "puna"
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    def check_key(self, request: Request) -> None:
        """RequestError (401) unless the request carries the key, where one is set."""
        if self.api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.strip().encode(), self.api_key.encode()):
            raise RequestError(
                "a valid API key is needed; send the header 'authorization: Bearer <key>' or 'x-api-key: <key>'",
                status=401,
                code="invalid_api_key",
            )

    def owner(self, request: Request) -> str:
        """Whose a stored response is; checks the key."""
        self.check_key(request)
        return ""

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
