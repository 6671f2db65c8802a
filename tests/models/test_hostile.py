"""Descriptions from strangers, for every family: changed config.json or metadata give a model or one clear line.

The tensors stay what they were; what is said about them is not true any more. Nothing may be built from a count that
the file does not have the tensors for. PUNA_FUZZ_EXAMPLES in the environment makes random examples, so many a family.
"""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import ModelFileError
from puna.models.facts import NAMES
from puna.models.families import BY_CONFIG_NAME, BY_GGUF_NAME
from puna.models.gguf import read_gguf
from puna.models.gguf_write import TensorToWrite, gguf_bytes
from puna.models.load import load_model
from tests.models.demanded import config_of, metadata_of, write_family_folder, write_family_gguf

EXAMPLES = int(os.environ.get("PUNA_FUZZ_EXAMPLES", "30"))
ROOM = 4_000_000  # bytes that loading a file of some 100 kB may take beside it
OWN_KEYS = (
    *("activation", "activation_function", "alibi", "bias", "clip_qkv", "do_layer_norm_before", "hidden_act"),
    *("hidden_activation", "layer_norm_elementwise_affine", "layer_types", "max_window_layers", "model_type"),
    *("multi_query", "new_decoder_architecture", "no_rope_layer_interval", "no_rope_layers", "parallel_attn"),
    *("original_max_position_embeddings", "partial_rotary_factor", "qk_layernorm", "query_pre_attn_scalar"),
    *("rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct"),
    *("scale_attn_by_inverse_layer_idx", "scale_attn_weights", "sliding_window_pattern", "text_config"),
    *("use_parallel_residual", "use_sliding_window", "word_embed_proj_dim", "_name_or_path"),
)
KEYS = tuple(sorted({*OWN_KEYS, *(key for _, names in NAMES.values() for key in names)}))
GGUF_KEYS = (
    *(gguf for gguf, _ in NAMES.values()),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scale_linear"),
    *("rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.attn_factor", "vocab_size"),
    *("attention.sliding_window_pattern", "attention.clamp_kqv", "use_parallel_residual", "alibi"),
)
WHOLE = st.sampled_from([0, 1, 2, 3, 7, 16, 64, 4096, 10**6, 10**9, 2**31, 2**63 - 1, -1, -(10**9)])
REAL = st.sampled_from([0.5, -0.5, 1.0, 1e-30, 1e-320, 1e30, 1e308, math.nan, math.inf, -math.inf])
WORD = st.sampled_from(["", "x", "silu", "full_attention", "sliding_attention", "yarn", "longrope", "y" * 500])
SCALAR = st.one_of(st.none(), st.booleans(), WHOLE, REAL, WORD, st.just(10**400))
ENTRY = st.one_of(WHOLE, REAL, WORD, st.booleans())
ROPE_KEYS = (
    *("factor", "original_max_position_embeddings", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast"),
    *("beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate", "partial_rotary_factor", "type"),
)
FACTORS = st.one_of(SCALAR, st.lists(st.one_of(SCALAR, st.just(1.5)), max_size=9), st.just([2.0] * 8))
RULE = st.builds(
    lambda kind, most, rest, factors: {"rope_type": kind} | most | rest | factors,
    st.one_of(st.sampled_from(["linear", "dynamic", "yarn", "llama3", "longrope", "su", "default", "ntk"]), SCALAR),
    st.just({"factor": 4.0, "original_max_position_embeddings": 32}),
    st.dictionaries(st.sampled_from(ROPE_KEYS), st.one_of(SCALAR, st.just(2.0)), max_size=3),
    st.fixed_dictionaries({"short_factor": FACTORS, "long_factor": FACTORS}),
)
VALUE = st.one_of(
    SCALAR,
    st.lists(st.one_of(SCALAR, st.sampled_from(["full_attention", "sliding_attention"])), max_size=4),
    st.dictionaries(st.sampled_from(KEYS), SCALAR, max_size=3),
    RULE,
    st.fixed_dictionaries({"full_attention": RULE, "sliding_attention": RULE}),
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUE, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("families")
    return {name: write_family_folder(base / name, name) for name in BY_CONFIG_NAME}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[TensorToWrite]]]:
    base = tmp_path_factory.mktemp("files")
    found = {}
    for name in BY_GGUF_NAME:
        path = write_family_gguf(base / f"{name}.gguf", name)
        tensors = read_gguf(path).tensors.values()
        found[name] = path, [TensorToWrite(t.name, t.type, t.shape, t.data.tobytes()) for t in tensors]
    return found


