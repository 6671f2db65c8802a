"""Step times from a file, or by name. Knows formats and where the numbers come from; runs nothing.

Two formats: JSON as `puna bench steps --json` writes it, and CSV of kernel times by tokens as the Vidur project
publishes them (gzipped or not), where attention is not measured and follows from the device's figures.
"""

from __future__ import annotations

import csv
import gzip
import statistics
from collections import defaultdict
from pathlib import Path

import msgspec

from puna.errors import InputError
from puna.plan.step_time import StepTime

# A100: medians of Vidur's kernel times for Llama-2-7B, times 13.0 / 6.74 parameters; attention by `_attention`.
A100_13B = StepTime(
    name="a100-13b",
    points=(
        (1, 0.0180),
        (64, 0.0188),
        (128, 0.0238),
        (256, 0.0346),
        (512, 0.0649),
        (1024, 0.1319),
        (2048, 0.2596),
        (4096, 0.5084),
    ),
    key_s=6.6e-7,
    prompt_key_s=5.3e-9,
    copy_s=1.7e-5,
    swap_s=5.2e-4,
)
# A10G: the model that the artifact of "Fairness in Serving Large Language Models" was fitted with, Llama-2-7B.
A10G_7B = StepTime(name="a10g-7b", points=((0, 0.020), (1000, 0.234)), row_s=0.000686)
# Two cores of a Xeon with AMX, SmolLM2-135M Q4_1: whole steps and attention behind 192 keys as docs/performance.md has
# them from `puna bench kernels`, the latter taken off.
XEON_135M = StepTime(
    name="xeon-135m",
    points=((1, 0.00500), (8, 0.00643), (32, 0.01607), (512, 0.06268)),
    key_s=5.6e-7,
    prompt_key_s=7.1e-8,
)
BUILT_IN = {profile.name: profile for profile in (A100_13B, A10G_7B, XEON_135M)}

_DEVICES = {"a100": (1.555e12, 312e12), "h100": (3.35e12, 989e12)}  # bytes, operations (bf16) a second
_REACHED = (0.8, 0.5)  # the share of both that attention reaches
_TWICE = ("add",)  # once behind attention, once behind the feed-forward layer
_ONCE = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
)
_LAYERS_OF = {4096: 32, 5120: 40, 8192: 80}  # the CSV has widths, not layers


def step_times(name: str) -> StepTime:
    """By a built-in name, or from a file. InputError where it is neither."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        known = ", ".join(BUILT_IN)
        raise InputError(f"cannot read the step times {name}: {reason}; by name there are {known}") from None
    try:
        if data.lstrip()[:1] == b"{":
            return msgspec.json.decode(data, type=StepTime)
        return _vidur(path, data.decode())
    except InputError:
        raise
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no step times: {error}; write them with puna bench steps --json") from None


def _vidur(path: Path, text: str) -> StepTime:
    """Of one device: rows with one tensor-parallel worker. The output head is not in the file, nor here."""
    device = path.name.partition("_")[0].lower()
    if device not in _DEVICES:
        raise InputError(f"{path} is of an unknown device; its name begins with one of {', '.join(_DEVICES)}")
    found: dict[int, list[float]] = defaultdict(list)
    width = heads_kv = heads = 0
    for row in csv.DictReader(text.splitlines()):
        if int(row["num_tensor_parallel_workers"]) != 1:
            continue
        width, heads, heads_kv = int(row["n_embd"]), int(row["n_head"]), int(row["n_kv_head"])
        layer = sum(float(row[f"time_stats.{name}.median"]) for name in _ONCE)
        layer += 2 * sum(float(row[f"time_stats.{name}.median"]) for name in _TWICE)
        head = float(row["time_stats.emb.median"])
        found[int(row["num_tokens"])].append(1e-3 * (head + _LAYERS_OF[width] * layer))
    if not found:
        raise InputError(f"{path} has no rows of a single device (num_tensor_parallel_workers 1)")
    key_s, prompt_key_s = _attention(device, _LAYERS_OF[width], width, width * heads_kv // heads)
    return StepTime(
        name=path.name.partition(".")[0],
        points=tuple((tokens, statistics.median(seconds)) for tokens, seconds in sorted(found.items())),
        key_s=key_s,
        prompt_key_s=prompt_key_s,
    )


def _attention(device: str, layers: int, width: int, kv_width: int) -> tuple[float, float]:
    """Seconds a key for one token (its bytes, keys and values of 16 bits), and for one of many (two products)."""
    bandwidth, operations = _DEVICES[device]
    return layers * 4 * kv_width / (_REACHED[0] * bandwidth), layers * 4 * width / (_REACHED[1] * operations)
