"""The engines that peers.py measures, each as its own real process.

Puna and vLLM answer lines (puna_worker.py, vllm_worker.py), so both get the same prompts and are timed alike; llama.cpp
is measured by its own programs. An engine that waits for its turn is stopped (SIGSTOP): nothing of it can spin.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VOCABULARY = (100, 40000)  # ids that prompts are drawn from
DECODED = 64  # tokens after the first, for the decode part
MODEL_TOKENS = 4096
PROGRAM_TIMEOUT_S = 600
IDLE_S = 3.0  # that an engine has before its turn, for what engines do between requests


class EngineFailedError(Exception):
    """What an engine said when it could not be measured."""


class Worker:
    """A process that answers lines of work with seconds."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self._log = name, log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=dict(environment),
            start_new_session=True,
        )
        self.facts = self._read()
        self.pause()

    @property
    def pid(self) -> int:
        return self._process.pid

    def measure(self, round_number: int) -> dict[str, float]:
        """One round of everything. Tokens a second; `shared32` in seconds."""
        dice = random.Random(f"{round_number}")  # the same prompts for every engine of a round
        os.killpg(self._process.pid, signal.SIGCONT)
        time.sleep(IDLE_S)
        for length in (128, 512) if round_number else (128, 512, 2048):  # warms up
            self._seconds([self._prompt(dice, length)], 4)
        if not round_number:
            self._seconds([self._prompt(dice, 128) for _ in range(32)], 8)
        self._seconds([self._prompt(dice, 128)], 4, alone=True)
        one = [self._seconds([self._prompt(dice, 128)], tokens, alone=True) for tokens in (1, 1 + 2 * DECODED)]
        eight = [self._seconds([self._prompt(dice, 128) for _ in range(8)], tokens) for tokens in (1, 1 + DECODED)]
        head = self._prompt(dice, 1000)
        found = {
            "decode1": 2 * DECODED / (one[1] - one[0]),
            "decode8": 8 * DECODED / (eight[1] - eight[0]),
            "prefill512": 512 / self._seconds([self._prompt(dice, 512)], 1),
            "prefill2048": 2048 / self._seconds([self._prompt(dice, 2048)], 1),
            "batch32": 32 * 128 / self._seconds([self._prompt(dice, 128) for _ in range(32)], 128),
            "sampled32": 32 * 128 / self._seconds([self._prompt(dice, 128) for _ in range(32)], 128, 1.0),
            "shared32": self._seconds([head + self._prompt(dice, 24) for _ in range(32)], 32),
        }
        self.pause()
        return found

    def ask(self, **work: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGCONT)
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _seconds(
        self, prompts: list[list[int]], output_len: int, temperature: float = 0.0, alone: bool = False
    ) -> float:
        """`alone`: as an engine does it that serves one sequence at a time, where that is another one."""
        work = {"prompts": prompts, "output_len": output_len, "temperature": temperature, "top_p": 0.95, "seed": 1}
        return float(self.ask(**work, alone=alone)["seconds"])

    def _prompt(self, dice: random.Random, length: int) -> list[int]:
        return [dice.randrange(*VOCABULARY) for _ in range(length)]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                answer: dict[str, Any] = json.loads(line[1:])
                return answer
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineFailedError(f"{self.name} ended: {last[0][:300]} (all of it is in {self._log})")

    def pause(self) -> None:
        """Stops it until it is asked again."""
        os.killpg(self._process.pid, signal.SIGSTOP)


def puna_worker(model: Path, log: Path, kv_mib: int | None = None) -> Worker:
    command = [sys.executable, str(HERE / "puna_worker.py"), str(model), *([str(kv_mib)] if kv_mib else [])]
    return Worker("Puna", command, os.environ, log)


def vllm_environment(environment_folder: Path) -> dict[str, str]:
    """Bound to all cores (by default it leaves one idle), with the allocator and the OpenMP that its authors advise."""
    cores = sorted(os.sched_getaffinity(0))
    preload = [
        *sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))[:1],
        *[path for path in [environment_folder / "lib" / "libiomp5.so"] if path.exists()],
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(map(str, preload)),
    }
    return environment


def vllm_worker(environment_folder: Path, model_folder: Path, log: Path) -> Worker:
    command = [str(environment_folder / "bin" / "python"), str(HERE / "vllm_worker.py"), str(model_folder)]
    return Worker("vLLM bf16", command, vllm_environment(environment_folder), log)


@dataclass(frozen=True)
class LlamaCpp:
    """One build of llama.cpp with one model file. `whole`: measure batches too, not just single streams."""

    name: str
    folder: Path
    model: Path
    threads: int
    whole: bool

    def measure(self, round_number: int) -> dict[str, float]:
        del round_number
        common = ["-m", str(self.model), "-t", str(self.threads)]
        bench = self._run("llama-bench", *common, "-p", "512,2048", "-n", "128", "-r", "1", "-o", "jsonl")
        names = {(512, 0): "prefill512", (2048, 0): "prefill2048", (0, 128): "decode1"}
        found = {names[row["n_prompt"], row["n_gen"]]: float(row["avg_ts"]) for row in bench}
        if self.whole:
            shape = ["-npp", "128", "-ntg", "128", "-npl", "8,32", "-c", "8448", "-b", "2048", "-ub", "512"]
            rows = self._run("llama-batched-bench", *common, *shape, "--output-format", "jsonl")
            by_count = {row["pl"]: row for row in rows}
            found["decode8"] = float(by_count[8]["speed_tg"])
            found["batch32"] = 32 * 128 / float(by_count[32]["t"])
        return found

    def close(self) -> None:
        pass

    def _run(self, program: str, *arguments: str) -> list[dict[str, Any]]:
        command = [str(self.folder / "bin" / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise EngineFailedError(f"{self.name}: {program} ended with {done.returncode} and said: {said[:300]}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