def load(path: Path) -> str:
    """What was said of the file; "" where it gave a model. Either is right; other errors and much memory are not."""
    said, described = "", (path / "config.json").stat().st_size if path.is_dir() else 0
    tracemalloc.start()
    try:
        model = load_model(path)
        turned = [frequency for rope in _ropes(model) for frequency in rope]
        assert np.isfinite(np.array(turned, np.float32)).all()
        model.for_texts_of(1_000_000)
        assert model.fingerprint
    except ModelFileError as error:
        said = str(error)
        assert str(path) in said
        assert "\n" not in said
        assert len(said) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ROOM + 4 * described
    return said


def _ropes(model: Any) -> list[tuple[float, ...]]:
    ropes = [layer.attention.rope for layer in model.spec.layers]
    return [(*rope.inverse_frequencies(), rope.magnitude) for rope in ropes if rope is not None]


@pytest.mark.parametrize("family", BY_CONFIG_NAME)
@settings(max_examples=EXAMPLES, deadline=None, derandomize="PUNA_FUZZ_EXAMPLES" not in os.environ)
@given(changes=CHANGES, nested=st.booleans(), gone=st.none() | st.sampled_from(KEYS))
def test_a_changed_config_gives_a_model_or_one_line(
    folders: dict[str, Path], family: str, changes: dict[str, Any], nested: bool, gone: str | None
) -> None:
    config = config_of(family)
    inner = config["text_config"] if nested and "text_config" in config else config
    inner |= changes
    inner.pop(gone, None)
    (folders[family] / "config.json").write_text(json.dumps(config))
    load(folders[family])


@pytest.mark.parametrize("family", BY_GGUF_NAME)
@settings(max_examples=EXAMPLES, deadline=None, derandomize="PUNA_FUZZ_EXAMPLES" not in os.environ)
@given(
    changes=st.dictionaries(
        st.sampled_from(GGUF_KEYS),
        st.one_of(
            st.booleans(),
            WHOLE,
            REAL,
            WORD,
            st.lists(WORD, max_size=3),
            st.lists(WHOLE, max_size=3).map(lambda values: np.array(values, np.int64)),
            st.lists(REAL, min_size=1, max_size=3).map(lambda values: np.array(values, np.float64)),
            st.lists(st.booleans(), max_size=3).map(np.array),
        ),
        min_size=1,
        max_size=3,
    ),
    gone=st.none() | st.sampled_from(GGUF_KEYS),
)
def test_changed_metadata_give_a_model_or_one_line(
    files: dict[str, tuple[Path, list[TensorToWrite]]], family: str, changes: dict[str, Any], gone: str | None
) -> None:
    path, tensors = files[family]
    metadata = metadata_of(family) | {f"{family}.{key}": _written(value) for key, value in changes.items()}
    metadata.pop(f"{family}.{gone}", None)
    path.write_bytes(gguf_bytes(metadata, tensors))
    load(path)


def _written(value: Any) -> Any:
    """An empty array has no type of its own, and a float of GGUF has four bytes."""
    if isinstance(value, np.ndarray) and not value.size:
        return []
    return value if not isinstance(value, float) or abs(value) < 1e38 or not math.isfinite(value) else 1e38


