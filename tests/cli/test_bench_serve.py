"""`puna bench serve`: loads on a real server, figures of known requests, files of traces. Never how quick it was."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.bench.load import Load, sessions
from puna.bench.load_figures import figures_of, parse_objective
from puna.bench.load_run import Exchange, LoadRun
from puna.errors import InputError
from puna.workloads.traces import read_trace
from tests.cli.process import puna
from tests.server.process import ServerProcess

SHORT = ["-i", "20", "-o", "5"]


@pytest.fixture(scope="module")
def server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(patient_model), "--name", "small", "--kv-gib", "0.05")
    yield running
    running.kill()


def measured(path: Path, *arguments: str) -> Any:
    done = puna("bench", "serve", *arguments, "--json", str(path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "the generator took" in done.stdout
    return json.loads(path.read_text())


def test_a_closed_loop_has_all_its_requests_and_never_more_at_once_than_clients(
    server: ServerProcess, tmp_path: Path
) -> None:
    report = measured(tmp_path / "a.json", server.url, "-c", "3", "-n", "9", *SHORT, "--skip-first", "--slo", "e2e=600")
    figures = report["figures"]
    assert (figures["requests"], figures["failed"], figures["output_tokens"]) == (6, 0, 45)
    assert figures["prompt_tokens"] == 9 * 20
    assert figures["goodput"]["share"] == 1
    assert figures["first_s"]["p50"] <= figures["first_s"]["p99"] <= figures["whole_s"]["high"]
    assert figures["generator"]["processor_us_per_token"] > 0
    spans = [(one["begun_s"], one["begun_s"] + one["whole_s"]) for one in report["exchanges"]]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) <= 3


def test_an_open_load_shares_prefixes_and_draws_a_picture(server: ServerProcess, tmp_path: Path) -> None:
    picture = tmp_path / "load.svg"
    load = ["--rate", "50", "-n", "8", *SHORT, "--shared-len", "64", "--spread", "0.3", "--plot", str(picture)]
    report = measured(tmp_path / "a.json", server.url, *load)
    assert report["figures"]["requests"] == 8
    assert report["figures"]["cached_tokens"] >= 64
    same = Load(rate=50, sessions=8, input_len=20, output_len=5, shared_len=64, spread=0.3)
    begun = {one["session"]: one["begun_s"] for one in report["exchanges"]}
    assert [begun[session.number] for session in sessions(same)] == pytest.approx([s.due_s for s in sessions(same)])
    assert "<svg" in picture.read_text()


def test_turns_of_a_conversation_read_the_answers_before(server: ServerProcess, tmp_path: Path) -> None:
    report = measured(tmp_path / "a.json", server.url, "-c", "2", "-n", "2", "--turns", "3", "-i", "6", "-o", "5")
    for number in (0, 1):
        turns = sorted((one["turn"], one["prompt_tokens"]) for one in report["exchanges"] if one["session"] == number)
        assert [turn for turn, _ in turns] == [0, 1, 2]
        assert turns[0][1] < turns[1][1] < turns[2][1]
    assert report["figures"]["cached_tokens"] > 0


def test_what_fails_is_counted_by_kind_and_said(server: ServerProcess, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,3\n0.01,20000,3\n0.02,10,3\n")
    report = measured(tmp_path / "a.json", server.url, "--trace", str(trace))
    assert report["figures"]["errors"] == {"status 400": 1}
    assert "context" in report["examples"]["status 400"]
    cut = measured(tmp_path / "b.json", server.url, "--trace", str(trace), "--max-len", "64")
    assert (cut["figures"]["failed"], cut["cut"]) == (0, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "a"}]}\n\n', "ended early"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n', "error in the stream"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {\n\ndata: [DONE]\n\n", "no such event"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", "status 503"),
        (b"", "ended early"),
    ],
)
def test_servers_that_break_off_are_errors_not_figures(answer: bytes, kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_answer_badly, args=(listening, answer), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        path = tmp_path / "a.json"
        done = puna("bench", "serve", url, "-c", "1", "-n", "2", *SHORT, "--json", str(path))
    assert done.returncode == 1
    figures = json.loads(path.read_text())["figures"]
    assert figures["errors"] == {kind: 2}
    assert figures["first_s"] is None


def _answer_badly(listening: socket.socket, answer: bytes) -> None:
    """The list of models as it should be, everything else with `answer`."""
    models = b'{"data": [{"id": "m"}]}'
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            asked = connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(models)
            connection.sendall(head + models if asked.startswith(b"GET") else answer)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-c", "2", "--rate", "1"], 2, "exactly one"),
        (["--rate", "0"], 2, "--rate"),
        (["--slo", "speed=1"], 2, "ttft=0.5"),
        (["--turns", "2", "--endpoint", "completions"], 2, "chat"),
        (["--trace", "/nowhere.csv"], 1, "/nowhere.csv"),
        (["--json", "/nowhere/at/all.json"], 1, "/nowhere/at/all.json"),
    ],
)
def test_a_bad_load_is_refused_before_anything_is_sent(arguments: list[str], code: int, said: str) -> None:
    done = puna("bench", "serve", "http://127.0.0.1:9", *arguments)
    assert done.returncode == code
    assert said in done.stderr


def exchange(first_s: float, whole_s: float, tokens: int = 11, error: str | None = None) -> Exchange:
    return Exchange(0, 0, None, 0.0, 0.0, first_s, whole_s, [], 5, tokens, 0, error, "", True)


def test_goodput_counts_only_requests_that_met_everything() -> None:
    done = [exchange(0.1, 1.1), exchange(0.6, 1.1), exchange(0.1, 9.1), exchange(0.1, 0.2, error="timeout")]
    figures = figures_of(LoadRun(done, 2.0, 0.1), parse_objective("ttft=0.5, tpot=0.2"))
    assert figures.goodput is not None
    assert (figures.goodput.share, figures.goodput.requests_per_s) == (0.25, 0.5)
    assert figures.errors == {"timeout": 1}
    assert figures.token_s is not None
    assert figures.token_s.high == pytest.approx(0.9)


FORMATS = {
    "azure": "arrival_s,prompt_tokens,output_tokens\n5.0,374,44\n9.25,396,109\n",
    "recorded": "# total_time_s=1\nreq_time_s,client,prompt_tokens,output_tokens,first\n5,u1,374,44,1\n"
    "9.25,u2,396,109,1\n",
    "mooncake": '{"timestamp": 5000, "input_length": 374, "output_length": 44, "hash_ids": [0, 1]}\n'
    '{"timestamp": 9250, "input_length": 396, "output_length": 109, "hash_ids": [0, 2]}\n',
    "burst": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,374,44,1,c\n7,m,3,0,3,c\n"
    "9.25,m,396,109,1,c\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_arrivals(name: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.gz"
    with gzip.open(file, "wt") as out:
        out.write(FORMATS[name])
    found = [(one.at_s, one.prompt_len, one.output_len) for one in read_trace(file)]
    assert found == [(0.0, 374, 44), (4.25, 396, 109)]


def test_rates_become_arrivals_and_times_alone_have_the_lengths_of_the_load(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("client,window_start_s,rate_rps,cv,pattern,param1,param2\n0,600,0.5,1.0,Gamma,1,2\n")
    arrivals = read_trace(rates)
    assert 200 < len(arrivals) < 400
    assert arrivals == sorted(arrivals, key=lambda one: one.at_s)
    times = tmp_path / "times.csv"
    times.write_text("arrival_s,model\n0,3\n2,1\n")
    planned = sessions(Load(trace=times, sessions=None, speed=2, input_len=7, output_len=3))
    assert [(one.due_s, len(one.turns[0].units), one.turns[0].output_len) for one in planned] == [(0, 7, 3), (1, 7, 3)]


def test_of_rates_only_as_many_arrivals_are_drawn_as_are_wanted(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    head = "client,window_start_s,rate_rps,cv\n"
    rates.write_text(f"{head}1,0,1e9,1.0\n2,600,1e9,2.0\n")  # a million million in all
    assert len(read_trace(rates, limit=50)) == 50
    rates.write_text(f"{head}1,600,0.05,1.0\n2,0,0.02,2.0\n3,600,0.03,0.5\n")
    assert read_trace(rates, limit=20) == read_trace(rates)[:20]


def test_prompts_with_the_same_blocks_begin_alike(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(FORMATS["mooncake"].replace("374", "1024").replace("396", "1024"))
    first, second = (one.turns[0].units for one in sessions(Load(trace=file, sessions=None)))
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "arrival_s,prompt_tokens,output_tokens\n1,x,3\n", "{\n"])
def test_files_that_are_no_traces_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "none.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=r"none\.csv"):
        read_trace(file)
