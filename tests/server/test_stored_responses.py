"""Stored responses outlive a server that is killed, within their bounds, for their tenant, and not when they are not
to be stored."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from puna.server.answers import ChatLogprob, TopLogprob
from puna.server.database import Database, StateError
from puna.server.responses.shapes import (
    FunctionCallItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Response,
)
from puna.server.responses.store import ResponseStore, Stored
from tests.server.process import ServerProcess

KEYS = {"PUNA_API_KEYS": "north=key-of-north south=key-of-south"}
NORTH, SOUTH = {"authorization": "Bearer key-of-north"}, {"authorization": "Bearer key-of-south"}
BODY: dict[str, Any] = {"max_output_tokens": 6, "temperature": 20.0, "seed": 7, "ignore_eos": True}


def start(model: Path, state: Path) -> ServerProcess:
    return ServerProcess.start(str(model), "--name", "tiny", "--backend", "reference", "--state", str(state), env=KEYS)


def ask(server: ServerProcess, text: str, **more: Any) -> dict[str, Any]:
    answer = server.post("/v1/responses", {**BODY, "input": text, **more}, **NORTH)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def status(server: ServerProcess, name: str, who: dict[str, str] = NORTH) -> int:
    return server.get(f"/v1/responses/{name}", **who).status_code


def is_written(folder: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_stored_responses_outlive_a_server_that_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = start(tiny_model, state)
    try:
        made = ask(first, "of the kept", metadata={"who": "me"})
        further = ask(first, "and?", previous_response_id=made["id"])
        unstored = ask(first, "of the unstored", store=False)
        deleted = ask(first, "of the deleted")
        assert is_written(state, "of the deleted")
        assert _delete(first, deleted["id"]) == 200
    finally:
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    assert is_written(state, "of the kept")
    assert not is_written(state, "of the unstored")
    assert not is_written(state, "of the deleted")
    assert (state.stat().st_mode & 0o777) == 0o700
    second = start(tiny_model, state)
    try:
        assert second.get(f"/v1/responses/{made['id']}", **NORTH).json() == made
        assert [status(second, gone["id"]) for gone in (unstored, deleted)] == [404, 404]
        again = ask(second, "and?", previous_response_id=made["id"])
        assert again["output"][0]["content"] == further["output"][0]["content"]
        assert again["usage"]["input_tokens"] == further["usage"]["input_tokens"]
        assert status(second, made["id"], SOUTH) == 404
        assert _delete(second, made["id"], SOUTH) == 404
        assert _delete(second, made["id"]) == 200
        assert status(second, made["id"]) == 404
        _check_a_full_disk(second)
    finally:
        second.kill()


def _delete(server: ServerProcess, name: str, who: dict[str, str] = NORTH) -> int:
    return httpx.delete(f"{server.url}/v1/responses/{name}", headers=who, timeout=60, verify=False).status_code


def _check_a_full_disk(server: ServerProcess) -> None:
    """The limit of file sizes stands in for it. Whoever asks has an answer, which says that it was not stored."""
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        unstored = ask(server, "to a full disk")
        assert unstored["store"] is False
        assert status(server, unstored["id"]) == 404
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    stored = ask(server, "to a disk with room")
    assert stored["store"] is True
    assert status(server, stored["id"]) == 200


def some(name: str, text: str) -> Stored:
    response = Response(
        id=name,
        created_at=0,
        status="completed",
        instructions=None,
        max_output_tokens=None,
        model="m",
        output=[],
        previous_response_id=None,
        store=True,
        temperature=1,
        top_logprobs=0,
        top_p=1,
        truncation="disabled",
        user=None,
        metadata={},
        system_fingerprint="",
    )
    return Stored(response, [{"role": "user", "content": text}], 0)


@pytest.fixture
def store() -> Iterator[ResponseStore]:
    database = Database(None)
    yield ResponseStore(database, 10_000, 5)
    database.close()


def test_the_store_stays_within_its_count_and_forgets_what_was_not_used(store: ResponseStore) -> None:
    for number in range(5):
        assert store.put("me", some(f"r{number}", "x"))
    assert store.get("me", "r0") == some("r0", "x")
    store.put("me", some("r5", "x"))
    assert [store.get("me", f"r{n}") is not None for n in range(6)] == [True, False, True, True, True, True]


def test_what_comes_back_is_what_was_stored_of_every_kind(store: ResponseStore) -> None:
    text = OutputText(text="a", logprobs=[ChatLogprob("a", -9999.0, [255], [TopLogprob("a", -0.5, [97])])])
    output = [
        ReasoningItem(id="rs", status="completed", content=[ReasoningText(text="why")]),
        OutputMessage(id="msg", status="incomplete", content=[text]),
        FunctionCallItem(id="fc", status="completed", call_id="call", name="f", arguments='{"x": 1}'),
    ]
    plain = some("r", "\U0001f999\x00")
    stored = replace(plain, response=replace(plain.response, output=output, seed=2**64 - 1, metadata={"k": "v"}))
    assert store.put("me", stored)
    assert store.get("me", "r") == stored


def test_the_store_stays_within_its_bytes(store: ResponseStore) -> None:
    for number in range(5):
        store.put("me", some(f"r{number}", "x" * 4000))
        assert store.bytes <= 10_000
    assert len(store) == 2
    assert not store.put("me", some("huge", "x" * 20_000))
    assert store.get("me", "huge") is None
    assert len(store) == 2
    assert store.delete("me", "r4")
    assert store.delete("me", "r3")
    assert (store.bytes, len(store)) == (0, 0)


def test_nobody_finds_what_another_has_stored(store: ResponseStore) -> None:
    store.put("me", some("r", "x"))
    assert store.get("you", "r") is None
    assert not store.delete("you", "r")
    assert store.get("me", "r") is not None


def test_a_response_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite")
    store = ResponseStore(database, 10_000)
    for name, change in {"cut": "substr(body, 1, 60)", "other": "'{\"a\": 1}'", "no text": "x'ff00'"}.items():
        store.put("me", some(name, "x"))
        database.run(f"UPDATE responses SET body = {change} WHERE id = ?", (name,))
        assert store.get("me", name) is None
    assert (len(store), store.bytes) == (0, 0)
    database.close()


def test_a_torn_write_costs_what_was_written_last_and_no_more(tmp_path: Path) -> None:
    """The log is cut where a server, or its machine, might have died."""
    database = Database(tmp_path / "state.sqlite")
    store = ResponseStore(database, 100_000)
    names = [f"r{number}" for number in range(4)]
    for name in names:
        store.put("me", some(name, "x" * 3000))
        if name == "r0":
            database.forget()
    log = (tmp_path / "state.sqlite-wal").read_bytes()
    kept = set()
    for cut in range(0, len(log) + 1, max(1, len(log) // 12)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        shutil.copy(tmp_path / "state.sqlite", folder)
        (folder / "state.sqlite-wal").write_bytes(log[:cut])
        opened = Database(folder / "state.sqlite")
        found = ResponseStore(opened, 100_000)
        there = [name for name in names if found.get("me", name) is not None]
        assert there == names[: len(found)]
        assert there[:1] == ["r0"]
        kept.add(len(there))
        opened.close()
    assert kept == {1, 2, 3, 4}
    database.close()


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    database = Database(path)
    store = ResponseStore(database, 1 << 20)
    for number in range(20):
        store.put("me", some(f"r{number}", "x" * 3000))
    database.close()
    whole = path.read_bytes()
    for damaged in (b"no database" * 100, whole[:4096] + b"\xff" * 4096 + whole[8192:], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=r"state\.sqlite.*move it to begin anew"):
            Database(path)


class Stores(RuleBasedStateMachine):
    """The store beside a plain dictionary that does the same, through restarts."""

    MAX_BYTES, MAX_COUNT = 6000, 4

    def __init__(self) -> None:
        super().__init__()
        self.model: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.made = 0
        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name) / "state.sqlite"
        self._open(self.MAX_BYTES)

    def _open(self, max_bytes: int) -> None:
        self.database = Database(self.path)
        self.store = ResponseStore(self.database, max_bytes, self.MAX_COUNT)
        self.max_bytes = max_bytes
        self._fit()

    def _fit(self) -> None:
        while self.model and (sum(self.model.values()) > self.max_bytes or len(self.model) > self.MAX_COUNT):
            self.model.popitem(last=False)

    @rule(owner=st.sampled_from("ab"), length=st.integers(0, 4000))
    def put(self, owner: str, length: int) -> None:
        self.made += 1
        stored = some(f"r{self.made}", "x" * length)
        size = len(msgspec.json.encode(stored))
        assert self.store.put(owner, stored) == (size <= self.max_bytes)
        if size <= self.max_bytes:
            self.model[owner, stored.response.id] = size
            self._fit()

    @rule(owner=st.sampled_from("ab"), number=st.integers(1, 12))
    def get(self, owner: str, number: int) -> None:
        key = owner, f"r{number}"
        assert (self.store.get(*key) is not None) == (key in self.model)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(owner=st.sampled_from("ab"), number=st.integers(1, 12))
    def delete(self, owner: str, number: int) -> None:
        key = owner, f"r{number}"
        assert self.store.delete(*key) == (self.model.pop(key, None) is not None)

    @rule(max_bytes=st.sampled_from([MAX_BYTES, 3000]))
    def restart(self, max_bytes: int) -> None:
        self.database.close()
        self._open(max_bytes)

    @invariant()
    def they_agree(self) -> None:
        assert (len(self.store), self.store.bytes) == (len(self.model), sum(self.model.values()))

    def teardown(self) -> None:
        self.database.close()
        self.temporary.cleanup()


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)
