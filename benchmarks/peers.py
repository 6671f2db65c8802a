"""Puna beside its peers, in one command: rounds in which each engine is measured once, medians, ratios, one page.

It prepares what is missing (a Q4_0 file for llama.cpp, a bfloat16 folder for vLLM), skips peers that are not there and
says so, measures the machine's limits and every kernel in the same run, writes one JSON, and fills the table of
docs/performance.md from it. How the peers are built stands there too.

  python benchmarks/peers.py --model FILE.gguf --llama BUILD [--llama BUILD] --vllm ENVIRONMENT
  python benchmarks/peers.py --from build/peers/peers.json        # only writes the page and the plot again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from marked_page import fill
from peer_bars import OURS, judge, table, verdicts
from peer_engines import EngineFailedError, LlamaCpp, Worker, puna_worker, vllm_worker

from puna.bench.machine import MachineReport, MachineWatch
from puna.kernels.cpu import available_threads

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
KV_MIB, MEMORY_SEQUENCES, MEMORY_TOKENS = 64, 8, 250  # of the run that looks at memory


def main() -> None:
    options = peer_options(__doc__ or "", "peers.json")
    target = options.work / "peers.json"
    if options.source is None:
        options.work.mkdir(parents=True, exist_ok=True)
        try:
            target.write_text(json.dumps(measure(options), indent=1) + "\n")
        except EngineFailedError as error:
            sys.exit(f"error: {error}")
        print(f"wrote {target}", file=sys.stderr)
    result = json.loads((options.source or target).read_text())
    text = page(result)
    print(text)
    if options.page:
        fill(options.page, BEGIN, END, text)
    if options.plot:
        try:
            from roofline import draw

            draw(result["kernels"], options.plot)
        except ImportError:
            print("no plot: matplotlib is missing (pip install 'puna[bench]')", file=sys.stderr)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds. An engine that fails is left out from there on, and what it said is kept."""
    values: dict[str, dict[str, list[float]]] = {}
    failures: dict[str, str] = {}
    reports: list[MachineReport] = []
    with ExitStack() as stack:
        engines = dict(_engines(options, stack, failures))
        for number in range(options.rounds):
            watch = MachineWatch()
            for name, engine in engines.items():
                if name in failures:
                    continue
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                try:
                    found = engine.measure(number)
                except (EngineFailedError, subprocess.TimeoutExpired) as error:
                    failures[name] = str(error)
                    print(f"left out from here on: {error}", file=sys.stderr)
                    continue
                if name == OURS:
                    found |= {"first_token": first_token_seconds(options.model)}
                for figure, value in found.items():
                    values.setdefault(name, {}).setdefault(figure, []).append(value)
            reports.append(watch.report())
        versions = {name: engine.facts for name, engine in engines.items() if isinstance(engine, Worker)}
    values[OURS]["memory"] = [memory_megabytes(options)]
    return {
        "model": options.model.name,
        "engines": values,
        "facts": versions,
        "failures": failures,
        "rounds": [msgspec.to_builtins(report) for report in reports],
        "judged": judge(values),
        "kernels": kernels(options),
    }


def first_token_seconds(model: Path) -> float:
    """From starting the command to the end of an answer of one token, the file in the page cache."""
    command = [sys.executable, "-m", "puna.cli.main", "generate", "Hello", "-n", "1", "-m", str(model)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=HERE.parent)
    return time.perf_counter() - started


