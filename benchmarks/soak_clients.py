"""The clients of a soak: those that behave, those that leave in the middle, and those that send garbage.

A client that behaves checks its answers: the status, that a stream ended as its kind of stream ends, as many choices as
were asked for, and, of the marked questions, the very text of the first time. What went wrong is kept in words. They
know HTTP; they know nothing of the server but its address and their key.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 900.0
WORDS = ("river", "stone", "winter", "lamp", "bread", "engine", "window", "letter", "forest", "clock", "harbor", "salt")
PREFIXES = [" ".join(random.Random(seed).choices(WORDS, k=60 + 110 * seed)) for seed in range(4)]
MARKED = [
    ("chat", "Name three rivers of Europe."),
    ("chat", "What is the capital of France?"),
    ("completions", "The old bridge over the river"),
    ("completions", PREFIXES[2] + " and then"),
    ("responses", "Explain why bread rises."),
    ("messages", "Write one sentence about the moon."),
]
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


@dataclass
class Tally:
    """What became of requests. `failures`: in words, those of clients that behave, and of garbage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wanted: dict[int, str] = field(default_factory=dict)  # texts of marked questions
    marked: int = 0

    def fail(self, said: str) -> None:
        self.outcomes["failed"] += 1
        if len(self.failures) < 50:
            self.failures.append(said[:1000])


class Trail:
    """What happened to one request below HTTP, for the words about its failure: events, in seconds since."""

    def __init__(self) -> None:
        self._since, self._port, self._events = time.monotonic(), 0, list[str]()

    async def add(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith((".complete", ".failed")):
            self._events.append(f"{time.monotonic() - self._since:.2f} {name.split('.', 1)[1]}")
        if name == "connection.connect_tcp.complete":
            self._port = info["return_value"].get_extra_info("client_addr")[1]

    def __str__(self) -> str:
        how = f"from a new port {self._port}" if self._port else "on a connection used before"
        return f"{how}, {time.monotonic() - self._since:.2f} s: {'; '.join(self._events[-8:])}"


class WrongAnswerError(Exception):
    """An answer that is not as it should be."""


@dataclass(frozen=True)
class Question:
    """One request. `mark`: which of the marked ones it is, if any."""

    kind: str
    body: dict[str, Any]
    mark: int | None = None

    @property
    def path(self) -> str:
        return PATHS[self.kind]


def marked(mark: int, *, stream: bool) -> Question:
    kind, text = MARKED[mark]
    return _question(kind, text, 48, {"temperature": 0, "stream": stream}, mark)


def drawn(chance: random.Random) -> Question:
    """Any of the shapes that people send."""
    stream = chance.random() < 0.6
    if chance.random() < 0.15:
        return marked(chance.randrange(len(MARKED)), stream=stream)
    kind = chance.choices(list(PATHS), (5, 3, 1, 2))[0]
    tail = " ".join(chance.choices(WORDS, k=chance.randint(3, 40)))
    which = chance.random()
    if which < 0.45:
        text = f"{chance.choice(PREFIXES)} {tail}"
    elif which < 0.96:
        text = tail
    else:
        text = " ".join(chance.choices(WORDS, k=1200))
    shape: dict[str, Any] = {"stream": stream}
    if chance.random() < 0.5:
        shape |= {"temperature": 0}
    else:
        shape |= {"temperature": 0.8, "top_p": 0.9, "seed": chance.randrange(2**31)}
    if kind in ("chat", "completions"):
        shape |= {"n": chance.choices((1, 2, 3), (8, 1, 1))[0]}
        if chance.random() < 0.1:
            shape |= {"logprobs": True, "top_logprobs": 2} if kind == "chat" else {"logprobs": 2}
        if chance.random() < 0.2:
            shape |= {"stop": [" the"]}
        if chance.random() < 0.1:
            shape |= {"presence_penalty": 0.5, "repetition_penalty": 1.1}
    return _question(kind, text, chance.randint(8, 160), shape)


def _question(kind: str, text: str, tokens: int, shape: dict[str, Any], mark: int | None = None) -> Question:
    if kind == "completions":
        body: dict[str, Any] = {"prompt": text, "max_tokens": tokens}
    elif kind == "responses":
        body = {"input": text, "max_output_tokens": tokens}
    else:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    return Question(kind, body | shape, mark)


class Clients:
    """All that talk to one server. `keys`: those that clients share among themselves, in turns."""

    def __init__(self, url: str, keys: list[str], tally: Tally) -> None:
        parts = urlsplit(url)
        self.url, self.keys, self.tally = url, keys, tally
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.over = asyncio.Event()

    async def behave(self, number: int) -> None:
        """Asks, checks, asks again, until it is over."""
        chance = random.Random(number)
        async with self.opened(number) as client:
            while not self.over.is_set():
                await self.ask(client, drawn(chance))
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random())

    async def leave(self, number: int) -> None:
        """Asks, and is gone before the answer ends, more often than not."""
        chance = random.Random(1000 + number)
        while not self.over.is_set():
            question = drawn(chance)
            async with self.opened(number) as client:
                try:
                    async with asyncio.timeout(chance.choice((0.2, 3.0, 20.0)) * chance.random()):
                        async with client.stream("POST", question.path, json=question.body) as response:
                            async for _ in response.aiter_bytes():
                                pass
                except TimeoutError:
                    self.tally.outcomes["left"] += 1
                else:
                    self.tally.outcomes["stayed"] += 1

    async def ask(self, client: httpx.AsyncClient, question: Question) -> None:
        """One request of a client that behaves, and what there is to say of its answer."""
        trail = Trail()
        try:
            texts = await self._answer(client, question, trail)
        except (httpx.HTTPError, WrongAnswerError) as error:
            self.tally.fail(f"{question.path}, {json.dumps(question.body)[:150]}: {error!r}, {trail}")
            return
        if texts is None:
            self.tally.outcomes["at its limit (429)"] += 1
            await asyncio.sleep(2.0)
            return
        self.tally.outcomes["answered"] += 1
        if question.mark is not None:
            self.tally.marked += 1
            if self.tally.wanted.setdefault(question.mark, texts[0]) != texts[0]:
                self.tally.fail(f"marked {question.mark}: {texts[0]!r}, not {self.tally.wanted[question.mark]!r}")

    async def _answer(self, client: httpx.AsyncClient, question: Question, trail: Trail) -> list[str] | None:
        """A text a choice; None where the tenant is at its limit."""
        extensions = {"trace": trail.add}
        async with client.stream("POST", question.path, json=question.body, extensions=extensions) as response:
            if response.status_code == 429 and "retry-after" in response.headers:
                await response.aread()
                return None
            if response.status_code != 200:
                raise WrongAnswerError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
            if not question.body["stream"]:
                return whole_texts(question, json.loads(await response.aread()))
            lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
            return streamed_texts(question, lines)

    def opened(self, number: int) -> httpx.AsyncClient:
        key = self.keys[number % len(self.keys)]
        return httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)


