"""What the process may use is found, shared out and accounted for before anything is allocated."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from puna.engine.config import EngineConfig
from puna.engine.limits import MemoryLimit, memory_limits
from puna.engine.memory import MemoryPlan, format_bytes, memory_table, plan_memory
from puna.errors import MemoryBudgetError
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.cpu import NativeInterpreter, paths
from puna.models.load import load_model
from tests.tiny import write_tiny_llama

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree: 10 kB\nMemAvailable:    8388608 kB\n"


def machine(root: Path, files: dict[str, str]) -> list[MemoryLimit]:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory_limits(root)


def test_without_groups_the_machines_available_memory_is_the_limit(tmp_path: Path) -> None:
    (limit,) = machine(tmp_path, {})
    assert (limit.total_bytes, limit.free_bytes) == (16 * GIB, 8 * GIB)


def test_a_version_2_group_limits_through_any_of_its_parents(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/session"
    limit = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/session\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "5\n",
            "sys/fs/cgroup/user/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
        },
    )[0]
    assert "user" in limit.name
    assert (limit.total_bytes, limit.free_bytes) == (2 * GIB, 3 * GIB // 2)


def test_a_version_1_group_limits(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/box"
    limit = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n",
            f"{group}/memory.limit_in_bytes": f"{GIB}\n",
            f"{group}/memory.usage_in_bytes": f"{GIB // 4}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
        },
    )[0]
    assert (limit.total_bytes, limit.free_bytes) == (GIB, 3 * GIB // 4)


def test_odd_files_are_skipped(tmp_path: Path) -> None:
    odd = {"proc/self/cgroup": "nonsense\n0::\n", "sys/fs/cgroup/memory.max": "lots\n"}
    assert len(machine(tmp_path, odd)) == 1


def test_the_address_space_limit_counts(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (64 * GIB, hard))
        names = [limit.name for limit in machine(tmp_path, {"proc/self/status": "VmSize:\t1048576 kB\n"})]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "address space (ulimit -v)" in names


def test_this_machine_has_memory() -> None:
    assert memory_limits()[0].free_bytes > 0


def plan(tiny: Path, free: int, **options: object) -> MemoryPlan:
    model = load_model(tiny)
    config = EngineConfig(model=str(tiny), **{"kv_dtype": "f16", **options})  # type: ignore[arg-type]
    return plan_memory(config, model.program, model.weights, 256, [MemoryLimit("test box", 2 * free, free)])


def test_with_room_the_pool_holds_every_context_whole(tiny: Path) -> None:
    made = plan(tiny, GIB, max_seqs=4)
    assert made.kv.num_blocks == 4 * 256 // 16 + 1


def test_an_int8_pool_holds_nearly_twice_as_many_blocks(tiny: Path) -> None:
    """A token and key head of 16 dimensions: 64 bytes in f16, 32 and two scales in int8."""
    halves, bytes_ = (plan(tiny, GIB, kv_bytes=1 << 20, kv_dtype=dtype).kv.num_blocks for dtype in ("f16", "int8"))
    assert bytes_ == halves * 64 // 40


def test_with_less_room_the_pool_takes_its_share_of_what_is_free(tiny: Path) -> None:
    program = load_model(tiny).program
    made = plan(tiny, 32 << 20, max_seqs=64, budget_tokens=64, memory_share=0.1)
    rows = {row.name: row.bytes for row in made.rows}
    free = (32 << 20) - rows["weights"] - rows["working space"]
    assert rows["keys and values"] == made.kv.num_blocks * kv_bytes_per_block(program, made.kv)
    assert 0.09 * free < rows["keys and values"] <= 0.1 * free
    assert sum(rows.values()) == 32 << 20, "the account adds up, with what is left"


def test_swap_space_is_planned_beside_the_pool(tiny: Path) -> None:
    assert plan(tiny, GIB, swap_bytes=1 << 20).kv.tier_blocks == (1 << 20) // 4096


def test_a_pool_that_does_not_fit_says_what_is_used_by_what_and_what_fits(tiny: Path) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        plan(tiny, 16 << 20, kv_bytes=1 << 30, budget_tokens=64)
    message = str(caught.value)
    assert "keys and values 1.0 GiB" in message
    assert "test box" in message
    fits = int(message.split("kv_bytes=")[1].split()[0])
    assert plan(tiny, 16 << 20, kv_bytes=fits, budget_tokens=64).kv.num_blocks > 2


def test_a_model_that_does_not_fit_at_all_is_refused(tiny: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"smaller model|kv_bytes="):
        plan(tiny, 100_000)


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize("types", [{"": "BF16"}, {"": "F16"}, {"": "Q4_1", "attn_q": "BF16", "token_embd": "F16"}])
def test_packed_weights_fit_into_what_the_account_gives_them(
    tmp_path: Path, types: dict[str, str], compute: str, isa: str
) -> None:
    """Weights of two bytes are counted, and kept, as two bytes on every path, with float32 sums too."""
    path = write_tiny_llama(tmp_path / "halves.gguf", types=types, tied=False)
    model = load_model(path)
    rows = {row.name: row.bytes for row in plan(path, GIB, compute=compute, isa=isa).rows}
    native = NativeInterpreter(model.program, model.weights, KVConfig(2), isa=isa, compute=compute)
    assert native.packed_bytes <= 1.05 * rows["weights"]
    if "Q4_1" not in types.values() and not ("F16" in types.values() and isa == "portable"):
        matrices = sum(t.nbytes for t in model.weights.values() if len(t.shape) == 2)
        assert rows["weights"] <= 1.05 * matrices


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_the_account_of_a_quantised_checkpoint_is_of_its_codes_where_they_are_multiplied(compute: str) -> None:
    path = Path(__file__).parents[1] / "models" / "data" / "packed" / "autoawq"
    model = load_model(path)
    config = EngineConfig(model=str(path), compute=compute, kv_dtype="f16", isa="avx2")
    planned = plan_memory(config, model.program, model.weights, 128, [MemoryLimit("test box", GIB, GIB)]).rows[0].bytes
    native = NativeInterpreter(model.program, model.weights, KVConfig(2), isa="avx2", compute=compute)
    assert 0.95 * planned <= native.packed_bytes <= 1.05 * planned


def test_the_account_can_be_printed(tiny: Path) -> None:
    names = [name for name, _, _ in memory_table(plan(tiny, GIB))]
    assert names == ["weights", "working space", "keys and values", "swap space", "left free"]
    assert [format_bytes(n) for n in (5, 1536, 3 << 20, 5 << 40)] == ["5 B", "1.5 KiB", "3.0 MiB", "5.0 TiB"]