@pytest.mark.parametrize("family", BY_CONFIG_NAME)
@pytest.mark.parametrize(
    "key",
    [
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"),
        *("intermediate_size", "num_experts", "num_local_experts", "num_experts_per_tok", "vocab_size"),
    ],
)
def test_counts_that_no_file_has_tensors_for_cost_nothing(folders: dict[str, Path], family: str, key: str) -> None:
    for count in (10**6, 10**9, 10**18):
        config = config_of(family)
        if family == "gemma3":
            config["text_config"] |= {key: count}
        (folders[family] / "config.json").write_text(json.dumps(config | {key: count}))
        load(folders[family])


RULES: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1},
    "longrope": {"rope_type": "longrope", "long_factor": [1e-300] * 8, "original_max_position_embeddings": 32},
}
SAID: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"num_key_value_heads": 7}, "'num_key_value_heads' is 7"),
    ("llama", {"num_attention_heads": 3}, "'num_attention_heads', 3"),
    ("llama", {"v_head_dim": 8}, "'v_head_dim'"),
    ("llama", {"rope_theta": 1}, "'rope_theta' is 1; expected more than 1"),
    ("gemma3_text", {"rope_local_base_freq": 1e-300}, "'rope_local_base_freq' is 1e-300; expected a number above 1"),
    ("llama", {"partial_rotary_factor": 0.01}, "'partial_rotary_factor' is 0.01"),
    ("llama", {"rope_parameters": RULES["yarn"]}, "'original_max_position_embeddings' is 1; expected at least 2"),
    ("llama", {"rope_parameters": RULES["longrope"]}, "'rope_theta' and the rotary scaling turn by angles"),
    ("qwen2", {"layer_types": ["full_attention"]}, "'layer_types'.*a list of 2"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}, "'layer_types'.*'sliding_attention'"),
    ("smollm3", {"no_rope_layers": [1]}, "'no_rope_layers'"),
    ("gpt2", {"n_positions": 65}, r"wpe\.weight.*has 64 rows; config.json: 'n_positions', 65, asks for 65"),
    ("opt", {"max_position_embeddings": 65}, "has 66 rows;.*asks for 67"),
    ("gemma3", {"text_config": {"text_config": {"text_config": {}}}}, "'num_hidden_layers' is missing"),
    ("mistral", {"model_type": "m" * 5000}, r"\(model_type\) is 'mmm"),
]


@pytest.mark.parametrize(("family", "changes", "said"), SAID)
def test_what_is_wrong_is_named_by_its_key(
    folders: dict[str, Path], family: str, changes: dict[str, Any], said: str
) -> None:
    (folders[family] / "config.json").write_text(json.dumps(config_of(family) | changes))
    with pytest.raises(ModelFileError, match=said):
        load_model(folders[family])


@pytest.mark.parametrize(
    "nest", [lambda depth: "[" * depth + "]" * depth, lambda depth: '{"text_config":' * depth + "1" + "}" * depth]
)
@pytest.mark.parametrize("depth", [30, 100, 900, 1000, 5000, 200_000])
def test_deep_nesting_is_refused_at_any_depth(folders: dict[str, Path], depth: int, nest: Callable[[int], str]) -> None:
    for key in ("hidden_size", "unknown", "rope_parameters", "text_config"):
        text = json.dumps(config_of("llama"))[:-1] + f', "{key}": {nest(depth)}}}'
        (folders["llama"] / "config.json").write_text(text)
        said = load(folders["llama"])
        assert said or depth == 30


@pytest.mark.parametrize(("kind", "size"), [("F8_E4M3", 1), ("I8", 1), ("U8", 1), ("I32", 4), ("F64", 8)])
def test_weights_of_types_that_need_a_scale_are_refused_by_name(tmp_path: Path, kind: str, size: int) -> None:
    folder = write_family_folder(tmp_path / "m", "llama")
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = "model.layers.1.mlp.up_proj.weight"
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    bytes_of_it = size * math.prod(header[name]["shape"])
    header[name] |= {"dtype": kind, "data_offsets": [end, end + bytes_of_it]}
    text = json.dumps(header).encode()
    data = content[8 + length :] + bytes(bytes_of_it)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert f"{name!r} (layers.1.feed_forward.up) has type {kind}, and config.json does not say how" in load(folder)
