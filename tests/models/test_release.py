"""The pages of a model file are given back when its weights are packed, and its contents stay readable."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from puna.models.gguf import parse_gguf, read_gguf
from tests.tiny import write_tiny_llama

SMAPS = Path("/proc/self/smaps")


def resident_bytes(path: Path) -> int:
    """Of the mappings of a file."""
    found, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's account of mappings")
def test_released_pages_leave_memory_and_come_back_unchanged(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    file = read_gguf(path)
    before = {name: np.array(tensor.data) for name, tensor in file.tensors.items()}
    assert resident_bytes(path) > 0
    file.release_pages()
    assert resident_bytes(path) == 0
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(tensor.data, before[name])


def test_bytes_that_are_not_mapped_have_nothing_to_release(tmp_path: Path) -> None:
    content = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    file = parse_gguf(content, "tiny.gguf")
    file.release_pages()
    assert bytes(file.content) == content
