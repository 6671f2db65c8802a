"""Large memory of the native core: lazy, on huge pages where the system allows, and gone with its interpreter."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.cpu import NativeInterpreter
from puna.models.load import LoadedModel
from tests.kernels.steps import step

SMAPS = Path("/proc/self/smaps")
POOL_BYTES = 1 << 29
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's account of mappings")


def advised() -> tuple[int, int]:
    """Bytes mapped that may lie on huge pages, and how many of them are resident."""
    size = resident = mapped = used = 0
    for line in SMAPS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0]) * 1024
        elif name == "Rss":
            resident = int(value.split()[0]) * 1024
        elif name == "VmFlags" and "hg" in value.split():
            mapped, used = mapped + size, used + resident
    return mapped, used


def test_a_pool_may_lie_on_huge_pages_and_takes_no_memory_before_it_is_used(tiny: LoadedModel) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without huge pages")
    mapped, used = advised()
    blocks = POOL_BYTES // kv_bytes_per_block(tiny.program, KVConfig(1))
    native = NativeInterpreter(tiny.program, tiny.weights, KVConfig(blocks), threads=2)
    now_mapped, now_used = advised()
    assert now_mapped - mapped >= 0.99 * POOL_BYTES
    assert now_used - used <= 8 * MIB
    native.step(step([([1, 2, 3], 0, [blocks - 1])]))
    assert advised()[1] - used <= POOL_BYTES // 2
    del native
    assert advised()[0] == mapped


def test_a_pool_is_touched_ahead_of_its_use_and_no_further_and_keeps_what_it_holds(tiny: LoadedModel) -> None:
    block_bytes = kv_bytes_per_block(tiny.program, KVConfig(1))
    ahead, blocks = 32 * MIB, POOL_BYTES // block_bytes
    plain = NativeInterpreter(tiny.program, tiny.weights, KVConfig(64), threads=2)
    _, used = advised()
    native = NativeInterpreter(tiny.program, tiny.weights, KVConfig(blocks), threads=2, touched_ahead=ahead)
    tokens = list(range(1, 17))
    native.step(step([(tokens, 0, [1])]))  # written before memory is touched, read after it
    assert wait_for_resident(used + ahead) <= used + ahead + 8 * MIB
    last = 256 * MIB // block_bytes
    native.step(step([([3], 0, [last])]))
    assert wait_for_resident(used + (256 * MIB) + ahead) <= used + 256 * MIB + ahead + 8 * MIB
    plain.step(step([(tokens, 0, [1])]))
    ours, theirs = (core.step(step([([17], 16, [1, 2])])).logits for core in (native, plain))
    assert ours is not None
    assert theirs is not None
    assert (ours == theirs).all()


def wait_for_resident(wanted: int) -> int:
    """Bytes that are resident when they are as many as `wanted`, or after a while when they are not."""
    for _ in range(400):
        if advised()[1] >= wanted:
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{advised()[1]} bytes are resident, not {wanted}")
    time.sleep(0.2)
    return advised()[1]


@pytest.mark.model
def test_packed_weights_lie_on_huge_pages_where_the_system_has_them(smollm2: LoadedModel) -> None:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or re.search(r"\[never\]", mode.read_text()):
        pytest.skip("a system without huge pages")
    mapped, used = advised()
    native = NativeInterpreter(smollm2.program, smollm2.weights, KVConfig(2), threads=2)
    packed = native.packed_bytes
    now_mapped, now_used = advised()
    assert now_mapped - mapped >= packed
    assert packed * 0.95 <= now_used - used <= packed + 8 * MIB
