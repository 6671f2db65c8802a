"""The listening half of a server: its application on a bound socket, until it has drained.

On SIGINT or SIGTERM it goes on listening, refuses new work, and gives running answers `drain_s` seconds; what still
runs then ends with an error event. A second signal does not wait. SIGHUP reads the keys again. Importing this takes
as long as starting an engine's process: serve.py does both at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

import puna
from puna.engine.prompts import chat_template
from puna.engine.supervisor import Supervisor
from puna.models.calls.formats import call_format, reasoning_marks
from puna.models.load import LoadedModel, load_model
from puna.server.account import Account
from puna.server.app import make_app
from puna.server.batch_work import BatchWork
from puna.server.connections import allow_descriptors, bounded_connection
from puna.server.database import StateError
from puna.server.dialect import DIALECTS
from puna.server.draining import Draining
from puna.server.errors import MAX_HEAD_BYTES
from puna.server.loopback import LoopbackAnswer, ask
from puna.server.options import ServeOptions
from puna.server.port import url_of
from puna.server.serving import Serving
from puna.server.state import State
from puna.server.tenants import Tenants
from puna.server.tracing import Tracing
from puna.server.turn import Speech

log = logging.getLogger("puna.server")
CLOSE_S = 3  # after draining: for the error events to be written
CLOSE_URGENT_S = 1  # after a second signal


class _Server(uvicorn.Server):
    """Ends as `draining` says: signals begin that, the sockets are closed when it is over."""

    def __init__(
        self,
        config: uvicorn.Config,
        draining: Draining,
        on_ready: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._draining = draining
        self._on_ready = on_ready
        self._on_drained = on_drained

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._draining.begin()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._draining.is_over

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("ending: nothing is asked any more, or its time is up")
        self.config.timeout_graceful_shutdown = CLOSE_URGENT_S if self._draining.is_urgent else CLOSE_S
        self._on_drained()
        await super().shutdown(sockets)


async def make_serving(
    client: Supervisor,
    options: ServeOptions,
    state: State | StateError | None = None,
    tenants: Tenants | None = None,
    model: LoadedModel | None = None,
) -> Serving:
    """What endpoints need of a running engine and its model, which may have been loaded before."""
    info = client.info
    if model is None:
        model = await asyncio.to_thread(load_model, info.model_path)
    return Serving(
        names=options.names,
        tokenizer=model.tokenizer,
        speech=speech_of(model, options),
        client=client,
        context_tokens=info.max_model_len,
        fingerprint=info.fingerprint,
        tenants=tenants or Tenants(options.keys),
        draining=Draining(options.drain_s),
        max_body_bytes=options.max_body_bytes,
        dialect=DIALECTS[options.dialect],
        strict=options.strict,
        metrics_names=options.metrics_names,
        store_bytes=options.store_bytes,
        state=state,
    )


def speech_of(model: LoadedModel, options: ServeOptions) -> Speech:
    """How the model speaks, as its template tells or as `options` say."""
    template = chat_template(model)
    return Speech(
        template,
        call_format(template, options.tool_format),
        reasoning_marks(template, options.reasoning_format),
    )


def open_state(folder: Path | None, announce: Callable[[str], None]) -> State | StateError | None:
    """A server without its folder still answers: what needs it says why it cannot."""
    if folder is None:
        return None
    try:
        return State(folder)
    except StateError as error:
        announce(f"  no files and batches, and stored responses end with the server: {error}")
        return error


async def listen(
    serving: Serving,
    options: ServeOptions,
    bound: socket.socket,
    announce: Callable[[str], None],
    tracing: Tracing | None,
) -> None:
    url = url_of(bound)
    app = make_app(serving, options.cors_origins)
    config = uvicorn.Config(
        Account(app, serving, log_prompts=options.log_prompts, tracing=tracing),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http=bounded_connection(allow_descriptors(options.max_connections), serving.dialect.error),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws="none",
    )
    if isinstance(serving.state, State):
        start_batches(serving, app, serving.state)
    closing: list[asyncio.Task[None]] = []

    def on_ready() -> None:
        announce(f"Puna serves {serving.name} at {url}")
        facts = {"model": serving.name, "url": url, "engine_pid": serving.client.info.pid, "version": puna.__version__}
        log.info("ready", extra={"fields": facts})

    def on_drained() -> None:
        closing.append(asyncio.ensure_future(serving.client.close()))
        serving.tokenizer.close()  # not in a thread: those that wait for it may have all of them

    server = _Server(config, serving.draining, on_ready=on_ready, on_drained=on_drained)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # while the last things are put away
    if not sys.stdin.isatty():  # else it says that the terminal was closed, which ends the server
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, serving.tenants.try_reload)
    watching = asyncio.create_task(serving.tenants.watch())
    try:
        await server.serve([bound])
        await asyncio.gather(*closing)
    finally:
        watching.cancel()
        if serving.batches is not None:
            await serving.batches.close()
        if isinstance(serving.state, State):
            serving.state.close()


def start_batches(serving: Serving, app: ASGIApp, state: State) -> None:
    """Half of the running places are for batches, so that who waits for an answer finds one free."""

    async def ask_here(path: str, body: bytes, tenant: str) -> LoopbackAnswer:
        return await ask(app, path, body, serving, tenant)

    at_once = max(1, serving.client.info.config.max_seqs // 2)
    serving.batches = BatchWork(state, ask_here, at_once)
    serving.batches.start()
