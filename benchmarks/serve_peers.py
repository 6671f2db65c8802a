"""Puna's server beside llama.cpp's and vLLM's, in one command: the same clients, in turns, one JSON, one page.

Loads are those of `puna bench serve`: chats of common words, lengths spread as people's are, answers of exactly the
length asked for. Every server has its own defaults; vLLM has both cores. The Q4_0 file and vLLM's folder are made by
peers.py. Servers but vLLM's are started anew in every round, so that being ready is measured as often.

  python benchmarks/serve_peers.py --model FILE.gguf --llama BUILD [--llama BUILD] --vllm ENVIRONMENT --page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import msgspec
from marked_page import fill
from peer_bars import OURS, SERVE_BARS, judge, table, verdicts
from peer_engines import EngineFailedError, puna_worker
from peer_servers import PeerServer, llama_server, processor_s, puna_server, vllm_server
from peers import peer_options, q4_0_file, vllm_folder

from puna.bench.load import Load, sessions
from puna.bench.load_figures import LoadFigures, figures_of
from puna.bench.load_run import run_load
from puna.bench.machine import MachineReport, MachineWatch
from puna.bench.online import find_server

BEGIN, END = "<!-- served: begin -->", "<!-- served: end -->"
TIMEOUT_S = 900.0
CONTEXT = 2048
SAME = {"sessions": 32, "input_len": 128, "output_len": 128}  # through the server and offline
Values = dict[str, dict[str, list[float]]]


def main() -> None:
    options = peer_options(__doc__ or "", "served.json", serving=True)
    target = options.work / "served.json"
    if options.source is None:
        options.work.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(measure(options), indent=1) + "\n")
        print(f"wrote {target}", file=sys.stderr)
    text = page(json.loads((options.source or target).read_text()))
    print(text)
    if options.page:
        fill(options.page, BEGIN, END, text)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds. A server that fails is left out from there on, and what it said is kept."""
    values: Values = {}
    failures: dict[str, str] = {}
    errors: dict[str, dict[str, int]] = {}
    reports: list[MachineReport] = []
    starters = _starters(options, failures)
    kept: dict[str, PeerServer] = {}
    try:
        for number in range(options.rounds):
            watch = MachineWatch()
            for name, start in starters.items():
                if name in failures:
                    continue
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                try:
                    is_new = name not in kept
                    server = kept.get(name) or start()
                    kept[name] = server
                    found = {"ready": server.ready_s} if is_new else {}
                    server.resume()
                    found |= _round(server, options, number, errors.setdefault(name, {}))
                    server.pause()
                    if not name.startswith("vLLM"):
                        kept.pop(name).close()
                except (EngineFailedError, OSError) as error:
                    failures[name] = str(error)
                    print(f"left out from here on: {error}", file=sys.stderr)
                    continue
                for figure, value in found.items():
                    values.setdefault(name, {}).setdefault(figure, []).append(value)
            reports.append(watch.report())
    finally:
        for server in kept.values():
            server.close()
    return {
        "model": options.model.name,
        "scale": options.scale,
        "engines": values,
        "errors": {name: kinds for name, kinds in errors.items() if kinds},
        "failures": failures,
        "rounds": [msgspec.to_builtins(report) for report in reports],
        "judged": judge(values, SERVE_BARS),
    }