def whole_texts(question: Question, answer: dict[str, Any]) -> list[str]:
    if question.kind == "messages":
        return [answer["content"][0]["text"] if answer["content"] else ""]
    if question.kind == "responses":
        return [answer["output"][0]["content"][0]["text"]]
    choices = answer["choices"]
    if len(choices) != question.body.get("n", 1) or not all(choice["finish_reason"] for choice in choices):
        raise WrongAnswerError(f"choices {choices!r}"[:300])
    return [choice["text"] if question.kind == "completions" else choice["message"]["content"] for choice in choices]


def streamed_texts(question: Question, lines: list[str]) -> list[str]:
    """The texts of a stream's events, if it ended as it should."""
    if question.kind in ("chat", "completions") and (not lines or lines.pop() != "[DONE]"):
        raise WrongAnswerError(f"a stream without its end: {lines[-1:]}")
    events = [json.loads(line) for line in lines]
    if wrong := [event for event in events if "error" in event or event.get("type") in ("error", "response.failed")]:
        raise WrongAnswerError(f"an error in the stream: {wrong[0]}")
    if question.kind == "messages":
        if not events or events[-1]["type"] != "message_stop":
            raise WrongAnswerError(f"a stream without its end: {lines[-1:]}")
        return ["".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")]
    if question.kind == "responses":
        if not events or events[-1]["type"] not in ("response.completed", "response.incomplete"):
            raise WrongAnswerError(f"a stream without its end: {lines[-1:]}")
        return ["".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")]
    texts, ended = [""] * question.body.get("n", 1), set()
    for choice in (choice for event in events for choice in event["choices"]):
        is_text = question.kind == "completions"
        texts[choice["index"]] += (choice["text"] if is_text else choice["delta"].get("content")) or ""
        if choice["finish_reason"]:
            ended.add(choice["index"])
    if len(ended) != len(texts):
        raise WrongAnswerError(f"of {len(texts)} choices {len(ended)} ended")
    return texts
