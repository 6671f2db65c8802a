"""`/health`: 200 while work moves, 503 when it does not; `/ready`: 200 where another request would be taken.

Both have the figures or the reason. The truth comes from the engine's supervisor; this only gives it a shape.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from puna.engine.client import EngineHealth
from puna.server.delivery import json_response
from puna.server.serving import Serving


def health_response(serving: Serving) -> Response:
    health = serving.client.health()
    body = {
        "status": "ok" if health.alive else "unhealthy",
        "model": serving.name,
        "fingerprint": serving.fingerprint,
        "engine": _figures(health, serving.client.restarts),
    }
    if not health.alive:
        body["reason"] = _reason(health)
    return json_response(body, 200 if health.alive else 503)


def ready_response(serving: Serving) -> Response:
    """503 while the server drains, while there is no engine, or its queue is full."""
    if serving.draining.is_on:
        said = f"the server is going down; what runs has {serving.draining.left_s:.0f} s"
        return json_response({"status": "draining", "reason": said}, 503, {"Retry-After": "1"})
    reason = _why_not(serving)
    if reason is None:
        return json_response({"status": "ready"})
    return json_response({"status": "not ready", "reason": reason}, 503, {"Retry-After": "1"})


def _why_not(serving: Serving) -> str | None:
    client = serving.client
    if client.state != "running":
        return f"the engine is not there ({client.state})"
    if not client.health().alive:
        return "the engine does not move"
    stats, limit = client.stats, client.info.config.max_waiting_seqs
    if stats is not None and stats.scheduler.waiting >= limit:
        return f"{stats.scheduler.waiting} sequences wait, the queue takes {limit}"
    return None


def _figures(health: EngineHealth, restarts: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "pid": health.pid,
        "live_requests": health.live_requests,
        "steps": health.steps,
        "restarts": restarts,
        "in_step": health.in_step,
        "last_step_age_s": round(health.last_step_age_s, 3),
        "blocks_used": 0,
    }
    if health.stats is not None:
        figures |= health.stats.counters
        figures |= msgspec.to_builtins(health.stats.scheduler)
        figures["live_requests"] = max(health.live_requests, health.stats.live_requests)
    return figures


def _reason(health: EngineHealth) -> str:
    if health.exit_code is not None:
        return f"the engine process ended with exit code {health.exit_code}"
    if health.stalled_s:
        return f"work has not moved for {health.stalled_s:.1f} s"
    return "the engine's connection failed"
