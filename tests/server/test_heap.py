"""The server's threads share heaps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.process import ServerProcess

# In a process of its own: the switch is for ever. Each thread takes and gives back what glibc counts in its heap.
COUNT = """
import ctypes, re, sys, tempfile, threading
from puna.server.heap import share_heaps
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    sys.exit("no glibc")
assert sys.argv[1] == "apart" or share_heaps()
met = threading.Barrier(6)
def work():
    libc.malloc.restype = ctypes.c_void_p
    taken = [ctypes.c_void_p(libc.malloc(4000)) for _ in range(50)]
    met.wait()
    for one in taken:
        libc.free(one)
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.NamedTemporaryFile("r") as file:
    libc.fopen.restype = ctypes.c_void_p
    opened = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, opened)
    libc.fclose(opened)
    print(len(re.findall("<heap ", file.read())))
"""


def heaps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_threads_share_heaps_where_they_would_have_their_own() -> None:
    assert heaps("apart") > 2
    assert heaps("together") == 2


def test_a_servers_threads_do_so(server: ServerProcess) -> None:
    """glibc reserves 64 MiB for a thread's heap, of which it then makes usable what is needed."""
    assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}).status_code == 200
    reserved = []
    for line in Path(f"/proc/{server.process.pid}/maps").read_text().splitlines():
        place, access, *_ = line.split()
        start, end = (int(bound, 16) for bound in place.split("-"))
        if access == "---p" and 32 << 20 < end - start < 64 << 20:
            reserved.append(line)
    assert len(reserved) <= 1
