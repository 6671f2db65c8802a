"""What only an administrative key opens: what tenants have used, and reading the keys again."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from puna.server.delivery import json_response
from puna.server.limits import Limits
from puna.server.serving import Serving


class TenantUse(msgspec.Struct, frozen=True):
    """Counted since the server was started."""

    tenant: str
    running: int
    requests: int
    tokens: int
    refused: int
    limits: Limits


class TenantList(msgspec.Struct, frozen=True):
    data: list[TenantUse]
    object: str = "list"


class Reloaded(msgspec.Struct, frozen=True):
    keys: int


def admin_routes(serving: Serving) -> APIRouter:
    routes = APIRouter(prefix="/admin")

    @routes.get("/tenants")
    async def tenants() -> Response:
        return json_response(
            TenantList(
                [TenantUse(t.name, t.running, t.requests, t.tokens, t.refused, t.limits) for t in serving.tenants.all()]
            )
        )

    @routes.post("/reload")
    async def reload() -> Response:
        return json_response(Reloaded(serving.tenants.reload()))

    return routes
