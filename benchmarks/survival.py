"""Kills (or stops) the engine under a real server again and again while clients stream, and compares what they got.

    python benchmarks/survival.py --model smollm2 --kills 20 --clients 32

Half of the clients are greedy, half sample. First they run undisturbed, then with an engine that dies at random
moments; every stream has to end complete, without an error, with the same text. `--stop` sends SIGSTOP instead, which
looks like a hang. It prints what happened and how long clients waited, and exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

QUESTIONS = ("Write a story about", "Explain in detail", "List twenty facts about", "Write a letter about")
TOPICS = ("the sea", "bridges", "a lost key", "bread", "trains", "the moon", "old maps", "winter")


@dataclass
class Answer:
    text: str = ""
    reason: str = ""
    error: str = ""
    longest_gap_s: float = 0.0


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, options: argparse.Namespace) -> Server:
        command = [
            sys.executable,
            "-m",
            "puna.cli.main",
            "serve",
            options.model,
            "--port",
            "0",
            "--hang",
            str(options.hang),
        ]
        server = cls(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert server.process.stdout is not None
        for line in server.process.stdout:
            if line.startswith("Puna serves "):
                server.url = line.split()[-1]
                threading.Thread(target=server.process.stdout.read, daemon=True).start()
                return server
        raise SystemExit("the server ended before it was ready")

    def engine(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health", timeout=30).json()["engine"])


def body(client: int, options: argparse.Namespace) -> dict[str, Any]:
    question = f"{QUESTIONS[client % len(QUESTIONS)]} {TOPICS[client // 2 % len(TOPICS)]}, number {client}."
    sampled = client % 2
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": options.tokens,
        "temperature": 0.9 if sampled else 0.0,
        "top_p": 0.95 if sampled else 1.0,
        "seed": client,
        "ignore_eos": True,
        "stream": True,
    }


def ask(url: str, client: int, options: argparse.Namespace) -> Answer:
    answer, last = Answer(), time.monotonic()
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(client, options), timeout=600) as response:
            if response.status_code != 200:
                answer.error = response.read().decode()
                return answer
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic()
                answer.longest_gap_s, last = max(answer.longest_gap_s, now - last), now
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    answer.error = event["error"]["message"]
                    return answer
                for choice in event["choices"]:
                    answer.text += choice["delta"].get("content") or ""
                    answer.reason = choice["finish_reason"] or answer.reason
    except httpx.HTTPError as error:
        answer.error = repr(error)
    return answer


def ask_all(url: str, options: argparse.Namespace) -> tuple[list[Answer], float]:
    begun = time.monotonic()
    with ThreadPoolExecutor(options.clients) as pool:
        answers = list(pool.map(lambda client: ask(url, client, options), range(options.clients)))
    return answers, time.monotonic() - begun


def disturb(server: Server, options: argparse.Namespace, over: threading.Event, sent: list[float]) -> None:
    """Sends signals at random moments of an engine's work: once it has run a step, up to `--pause` seconds later."""
    number = signal.SIGSTOP if options.stop else signal.SIGKILL
    chance = random.Random(options.seed)
    hit = -1
    while len(sent) < options.kills and not over.is_set():
        engine = server.engine()
        if engine["pid"] == hit or engine["steps"] < 1 or engine["live_requests"] == 0:
            time.sleep(0.005)
            continue
        time.sleep(chance.uniform(0.0, options.pause))
        if over.is_set():
            return
        hit = engine["pid"]
        os.kill(hit, number)
        sent.append(time.monotonic())


def main() -> int:
    options = _options()
    server = Server.start(options)
    try:
        wanted, quiet_s = ask_all(server.url, options)
        over, sent = threading.Event(), list[float]()
        thread = threading.Thread(target=disturb, args=(server, options, over, sent))
        thread.start()
        found, disturbed_s = ask_all(server.url, options)
        over.set()
        thread.join()
        restarts = server.engine()["restarts"]
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    errors = [answer.error for answer in (*wanted, *found) if answer.error]
    differing = [i for i, (one, other) in enumerate(zip(wanted, found, strict=True)) if one.text != other.text]
    unfinished = [i for i, answer in enumerate(found) if answer.reason != "length"]
    result = {
        "signals": len(sent),
        "restarts": restarts,
        "clients": options.clients,
        "tokens": options.tokens,
        "errors": errors,
        "differing": differing,
        "unfinished": unfinished,
        "undisturbed_s": round(quiet_s, 2),
        "disturbed_s": round(disturbed_s, 2),
        "longest_pause_s": round(max(answer.longest_gap_s for answer in found), 2),
    }
    print(json.dumps(result, indent=2))
    good = not (errors or differing or unfinished) and restarts == len(sent) == options.kills
    print("every stream ended as if nothing had happened" if good else "NOT as it should be", file=sys.stderr)
    return 0 if good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=600, help="of each answer")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds that an engine works before it is hit")
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead of SIGKILL")
    parser.add_argument("--hang", type=float, default=2.0, help="the server's --hang")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
