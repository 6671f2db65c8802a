"""What clients that leave and clients that send garbage cost the rest: 32 clients, with and without them, in turns.

    python benchmarks/fair_share.py --model FILE.gguf --rounds 3 --page

A tenth leaves at random moments of its answers, a tenth sends garbage (soak_garbage.py), once with pauses, once as fast
as it can. Their share is that of as many clients that behave: each of the rest has to get what each of 32 that
behave gets, and nobody's request may fail. Every run has a new server and the same prompts as the others of its round.
Prints a table, fills the page of results; exits with 1 where the rest fail or get less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from fair_share_figures import Crowd, Window, figures
from fair_share_page import BEGIN, END, judge, page
from marked_page import fill
from soak_garbage import NO_ANSWER, WAIT_S, Garbage
from soak_server import SoakServer

from puna.bench.load import Load, Session, sessions
from puna.bench.load_run import WORDS
from puna.bench.machine import MachineWatch
from puna.bench.online import Server, find_server
from puna.bench.streaming import Answer, ask

CROWDS = (
    Crowd("32 behave", 32, 0, 0),
    Crowd("26 behave, 3 leave, 3 send garbage", 26, 3, 3, pause_s=0.25),
    Crowd("26 behave, 3 leave, 3 send garbage all the time", 26, 3, 3, wait_s=0.1),
    Crowd("26 behave, and nobody else", 26, 0, 0),
)
PLANNED = 4096  # more than any run asks
TIMEOUT_S = 120.0
KV_GIB, MAX_SEQS = 1.0, 32


def main() -> int:
    options = _options()
    if options.source is None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = measure(options)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    else:
        result = json.loads(options.source.read_text())
    text = page(result)
    print(text)
    if options.page:
        fill(options.page, BEGIN, END, text)
    return 0 if all(each["kept"] for each in judge(result)) else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    watch = MachineWatch()
    runs: dict[str, list[dict[str, Any]]] = {crowd.name: [] for crowd in CROWDS}
    for number in range(options.rounds):
        for crowd in CROWDS:
            server = SoakServer.start(options.model, options.json.with_suffix(".log"), KV_GIB, MAX_SEQS)
            try:
                runs[crowd.name].append(asyncio.run(_Run(server, crowd, options, seed=1 + number).run()))
                server.stop()  # so that its engine's time is known to be ours
            finally:
                server.kill()
    return {
        "model": options.model.name,
        "seconds": options.seconds,
        "machine": msgspec.to_builtins(watch.report()),
        "runs": runs,
    }


class _Run:
    """One crowd on one server: everybody begins, the window opens after `lead` seconds, the rest end their answers."""

    def __init__(self, server: SoakServer, crowd: Crowd, options: argparse.Namespace, seed: int) -> None:
        self._server, self._crowd, self._options, self._seed = server, crowd, options, seed
        self._target: Server = find_server(server.url, server.keys[0])
        self._over = asyncio.Event()
        self._answers: list[tuple[int, float, Session, Answer]] = []  # who, when it was asked, what, what came
        self._outcomes: Counter[str] = Counter()
        self._failures: list[str] = []

    async def run(self) -> dict[str, Any]:
        load = Load(
            clients=1, sessions=PLANNED, input_len=100, output_len=self._options.output_len, spread=0.5, seed=self._seed
        )
        planned = iter(sessions(load))
        await self._ask(-1, next(planned))  # warms up
        crowd = self._crowd
        workers = [self._behave(number, planned) for number in range(crowd.behaving)]
        others = [self._leave(number, planned) for number in range(crowd.leaving)]
        others += [self._send_garbage(number) for number in range(crowd.garbage)]
        tasks = [asyncio.create_task(worker) for worker in workers]
        beside = [asyncio.create_task(other) for other in others]
        await asyncio.sleep(self._options.lead)
        window = Window.open(await asyncio.to_thread(self._server.look), self._outcomes)
        await asyncio.sleep(self._options.seconds)
        window.close(await asyncio.to_thread(self._server.look), self._outcomes)
        self._over.set()
        for task in beside:
            task.cancel()
        await asyncio.gather(*tasks)
        await asyncio.gather(*beside, return_exceptions=True)
        return figures(crowd, window, self._answers, self._failures)

    async def _behave(self, number: int, planned: Iterator[Session]) -> None:
        while not self._over.is_set():
            answer = await self._ask(number, session := next(planned))
            wanted = session.turns[0].output_len
            if answer.error is not None:
                self._failures.append(f"{answer.error}: {answer.detail}")
            elif answer.output_tokens != wanted:
                self._failures.append(f"{answer.output_tokens} tokens instead of {wanted}")

    async def _leave(self, number: int, planned: Iterator[Session]) -> None:
        """Asks what the others ask, and is gone at a random moment of the time that an answer takes."""
        chance = random.Random(1000 * self._seed + number)
        while not self._over.is_set():
            try:
                async with asyncio.timeout(chance.uniform(0, self._options.leave)):
                    await self._ask(None, next(planned))
                self._outcomes["stayed"] += 1
            except TimeoutError:
                self._outcomes["left"] += 1

    async def _send_garbage(self, number: int) -> None:
        chance = random.Random(2000 * self._seed + number)
        wait_s = self._crowd.wait_s or WAIT_S
        client = Garbage(self._target.host, self._target.port, self._server.keys[0], chance, wait_s)
        while not self._over.is_set():
            kind, status = await client.attempt()
            self._outcomes["garbage"] += 1
            if status >= 500 or status == 200 or (status == NO_ANSWER and not self._crowd.wait_s):
                self._failures.append(f"garbage {kind} was answered with {status}")
            await asyncio.sleep(2 * self._crowd.pause_s * chance.random())

    async def _ask(self, number: int | None, session: Session) -> Answer:
        """`number`: of a client that behaves; None: of no figure."""
        turn = session.turns[0]
        body = {
            "messages": [{"role": "user", "content": " ".join(WORDS[unit % len(WORDS)] for unit in turn.units)}],
            "max_tokens": turn.output_len,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        begun = time.perf_counter()
        answer = await ask(self._target, "/chat/completions", msgspec.json.encode(body), TIMEOUT_S)
        if number is not None:
            self._answers.append((number, begun, session, answer))
        return answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("smollm2"), help="a file, or a model's name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=14.0, help="of each run, that count")
    parser.add_argument("--lead", type=float, default=2.0, help="seconds before, that do not")
    parser.add_argument("--leave", type=float, default=4.0, help="most seconds that a leaving client stays")
    parser.add_argument("--output-len", type=int, default=64, help="median tokens of an answer")
    parser.add_argument("--json", type=Path, default=Path("fair-share.json"), help="the result")
    parser.add_argument("--source", type=Path, help="a result of before, to make the page again")
    parser.add_argument("--page", type=Path, nargs="?", const=Path(__file__).parents[1] / "docs" / "performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
