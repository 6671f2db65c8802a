"""`puna top`: a running server at a glance, from its `/metrics`: its queue, its pace, its memory.

Parses, reads again and again, and shows; what the figures mean is in puna/server/scrape.py. On a terminal the view
lives until Ctrl-C; on a pipe, or with --once, it is one frame.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli.plain import plain
from puna.errors import EngineError

if TYPE_CHECKING:
    from rich.table import Table

    from puna.server.scrape import Percentiles, Reading, Vitals

WINDOW_S = 60.0
BAR = 30


def top(
    url: Annotated[str, typer.Argument(help="The server, as http://HOST:PORT.")] = "http://127.0.0.1:8000",
    once: Annotated[
        bool, typer.Option("--once", help="One frame: rates over the interval, all else since the start.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One frame for programs; implies --once.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=60, help="Seconds between readings.")] = 1.0,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="PUNA_API_KEY", help="The server's key.")] = None,
) -> None:
    """Watch a running server: queue, tokens a second, waiting times, memory."""
    from puna.server.scrape import metrics_url, read, vitals

    address = metrics_url(url)
    readings = deque([read(address, api_key)])
    if once or json or not sys.stdout.isatty():
        time.sleep(interval)
        readings.append(read(address, api_key))
        frame = vitals(list(readings), rate_s=0.0)
        if json:
            import msgspec

            print(msgspec.json.encode({"url": url, **msgspec.to_builtins(frame)}).decode())
        else:
            _print(frame, url)
        return
    _live(address, url, api_key, readings, interval)


def _live(address: str, url: str, api_key: str | None, readings: deque[Reading], interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from puna.server.scrape import read, vitals

    try:
        with Live(Text("looking ..."), auto_refresh=False, transient=True) as view:
            while True:
                time.sleep(interval)
                try:
                    readings.append(read(address, api_key))
                except EngineError as error:
                    view.update(Text(plain(str(error)), style="red"), refresh=True)
                    continue
                if readings[-1].values.get("steps_total", 0) < readings[-2].values.get("steps_total", 0):
                    readings = deque([readings[-1]])  # another server
                    continue
                _forget_old(readings)
                view.update(_table(vitals(list(readings), WINDOW_S), url), refresh=True)
    except KeyboardInterrupt:
        return  # that is how one leaves


def _forget_old(readings: deque[Reading]) -> None:
    """All but the newest that is as old as the window, and those after it."""
    while readings[-1].at_s - readings[1].at_s >= WINDOW_S:
        readings.popleft()


def _print(frame: Vitals, url: str) -> None:
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=100)).print(_table(frame, url))


def _table(frame: Vitals, url: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    over = "since the start" if frame.window_s is None else f"last {frame.window_s:.0f} s"
    state = "" if frame.engine_up in (None, True) else "  the engine is being started again"
    rows = {
        "server": f"{plain(url)}  {plain(frame.model)}{state}",
        "requests": f"{frame.running} running, {frame.waiting} waiting, {frame.answers_per_s:.1f} answers/s",
        "tokens/s": f"{frame.output_tokens_per_s:,.0f} out, {frame.prompt_tokens_per_s:,.0f} in",
        "first token": f"{_times(frame.first_token_s)}  ({over})",
        "between tokens": f"{_times(frame.token_gap_s)}  ({over})",
        "a step": _step(frame) + ("" if frame.step_s is None else f"  ({over})"),
        "KV memory": "unknown" if frame.kv_share is None else _bar(frame.kv_share),
        "prefix hits": "none asked" if frame.prefix_hit_share is None else f"{_bar(frame.prefix_hit_share)}  ({over})",
        "since the start": f"{frame.preemptions} preemptions"
        + ("" if frame.restarts is None else f", {frame.restarts} restarts of the engine"),
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _times(times: Percentiles | None) -> str:
    if times is None:
        return "nothing yet"
    return f"p50 {_seconds(times.p50)}  p90 {_seconds(times.p90)}  p99 {_seconds(times.p99)}"


def _step(frame: Vitals) -> str:
    if frame.step_s is None:
        return "none yet"
    return f"{_seconds(frame.step_s)}: " + ", ".join(
        f"{name} {share:.0%}" for name, share in frame.phase_shares.items()
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def _bar(share: float) -> str:
    full = round(BAR * min(1.0, max(0.0, share)))
    return f"{'█' * full}{'·' * (BAR - full)} {share:.0%}"
