"""Threads: how many there are changes no bit, two cores live in one process, and a long step is seen to move."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from puna.errors import InputError, ModelFileError
from puna.kernels.batch import KVConfig, StepBatch, StepOutput
from puna.kernels.cpu import NativeInterpreter, available_threads, paths
from puna.kernels.cpu.threads import may_pin
from puna.models.load import LoadedModel
from tests.kernels.steps import rows, step

KV = KVConfig(num_blocks=40, block_size=16)
CPUS = available_threads(Path("/nowhere"))


def mixed_steps(seed: int) -> list[StepBatch]:
    """A prefill of three sequences, then chunks, single tokens and draws."""
    random = np.random.default_rng(seed)
    tables = [list(range(1 + 8 * r, 9 + 8 * r)) for r in range(3)]
    batches, done = [], [0, 0, 0]
    for lengths in ([37, 1, 20], [1, 50, 1], [1, 1, 1], [0, 7, 33], [1, 1, 1]):
        sequences = []
        for r, length in enumerate(lengths):
            sequences.append((random.integers(0, 300, length).tolist(), done[r], tables[r]))
            done[r] += length
        count = sum(lengths)
        samples = rows(
            range(count),
            temperature=random.choice([0.0, 1.0], count),
            seed=random.integers(0, 2**63, count),
            top_p=random.choice([0.8, 1.0], count),
            num_logprobs=3,
        )
        batches.append(step(sequences, samples))
    return batches


def run(native: NativeInterpreter, batches: list[StepBatch]) -> list[StepOutput]:
    return [native.step(batch) for batch in batches]


def assert_same_bits(found: list[StepOutput], wanted: list[StepOutput]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for field in fields(StepOutput):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_one_two_three_and_eight_threads_give_the_same_bits(tiny: LoadedModel, isa: str, compute: str) -> None:
    outs = []
    for threads in (1, 2, 3, 8):
        options = {"isa": isa, "threads": threads, "cores": threads, "compute": compute}
        native = NativeInterpreter(tiny.program, tiny.weights, KV, **options)  # type: ignore[arg-type]
        assert native.threads == threads
        outs.append(run(native, mixed_steps(1)))
    for out in outs[1:]:
        assert_same_bits(out, outs[0])


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(paths()), reason="needs a processor with both")
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_avx2_and_avx512_give_the_same_bits(tiny: LoadedModel, compute: str) -> None:
    outs = [
        run(NativeInterpreter(tiny.program, tiny.weights, KV, isa=isa, threads=2, compute=compute), mixed_steps(3))
        for isa in ("avx2", "avx512")
    ]
    assert_same_bits(*outs)


def test_two_interpreters_in_two_threads_do_not_know_each_other(tiny: LoadedModel) -> None:
    wanted = [run(NativeInterpreter(tiny.program, tiny.weights, KV, threads=1), mixed_steps(seed)) for seed in (1, 2)]
    natives = [NativeInterpreter(tiny.program, tiny.weights, KV, threads=2) for _ in range(2)]
    found: list[list[list[StepOutput]]] = [[], []]

    def work(which: int) -> None:
        found[which] = [run(natives[which], mixed_steps(1 + which)) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for which in range(2):
        assert len(found[which]) == 20
        for repeat in found[which]:
            assert_same_bits(repeat, wanted[which])


def test_a_step_lets_other_python_threads_run(tiny: LoadedModel) -> None:
    """The interpreter lock is free while a step computes: its counter is seen moving from another thread."""
    native = NativeInterpreter(tiny.program, tiny.weights, KVConfig(100, 16), threads=1, isa="portable")
    long_step = step([([i % 300 for i in range(1500)], 0, range(1, 95))], rows([1499]))
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(native.progress())
            done.wait(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    native.step(long_step)
    done.set()
    watcher.join()
    assert len(seen) > 3


def test_the_counter_moves_with_every_operator_also_in_shared_memory(tiny: LoadedModel) -> None:
    shared = np.zeros(1, np.uint64)
    native = NativeInterpreter(tiny.program, tiny.weights, KV, threads=2, progress=shared)
    assert native.progress() == 0
    native.step(step([([1, 2, 3], 0, [1])], rows([2])))
    operators = len(tiny.program.body) + len(tiny.program.head)
    assert native.progress() == int(shared[0])
    assert native.progress() >= operators
    before = native.progress()
    native.step(step([([4], 3, [1])], rows([])))
    assert native.progress() >= before + len(tiny.program.body)


def test_no_more_threads_get_work_than_there_are_cores(tiny: LoadedModel) -> None:
    for cores, wanted in ((1, 1), (3, 3), (99, 8), (0, min(8, available_threads()))):
        native = NativeInterpreter(tiny.program, tiny.weights, KV, threads=8, cores=cores)
        assert (native.threads, native.engaged_threads) == (8, wanted)


def test_an_idle_interpreter_lets_its_cores_rest(tiny: LoadedModel) -> None:
    native = NativeInterpreter(tiny.program, tiny.weights, KV, threads=8, cores=8)
    run(native, mixed_steps(1))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.2


def one_cpu_threads() -> set[frozenset[int]]:
    """Sets of CPUs of the threads of this process that may run on one only."""
    sets = [frozenset(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
    return {cpus for cpus in sets if len(cpus) == 1}


@pytest.mark.skipif(CPUS < 2 or not may_pin(CPUS), reason="needs two cores, no quota, and a system that pins")
def test_workers_get_a_core_each_and_the_caller_keeps_its_own_mask(tiny: LoadedModel) -> None:
    mask = os.sched_getaffinity(0)
    free = NativeInterpreter(tiny.program, tiny.weights, KV, threads=CPUS, pin=False)
    run(free, mixed_steps(1))
    assert one_cpu_threads() == set()
    pinned = NativeInterpreter(tiny.program, tiny.weights, KV, threads=CPUS)
    run(pinned, mixed_steps(1))
    assert len(one_cpu_threads()) == CPUS - 1
    assert os.sched_getaffinity(0) == mask


def test_what_fails_in_a_worker_is_said_by_the_caller(tiny: LoadedModel) -> None:
    """A scale that no weight has, in the last rows, which a worker packs."""
    name = next(n for n, w in tiny.weights.items() if w.type == "Q4_0")
    bad = tiny.weights[name].data.copy()
    bad[-18:-16] = (0x00, 0x7C)
    weights = {**tiny.weights, name: replace(tiny.weights[name], data=bad)}
    said = r"of type Q4_0: the scale of inputs \d+ to \d+ in row \d+ is not a finite number"
    for threads in (1, 2, 8):
        with pytest.raises(ModelFileError, match=said):
            NativeInterpreter(tiny.program, weights, KV, threads=threads, cores=threads)


def test_a_path_that_cannot_run_here_is_refused_with_those_that_can(tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"'sse9' cannot run here; this machine runs: auto, .*portable"):
        NativeInterpreter(tiny.program, tiny.weights, KV, isa="sse9")
    assert paths()[-1] == "portable"
    assert NativeInterpreter(tiny.program, tiny.weights, KV, threads=1).isa == paths()[0]


def test_the_fingerprint_names_weights_path_compute_and_cache(tiny: LoadedModel) -> None:
    def name(**options: str) -> str:
        dtype = options.pop("dtype", "bf16")
        kv = KVConfig(num_blocks=4, dtype=dtype)
        return NativeInterpreter(tiny.program, tiny.weights, kv, threads=1, **options).fingerprint  # type: ignore[arg-type]

    other = dict(tiny.weights)
    first = next(iter(tiny.program.weights()))
    data = other[first].data.copy()
    data[0] ^= 1
    other[first] = type(other[first])(first, other[first].type, other[first].shape, data)
    changed = NativeInterpreter(tiny.program, other, KVConfig(4), threads=1).fingerprint
    assert name() == name()
    assert len({name(), changed, name(isa="portable"), name(compute="float32"), name(dtype="f32")}) == 5


NESTED = "0::/outer/inner\n"
OLD = "3:cpu,cpuacct:/outer\n1:memory:/else\n"


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        (NESTED, {}, CPUS),
        (NESTED, {"cpu.max": "max 100000\n"}, CPUS),
        (NESTED, {"cpu.max": "50000 100000\n"}, 1),
        (NESTED, {"outer/cpu.max": "100000 100000\n"}, 1),
        (NESTED, {"outer/inner/cpu.max": "100000 100000\n", "outer/cpu.max": "max 100000\n"}, 1),
        (NESTED, {"outer/inner/cpu.max": "max 100000\n", "outer/cpu.max": "40000 100000\n"}, 1),
        (NESTED, {"outer/other/cpu.max": "100000 100000\n"}, CPUS),
        (NESTED, {"outer/inner/cpu.max": "150000 100000\n"}, min(2, CPUS)),
        (NESTED, {"cpu.max": "10000000 100000\n"}, CPUS),
        (NESTED, {"cpu.max": "1000 100000\n"}, 1),
        (NESTED, {"cpu.max": "nonsense\n"}, CPUS),
        (NESTED, {"cpu.max": ""}, CPUS),
        (NESTED, {"cpu.max": "1000 0\n"}, CPUS),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("", {"cpu.max": "100000 100000\n"}, CPUS),
        (OLD, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CPUS),
        (OLD, {"cpu/outer/cpu.cfs_quota_us": "60000\n", "cpu/outer/cpu.cfs_period_us": "100000\n"}, 1),
        (OLD, {"cpu/else/cpu.cfs_quota_us": "60000\n", "cpu/else/cpu.cfs_period_us": "100000\n"}, CPUS),
        (OLD, {"cpu/cpu.cfs_quota_us": "120000\n", "cpu/cpu.cfs_period_us": "100000\n"}, min(2, CPUS)),
        (OLD, {"cpu/cpu.cfs_quota_us": "120000\n"}, CPUS),
    ],
)
def test_the_least_quota_of_the_control_groups_bounds_the_threads(
    tmp_path: Path, groups: str, files: dict[str, str], wanted: int
) -> None:
    texts = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_threads(tmp_path) == wanted


def test_threads_are_pinned_only_where_they_are_all_that_the_process_may_use(tmp_path: Path) -> None:
    assert may_pin(CPUS, tmp_path)
    assert not may_pin(CPUS + 1, tmp_path)
    assert not may_pin(CPUS - 1, tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("10000000 100000\n")
    assert not may_pin(CPUS, tmp_path)
