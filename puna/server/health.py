"""`/health`: 200 while the engine can answer, 503 when it is gone or hangs, and the figures either way.

The truth comes from `EngineClient.health`; this only gives it a shape.
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
        "engine": _figures(health),
    }
    if not health.alive:
        body["reason"] = _reason(health)
    return json_response(body, 200 if health.alive else 503)


def _figures(health: EngineHealth) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "pid": health.pid,
        "live_requests": health.live_requests,
        "steps": health.steps,
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
        return f"the engine has been in one step for {health.stalled_s:.0f} s without moving"
    return "the engine's connection failed"
