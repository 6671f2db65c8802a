"""A server at saturation for an hour, while clients come and go: nothing may fail, grow or be lost.

    python benchmarks/soak.py --model FILE.gguf --minutes 60 --page

Starts `puna serve`, sets clients on it (soak_clients.py; of ten one leaves in the middle of answers, one sends garbage,
soak_garbage.py), and looks at both processes every few seconds. At the end every client leaves, and it is judged: no
failure of a client that behaves, no 5xx, no engine replaced, no block in use, memory flat, marked answers always the
same. Writes JSON and a plot, prints a table, fills the page of results; exits with 1 where any of that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from marked_page import fill
from soak_clients import MARKED, Clients, Tally, marked
from soak_garbage import NO_ANSWER, Garbage
from soak_page import BEGIN, END, page, plot
from soak_server import SoakServer

from puna.bench.machine import MachineWatch

HERE = Path(__file__).resolve().parent
EVERY_S = 5.0
SHORT_S = 600.0
LEAVE_S = 900.0  # for answers that still run when it is over


def main() -> int:
    options = _options()
    if options.source is None:
        result = asyncio.run(soak(options))
        options.json.write_text(json.dumps(result) + "\n")
    else:
        result = json.loads(options.source.read_text())
    text = page(result)
    print(text)
    if options.plot:
        plot(result, options.plot)
    if options.page:
        fill(options.page, BEGIN, END, text)
    return 0 if all(each["kept"] for each in result["verdicts"]) else 1


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    watch, tally = MachineWatch(), Tally()
    server = SoakServer.start(options.model, options.json.with_suffix(".log"), options.kv_gib, options.max_seqs)
    try:
        clients = Clients(server.url, server.keys, tally)
        async with clients.opened(0) as first:  # what marked questions are answered while nobody else asks
            for mark in range(len(MARKED)):
                await clients.ask(first, marked(mark, stream=mark % 2 == 0))
        samples, begun = list[dict[str, float]](), time.monotonic()
        running = [asyncio.create_task(clients.leave(i)) for i in range(options.leaving)]
        garbage = [asyncio.create_task(_garbage(clients, i)) for i in range(options.garbage)]
        behaving = options.clients - options.leaving - options.garbage
        running += [asyncio.create_task(clients.behave(i)) for i in range(behaving)]
        while (at_s := time.monotonic() - begun) < 60 * options.minutes:
            samples.append({"at_s": round(at_s, 1), **await asyncio.to_thread(server.look), **_outcomes(tally)})
            if broken := [task for task in (*running, *garbage) if task.done()]:
                broken[0].result()
            await asyncio.sleep(min(EVERY_S, 10 * options.minutes))
        clients.over.set()
        for task in garbage:
            task.cancel()
        await asyncio.gather(*garbage, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(*running), LEAVE_S)
        end = await asyncio.to_thread(server.wait_until_idle)
        async with clients.opened(0) as last:
            for mark in range(len(MARKED)):
                await clients.ask(last, marked(mark, stream=mark % 2 == 1))
        end |= await asyncio.to_thread(server.wait_until_idle)
        end["exit_code"] = await asyncio.to_thread(server.stop)
    finally:
        server.kill()
    return {
        "model": options.model.name,
        "clients": options.clients,
        "leaving": options.leaving,
        "garbage": options.garbage,
        "beside": options.beside,
        "minutes": options.minutes,
        "marked": tally.marked,
        "outcomes": dict(tally.outcomes),
        "failures": tally.failures,
        "end": end,
        "machine": msgspec.to_builtins(watch.report()),
        "samples": samples,
        "verdicts": judge(samples, tally, end),
    }


async def _garbage(clients: Clients, number: int) -> None:
    chance = random.Random(2000 + number)
    client = Garbage(clients.host, clients.port, clients.keys[0], chance)
    while not clients.over.is_set():
        kind, status = await client.attempt()
        clients.tally.outcomes["garbage"] += 1
        if status >= 500 or status == NO_ANSWER:
            clients.tally.fail(f"garbage {kind} was answered with {status}")
        await asyncio.sleep(chance.random() / 2)


def _outcomes(tally: Tally) -> dict[str, float]:
    return {
        name: float(tally.outcomes[name]) for name in ("answered", "left", "garbage", "at its limit (429)", "failed")
    }


def judge(samples: list[dict[str, float]], tally: Tally, end: dict[str, float]) -> list[dict[str, Any]]:
    """Each promise, what was found, and whether it was kept. Memory counts from the end of the first third on: caches
    fill up before that."""
    later = samples[len(samples) // 3 :]
    descriptors = max(s["http_files"] for s in samples[:3] or samples), end["http_files"]

    return [
        verdict(
            "no request of a client that behaves fails, no garbage is a 5xx",
            f"{tally.outcomes['failed']:,} failed",
            not tally.failures,
        ),
        verdict(
            "marked greedy answers are the same every time",
            f"{tally.marked:,} answers to {len(MARKED)} questions",
            tally.marked > len(MARKED),
        ),
        *(_memory_verdict(name, later) for name in ("http", "engine")),
        verdict("no block is in use when all have left", f"{end['blocks_used']:.0f}", end["blocks_used"] == 0),
        verdict(
            "no request is alive, no tenant has one running",
            f"{end['live']:.0f}, {end['tenants_running']:.0f}",
            not end["live"] and not end["tenants_running"],
        ),
        verdict(
            "connections are closed: open files at the end", f"{descriptors[1]:.0f}", descriptors[1] <= descriptors[0]
        ),
        verdict("no engine was replaced", f"{end['restarts']:.0f}", end["restarts"] == 0),
        verdict("SIGTERM ends the server with 0", f"{end['exit_code']}", end["exit_code"] == 0),
    ]


def verdict(promise: str, found: str, kept: bool) -> dict[str, Any]:
    return {"promise": promise, "found": found, "kept": kept}


def _memory_verdict(process: str, later: list[dict[str, float]]) -> dict[str, Any]:
    """A run of a few minutes cannot tell growth from filling up."""
    name = f"{process}_private_mb"
    growth_mb, bound_mb = slope(later, name), max(8.0, 0.02 * later[0][name])
    is_short = later[-1]["at_s"] - later[0]["at_s"] < SHORT_S
    return verdict(
        f"private memory of the {process} process grows by less than {bound_mb:.0f} MB an hour",
        "too short to tell" if is_short else f"{growth_mb:+.1f} MB an hour",
        is_short or growth_mb < bound_mb,
    )


def slope(samples: list[dict[str, float]], name: str) -> float:
    """Least squares: what is added an hour."""
    import numpy as np

    if len(samples) < 2:
        return 0.0
    hours = np.array([sample["at_s"] for sample in samples]) / 3600
    return float(np.polyfit(hours, [sample[name] for sample in samples], 1)[0])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("smollm2"), help="a file, or a model's name")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--leaving", type=int, default=5, help="of the clients: leave in the middle of answers")
    parser.add_argument("--garbage", type=int, default=5, help="of the clients: send garbage")
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the page")
    parser.add_argument("--max-seqs", type=int, default=32, help="the server's: fewer than clients, so that they wait")
    parser.add_argument("--kv-gib", type=float, default=0.12, help="the server's: so little that sequences give way")
    parser.add_argument("--json", type=Path, default=Path("soak.json"), help="the result; the server's log beside it")
    parser.add_argument("--source", type=Path, help="a result of before, to make the page and the plot again")
    parser.add_argument("--plot", type=Path, nargs="?", const=HERE.parent / "docs" / "soak.svg", help="PNG or SVG")
    parser.add_argument("--page", type=Path, nargs="?", const=HERE.parent / "docs" / "performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