def memory_megabytes(options: argparse.Namespace) -> float:
    """What a process holds beside the packed weights and the part of its pool that was used, in MB (10^6 bytes)."""
    worker = puna_worker(options.model, options.work / "puna-memory.log", KV_MIB)
    try:
        prompts = [[100 + row, *range(200, 200 + MEMORY_TOKENS)] for row in range(MEMORY_SEQUENCES)]
        worker.ask(prompts=prompts, output_len=2, temperature=0.0, top_p=1.0, seed=1)
        facts = worker.ask(memory=True)
    finally:
        worker.close()
    blocks = MEMORY_SEQUENCES * (MEMORY_TOKENS // facts["block_size"])
    return (facts["resident_bytes"] - facts["packed_bytes"] - blocks * facts["block_bytes"]) / 1e6


def kernels(options: argparse.Namespace) -> dict[str, Any]:
    target = options.work / "kernels.json"
    command = [
        sys.executable,
        "-m",
        "puna.cli.main",
        "bench",
        "kernels",
        "-m",
        str(options.model),
        "--json",
        str(target),
    ]
    print("limits and kernels", file=sys.stderr)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(target.read_text())
    found["target"]["model"] = options.model.name
    return found


def page(result: dict[str, Any]) -> str:
    """The measured part of docs/performance.md."""
    rounds, kernel_report = result["rounds"], result["kernels"]
    machine = rounds[0]
    others, steal = (max(each[share] for each in rounds) for share in ("others_share", "steal_share"))
    lines = [
        f"{machine['date']}; {machine['processor']}, {machine['usable_threads']} cores, {machine['memory_gib']:g} GiB, "
        f"{machine['system']}; Puna {machine['puna']} on the path {kernel_report['limits']['path']}; "
        f"{result['model']}; rounds: {len(rounds)}. Median, least and most in brackets. While it was measured other "
        f"processes had up to {others:.1%} of the machine, its host took up to {steal:.1%}.",
        "",
        table(result["engines"]),
        "",
        verdicts(result["judged"]),
        "",
        *(f"Left out: {name}: {why}" for name, why in result["failures"].items()),
        *([""] if result["failures"] else []),
        *_limit_lines(kernel_report["limits"]),
        "",
        *_kernel_lines(kernel_report["kernels"]),
    ]
    return "\n".join(lines)


def _limit_lines(limits: dict[str, Any]) -> Iterator[str]:
    yield "| limit of this machine | |"
    yield "|---|---|"
    for point in limits["read"]:
        yield f"| read, working set of {point['working_bytes'] / 2**20:g} MiB | {point['bytes_per_s'] / 1e9:.0f} GB/s |"
    for kind, rate in limits["operations_per_s"].items():
        yield f"| multiply and add, {kind} | {rate / 1e9:,.0f} GOP/s |"
    yield f"| threads meet at a barrier | {1e9 * limits['barrier_s']:.0f} ns |"
    yield f"| an empty job on the pool | {1e9 * limits['dispatch_s']:.0f} ns |"


def _kernel_lines(figures: list[dict[str, Any]]) -> Iterator[str]:
    """A row a kernel, a column a shape of the step: milliseconds of all layers, and the share of the bound."""
    shapes = list(dict.fromkeys(figure["shape"] for figure in figures))
    yield "| ms, share of the bound | " + " | ".join(shapes) + " |"
    yield "|---" * (len(shapes) + 1) + "|"
    for kernel in dict.fromkeys(figure["kernel"] for figure in figures):
        cells = {figure["shape"]: figure for figure in figures if figure["kernel"] == kernel}
        shown = [
            f"{1e3 * cell['seconds']['median']:.2f}, {cell['share']:.0%} ({cell['bound']})" if cell else ""
            for cell in (cells.get(shape) for shape in shapes)
        ]
        yield f"| {kernel} | " + " | ".join(shown) + " |"


def _engines(
    options: argparse.Namespace, stack: ExitStack, failures: dict[str, str]
) -> Iterator[tuple[str, Worker | LlamaCpp]]:
    ours = puna_worker(options.model, options.work / "puna.log")
    stack.callback(ours.close)
    yield OURS, ours
    if options.vllm is None:
        print("vLLM is left out: no --vllm and no PUNA_BENCH_VLLM", file=sys.stderr)
    else:
        try:
            print("vLLM loads; that takes a minute or two", file=sys.stderr)
            vllm = vllm_worker(options.vllm, vllm_folder(options), options.work / "vllm.log")
            stack.callback(vllm.close)
            yield "vLLM bf16", vllm
        except (EngineFailedError, OSError) as error:
            failures["vLLM bf16"] = str(error)
            print(f"vLLM is left out: {error}", file=sys.stderr)
    if not options.llama:
        print("llama.cpp is left out: no --llama and no PUNA_BENCH_LLAMA", file=sys.stderr)
    for folder in options.llama:
        if not (folder / "bin" / "llama-bench").exists():
            print(f"{folder} is left out: there is no bin/llama-bench in it", file=sys.stderr)
            continue
        small = q4_0_file(options, folder)
        name, threads = folder.name, available_threads()
        yield f"llama.cpp Q4_0, {name}", LlamaCpp(f"llama.cpp Q4_0, {name}", folder, small, threads, whole=True)
        same = f"llama.cpp same file, {name}"
        yield same, LlamaCpp(same, folder, options.model, threads, whole=False)


def q4_0_file(options: argparse.Namespace, llama: Path) -> Path:
    """llama.cpp's fast path: the same model, its matrices rounded once more."""
    target: Path = options.work / f"{options.model.stem}.Q4_0.gguf"
    if not target.exists():
        with _complete(target) as partial:
            command = [
                str(llama / "bin" / "llama-quantize"),
                "--allow-requantize",
                str(options.model),
                str(partial),
                "Q4_0",
            ]
            subprocess.run(command, check=True, capture_output=True)
    return target


def vllm_folder(options: argparse.Namespace) -> Path:
    target: Path = options.vllm_model or options.work / f"{options.model.stem}.bf16"
    if not (target / "config.json").exists():
        command = [
            str(options.vllm / "bin" / "python"),
            str(HERE / "gguf_to_folder.py"),
            str(options.model),
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise EngineFailedError(f"the model could not be turned into a folder for it: {said[:300]}")
    return target


@contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """A file appears under its name only when it is whole."""
    partial = target.with_name(target.name + ".part")
    yield partial
    partial.rename(target)


def peer_options(description: str, result: str, *, serving: bool = False) -> argparse.Namespace:
    """Of this script, or of serve_peers.py; `result` is what --from takes."""

    def folder(name: str) -> Path | None:
        return Path(os.environ[name]) if os.environ.get(name) else None

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=folder("PUNA_BENCH_MODEL"), help="GGUF file (PUNA_BENCH_MODEL)")
    parser.add_argument(
        "--vllm", type=Path, default=folder("PUNA_BENCH_VLLM"), help="its environment (PUNA_BENCH_VLLM)"
    )
    parser.add_argument("--vllm-model", type=Path, help="the model as a folder for vLLM; default: made from --model")
    builds = [Path(part) for part in os.environ.get("PUNA_BENCH_LLAMA", "").split(os.pathsep) if part]
    parser.add_argument("--llama", type=Path, action="append", help="a build; repeatable (PUNA_BENCH_LLAMA, by colons)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "peers", help="folder for what is made")
    parser.add_argument(
        "--page", type=Path, nargs="?", const=HERE.parent / "docs" / "performance.md", help="fill its table"
    )
    parser.add_argument("--from", type=Path, dest="source", help=f"measure nothing: use this {result}")
    if serving:
        parser.add_argument("--scale", type=float, default=1.0, help="of the loads of servers: 0.1 is a quick trial")
    else:
        parser.add_argument(
            "--plot", type=Path, nargs="?", const=HERE.parent / "docs" / "roofline.svg", help="PNG or SVG"
        )
    options = parser.parse_args()
    options.llama = options.llama or builds
    if options.source is None and (options.model is None or not options.model.is_file()):
        parser.error(f"--model names the GGUF file to measure; {options.model or 'nothing'} is none")
    if options.rounds < 1:
        parser.error("--rounds is 1 at least")
    if serving and not 0 < options.scale <= 10:
        parser.error("--scale is above 0, and 10 at most")
    return options


if __name__ == "__main__":
    main()