def _round(server: PeerServer, options: argparse.Namespace, number: int, errors: dict[str, int]) -> dict[str, float]:
    """One round of one server. The load of a round is the same for every server."""

    def run(clients: int, each: int, **shape: Any) -> LoadFigures:
        count = max(1, round(each * options.scale))
        load = Load(clients=clients, sessions=clients * count, seed=1 + number, max_len=CONTEXT, **shape)
        figures = figures_of(run_load(find_server(server.url), load, sessions(load), TIMEOUT_S), None)
        for kind, failed in figures.errors.items():
            errors[kind] = errors.get(kind, 0) + failed
        return figures

    people: dict[str, Any] = {"input_len": 100, "output_len": 120, "spread": 0.8, "endpoint": "chat"}
    run(1, 1, input_len=20, output_len=8, endpoint="chat")  # warms up
    found = {
        "serve1": run(1, 8, **people).output_tokens_per_s,
        "serve8": run(8, 5, **people).output_tokens_per_s,
    }
    before = processor_s(server.pid)
    crowd = run(32, 4, **people, skip_first=options.scale >= 0.5)
    if server.name == OURS:
        found["http_us"] = 1e6 * (processor_s(server.pid) - before) / max(1, crowd.output_tokens)
    found["serve32"] = crowd.output_tokens_per_s
    if crowd.first_s is not None:
        found["ttft99"] = crowd.first_s.p99
    shared = {"input_len": 24, "output_len": 32, "shared_len": 1000, "endpoint": "chat"}
    load = Load(clients=32, sessions=32, seed=1 + number, **shared)
    found["prefix32"] = run_load(find_server(server.url), load, sessions(load), TIMEOUT_S).wall_s
    if server.name == OURS:
        found["engine_share"] = _engine_share(server, options, number)
    return found


def _engine_share(server: PeerServer, options: argparse.Namespace, number: int) -> float:
    """The engine's processor time for the same prompts through the server, over that of an engine on its own."""
    load = Load(clients=32, seed=100 + number, **SAME)
    planned = sessions(load)
    engine = int(server.health()["engine"]["pid"])
    before = processor_s(engine)
    run_load(find_server(server.url), load, planned, TIMEOUT_S)
    served = processor_s(engine) - before
    server.pause()
    worker = puna_worker(options.model, options.work / "puna-offline.log")
    try:
        work = {"output_len": SAME["output_len"], "temperature": 0.0, "top_p": 1.0, "seed": 1}
        prompts = [[64 + unit for unit in session.turns[0].units] for session in planned]
        worker.ask(prompts=[prompts[0][:8]], **work)
        before = processor_s(worker.pid)
        worker.ask(prompts=prompts, **work)
        offline = processor_s(worker.pid) - before
    finally:
        worker.close()
        server.resume()
    return served / max(1e-9, offline)


def _starters(options: argparse.Namespace, failures: dict[str, str]) -> dict[str, Callable[[], PeerServer]]:
    work: Path = options.work
    found: dict[str, Callable[[], PeerServer]] = {OURS: lambda: puna_server(options.model, work / "puna-server.log")}
    if options.vllm is None:
        print("vLLM is left out: no --vllm and no PUNA_BENCH_VLLM", file=sys.stderr)
    else:
        try:
            folder = vllm_folder(options)
            found["vLLM bf16"] = lambda: vllm_server(options.vllm, folder, work / "vllm-server.log")
        except (EngineFailedError, OSError) as error:
            failures["vLLM bf16"] = str(error)
    if not options.llama:
        print("llama.cpp is left out: no --llama and no PUNA_BENCH_LLAMA", file=sys.stderr)
    for build in options.llama:
        if not (build / "bin" / "llama-server").exists():
            print(f"{build} is left out: there is no bin/llama-server in it", file=sys.stderr)
            continue
        name, small = f"llama.cpp Q4_0, {build.name}", q4_0_file(options, build)
        log = work / f"llama-{build.name}.log"
        found[name] = lambda name=name, build=build, small=small, log=log: llama_server(  # type: ignore[misc]
            name, build, small, log
        )
    return found


def page(result: dict[str, Any]) -> str:
    """The measured part of docs/performance.md."""
    rounds = result["rounds"]
    machine = rounds[0]
    others = max(each["others_share"] for each in rounds)
    scale = "" if result["scale"] == 1 else f" **Loads are {result['scale']:g} of their size: a trial.**"
    lines = [
        f"{machine['date']}; {machine['processor']}, {machine['usable_threads']} cores; Puna {machine['puna']}; "
        f"{result['model']}; rounds: {len(rounds)}. Median, least and most in brackets. Other processes had up to "
        f"{others:.1%} of the machine.{scale}",
        "",
        table(result["engines"]),
        "",
        verdicts(result["judged"]),
        "",
        *(f"Failed requests, {name}: {kinds}" for name, kinds in result["errors"].items()),
        *(f"Left out: {name}: {why}" for name, why in result["failures"].items()),
    ]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
