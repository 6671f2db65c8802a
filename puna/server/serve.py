"""Runs the server: binds the port, starts the engine process, serves until a signal, leaves nothing behind.

The port is taken before the model is loaded, so a port in use is known at once, and listened to only when answers can
be given. While the engine's process starts, this one imports what listens and reads the model's vocabulary.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from puna.engine.config import EngineConfig
from puna.engine.supervisor import Supervisor
from puna.models.load import LoadedModel, load_model
from puna.models.names import resolve
from puna.server.options import ServeOptions
from puna.server.port import bind
from puna.server.tenants import Tenants
from puna.server.tracing import open_tracing

log = logging.getLogger("puna.server")


def run(config: EngineConfig, options: ServeOptions, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. `announce` is told the lines that a person wants to see: memory, the address."""
    with bind(options.host, options.port) as bound:
        asyncio.run(_serve(config, options, bound, announce))


async def _serve(
    config: EngineConfig, options: ServeOptions, bound: socket.socket, announce: Callable[[str], None]
) -> None:
    tracing = open_tracing(options.otlp)
    tenants = Tenants(options.keys)
    starting = asyncio.create_task(Supervisor.start(config, hang_s=options.hang_s))
    try:
        await asyncio.sleep(0)  # its process is under way
        preparing = asyncio.create_task(asyncio.to_thread(_prepare, config.model))
        await asyncio.wait((starting, preparing))
        if starting.exception() is not None:
            preparing.exception()  # the engine's tells more
        client, model = starting.result(), preparing.result()

        from puna.server import listening

        state = await asyncio.to_thread(listening.open_state, options.state, announce)
        serving = await listening.make_serving(client, options, state, tenants, model)
        for line in client.info.memory:
            announce(f"  {line.name:16} {line.size:>10}  {line.note}")
        await listening.listen(serving, options, bound, announce, tracing)
    finally:
        if starting.done() and not starting.cancelled() and starting.exception() is None:
            await starting.result().close()
            log.info("the server has ended")
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


def _prepare(model: str) -> LoadedModel:
    import puna.server.listening  # noqa: F401

    return load_model(resolve(model))
