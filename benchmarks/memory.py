"""What `puna serve` keeps in memory: packed weights, keys and values, and the rest, by process.

Starts the real server, answers 32 requests at once, and reads the kernel's account of both processes (Linux) before and
after. What was advised to lie on huge pages is the weights and the pool; weights are counted by the core itself. The
bound is on what the engine keeps beside the two. Run: python benchmarks/memory.py --model smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REST_BOUND_MB = 150.0
MB = 1e6

COUNT_WEIGHTS = """
import sys
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.models.load import load_model
from puna.models.names import resolve
model = load_model(resolve(sys.argv[1]))
print(NativeInterpreter(model.program, model.weights, KVConfig(2)).packed_bytes)
"""


@dataclass(frozen=True)
class Account:
    """One process, in bytes. `advised`: resident memory that may lie on huge pages; `huge`: that does."""

    rss: int
    pss: int
    peak_rss: int
    advised: int
    huge: int


def account(pid: int) -> Account:
    sums = {"Rss": 0, "Pss": 0, "AnonHugePages": 0}
    advised = resident = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in sums:
            sums[name] += int(value.split()[0]) * 1024
        if name == "Rss":
            resident = int(value.split()[0]) * 1024
        if name == "VmFlags" and "hg" in value.split():
            advised += resident
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return Account(sums["Rss"], sums["Pss"], int(peak[1]) * 1024 if peak else 0, advised, sums["AnonHugePages"])


def complete(port: int, model: str, number: int, tokens: int) -> None:
    prompt = " ".join(f"{number} and {word}" for word in range(tokens // 4))
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "seed": number, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        answer.read()


def engine_of(server: int) -> int:
    """The server's child that runs the engine."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return next(int(c) for c in children if b"puna.engine.process" in Path(f"/proc/{c}/cmdline").read_bytes())


def await_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                answer.read()
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server ended before it was ready")


def show(title: str, server: int, engine: int, packed: int, pool: int) -> None:
    accounts = {"engine": account(engine), "server": account(server)}
    kv = accounts["engine"].advised - packed
    rest = accounts["engine"].pss - packed - kv
    print(f"\n{title}")
    print("process      RSS     PSS    peak RSS   on huge pages")
    for name, a in accounts.items():
        print(f"{name:8} {a.rss / MB:7.0f} {a.pss / MB:7.0f} {a.peak_rss / MB:11.0f} {a.huge / MB:15.0f}   MB")
    print(f"packed weights            {packed / MB:7.1f} MB")
    print(f"keys and values           {kv / MB:7.1f} MB resident of a pool of {pool / MB:.0f} MB")
    print(f"the engine's rest         {rest / MB:7.1f} MB, bound {REST_BOUND_MB:.0f} MB")
    print(f"that and the server       {(rest + accounts['server'].pss) / MB:7.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kv-gib", type=float, default=1.0)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="in and out, about")
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    counted = subprocess.run(
        [sys.executable, "-c", COUNT_WEIGHTS, options.model], env=environment, stdout=subprocess.PIPE, check=True
    )
    packed = int(counted.stdout)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from puna.cli.main import main; main()", "serve", "--model", options.model]
    command += ["--port", str(port), "--kv-gib", str(options.kv_gib)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_ready(port, server)
        engine, pool = engine_of(server.pid), int(options.kv_gib * 2**30)
        show("ready", server.pid, engine, packed, pool)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
        with ThreadPoolExecutor(options.sequences) as callers:
            list(callers.map(lambda n: complete(port, model, n, options.tokens), range(options.sequences)))
        show(f"after {options.sequences} answers at once", server.pid, engine, packed, pool)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
