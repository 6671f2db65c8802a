"""From a file to a description, a program and weights that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import ModelFileError, PunaError
from puna.kernels.program import Attend, Gate, KVShape, Linear, RmsNorm, Rope, Softcap, StoreKV
from puna.models.gguf import read_gguf
from puna.models.gguf_write import TensorToWrite, encode, write_gguf
from puna.models.inspect import describe
from puna.models.load import LoadedModel, load_model
from puna.models.lowering import lower, weight_shapes
from puna.models.spec import (
    AttentionSpec,
    BranchSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from puna.models.template import ChatTemplate
from tests.tiny import write_tiny_llama


def test_the_tiny_model_is_described_as_it_was_written(tiny: LoadedModel) -> None:
    spec = tiny.spec
    assert (spec.family, spec.width, spec.vocab_size, spec.context_length) == ("llama", 64, 300, 256)
    assert len(spec.layers) == 2
    attention = spec.layers[1].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.scale) == (4, 2, 16, 0.25)
    assert attention.rope == RopeSpec("interleaved", 16, 10000.0)
    assert spec.layers[0].feed_forwards == (FeedForwardSpec(96, "silu"),)
    assert spec.tied_head


def test_every_weight_of_the_program_is_bound_with_its_shape(tiny: LoadedModel) -> None:
    shapes = weight_shapes(tiny.program)
    assert tuple(tiny.weights) == tiny.program.weights()
    assert {name: weight.shape for name, weight in tiny.weights.items()} == shapes
    assert shapes["layers.1.attention.key"] == (32, 64)
    assert shapes["layers.0.feed_forward.down"] == (64, 96)


def test_a_llama_layer_is_the_line_of_operators_that_the_papers_draw(tiny: LoadedModel) -> None:
    layer = " ".join(type(op).__name__ for op in tiny.program.body[1:14])
    assert layer == ("RmsNorm Linear Linear Linear Rope Rope StoreKV Attend Linear RmsNorm Linear Linear Gate")
    down = tiny.program.body[14]
    assert down == Linear("gate", "hidden", "layers.0.feed_forward.down", accumulate=True)
    assert tiny.program.head == (
        RmsNorm("hidden", "normed", "output_norm", tiny.spec.layers[0].branches[0].norm_before.eps),  # type: ignore[union-attr]
        Linear("normed", "logits", "embedding"),
    )
    assert tiny.program.kv == (KVShape(2, 16),) * 2
    assert tiny.program.buffers["logits"] == tiny.program.vocab_size == 300


def test_an_untied_head_has_its_own_matrix(tmp_path: Path) -> None:
    model = load_model(write_tiny_llama(tmp_path / "m.gguf", tied=False))
    assert not model.spec.tied_head
    assert model.program.head[-1] == Linear("normed", "logits", "output")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_element_type_loads(tmp_path: Path, kind: str) -> None:
    model = load_model(write_tiny_llama(tmp_path / "m.gguf", types=kind))
    assert model.weights["layers.0.attention.query"].type == kind
    assert model.weights["layers.0.attention.norm"].type == "F32"


def test_rotary_frequencies_follow_base_factor_and_the_files_table() -> None:
    plain = RopeSpec("interleaved", 8, 100.0)
    assert plain.inverse_frequencies() == pytest.approx((1, 100**-0.25, 0.1, 100**-0.75))
    stretched = RopeSpec("interleaved", 8, 100.0, linear_factor=4.0, frequency_factors=(1.0, 2.0, 4.0, 8.0))
    assert stretched.inverse_frequencies() == pytest.approx((1 / 4, 100**-0.25 / 8, 0.1 / 16, 100**-0.75 / 32))


def test_linear_rope_scaling_is_read_from_metadata(tmp_path: Path) -> None:
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    model = load_model(write_tiny_llama(tmp_path / "m.gguf", metadata=metadata))
    rope = next(op for op in model.program.body if isinstance(op, Rope))
    assert rope.inv_freq[0] == 0.25


def test_llama_3_frequency_factors_are_read_from_their_tensor(tmp_path: Path) -> None:
    factors = encode("rope_freqs.weight", np.arange(1, 9, dtype=np.float32), "F32")
    model = load_model(with_tensors(tmp_path, add=[factors]))
    rope = next(op for op in model.program.body if isinstance(op, Rope))
    assert rope.inv_freq[1] == pytest.approx(10000 ** (-1 / 8) / 2)


def test_biases_are_used_where_the_file_has_them(tmp_path: Path) -> None:
    bias = encode("blk.1.attn_q.bias", np.ones(64, np.float32), "F32")
    model = load_model(with_tensors(tmp_path, add=[bias]))
    biases = [op.bias for op in model.program.body if isinstance(op, Linear) and op.bias]
    assert biases == ["layers.1.attention.query.bias"]


def with_tensors(folder: Path, *, add: list[TensorToWrite] | None = None, without: str = "", **metadata: Any) -> Path:
    """The tiny model with tensors added, or one left out."""
    file = read_gguf(write_tiny_llama(folder / "base.gguf", metadata=metadata))
    tensors = [TensorToWrite(t.name, t.type, t.shape, t.data.tobytes()) for t in file.tensors.values()]
    write_gguf(folder / "m.gguf", file.metadata, [t for t in tensors if t.name != without] + (add or []))
    return folder / "m.gguf"


def test_a_missing_tensor_is_named_with_the_shape_it_should_have(tmp_path: Path) -> None:
    path = with_tensors(tmp_path, without="blk.1.ffn_up.weight")
    with pytest.raises(ModelFileError, match=r"m\.gguf: tensor 'blk\.1\.ffn_up\.weight' .* missing.*\(96, 64\)"):
        load_model(path)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    wrong = encode("blk.0.attn_k.weight", np.zeros((64, 64), np.float32), "F32")
    path = with_tensors(tmp_path, without="blk.0.attn_k.weight", add=[wrong])
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_k\.weight.*\(64, 64\); expected \(32, 64\)"):
        load_model(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "mamba"}, "'mamba'; Puna knows: falcon, gemma"),
        ({"general.architecture": None}, "general.architecture' is None; expected a string"),
        ({"llama.block_count": 2**31 - 1}, "llama.block_count"),
        ({"llama.block_count": "many"}, "whole number"),
        ({"llama.context_length": 1}, "from 2 to"),
        (
            {"llama.attention.head_count": 3, "llama.attention.head_count_kv": 3, "llama.attention.key_length": None},
            "does not divide",
        ),
        ({"llama.attention.head_count_kv": 3}, "cannot share"),
        ({"llama.attention.head_count_kv": np.array([2, 2, 2], np.int32)}, "2 whole numbers"),
        ({"llama.attention.key_length": 2**30}, "llama.attention.key_length"),
        ({"llama.attention.value_length": 8}, "different length"),
        ({"llama.rope.dimension_count": 7}, "even"),
        ({"llama.rope.dimension_count": 64}, "rope.dimension_count"),
        ({"llama.rope.freq_base": -1.0}, "above 0"),
        ({"llama.rope.freq_base": float("nan")}, "expected a number"),
        ({"llama.rope.scaling.type": "spiral"}, "'spiral' is not supported"),
        ({"llama.expert_count": 8}, "llama.expert_used_count' is missing"),
        ({"llama.embedding_length": 0}, "embedding_length"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "is missing"),
    ],
)
def test_metadata_that_describe_no_llama_are_refused(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(ModelFileError, match=said):
        load_model(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_never_does_more_than_raise(
    tiny: LoadedModel, tmp_path_factory: Any, data: st.DataObject
) -> None:
    """Any bytes of the header changed: description, program, weights and tokenizer come out, or a PunaError."""
    content = bytearray(tiny.path.read_bytes())
    for position in data.draw(st.lists(st.integers(8, tiny.file.data_start - 1), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    refusal = None
    try:
        model = load_model(path)
        ids = model.tokenizer.encode("hello <|im_end|> 123")
        model.tokenizer.decode(ids)
        if model.chat_template is not None:
            ChatTemplate(model.chat_template).render([{"role": "user", "content": "hi"}])
    except PunaError as error:
        refusal = error
    assert refusal is None or len(str(refusal)) < 2000


def test_the_fingerprint_tells_files_apart_and_stays_for_a_copy(tmp_path: Path) -> None:
    one, again, other = (
        load_model(write_tiny_llama(tmp_path / f"{name}.gguf", seed=seed)).fingerprint
        for name, seed in [("one", 0), ("again", 0), ("other", 1)]
    )
    assert one == again != other


def test_layers_may_differ_in_width() -> None:
    norm = NormSpec("rms", 1e-5)
    layers = tuple(
        LayerSpec(
            (
                BranchSpec("attention", AttentionSpec(heads, 1, 8, 0.5, None), norm_before=norm),
                BranchSpec("feed_forward", FeedForwardSpec(width, "silu"), norm_before=norm),
            )
        )
        for heads, width in [(2, 32), (4, 64)]
    )
    program = lower(ModelSpec("test", 16, 10, 64, layers, norm, tied_head=True))
    shapes = weight_shapes(program)
    assert shapes["layers.0.attention.query"] == (16, 16)
    assert shapes["layers.1.attention.query"] == (32, 16)
    assert shapes["layers.1.feed_forward.down"] == (16, 64)


def test_other_block_layouts_are_other_lists_of_branches() -> None:
    """Norms after the branch, half-step feed-forwards on both sides of the attention, no gate, softcaps."""
    norm = NormSpec("layer", 1e-5, bias=True)
    half = FeedForwardSpec(32, "relu", gated=False, up_bias=True, down_bias=True)
    attention = AttentionSpec(2, 2, 8, 0.5, None, window=4, softcap=50.0, query_key_norm=NormSpec("rms", 1e-6))
    layer = LayerSpec(
        (
            BranchSpec("first", half, norm_after=norm, factor=0.5),
            BranchSpec("attention", attention, norm_before=norm, norm_after=norm),
            BranchSpec("second", half, norm_before=norm, factor=0.5),
        )
    )
    spec = ModelSpec(
        "test",
        16,
        10,
        64,
        (layer,),
        norm,
        tied_head=False,
        embedding_scale=4.0,
        learned_positions=64,
        logit_softcap=30.0,
    )
    program = lower(spec)
    body = " ".join(type(op).__name__ for op in program.body)
    assert body == (
        "Embed Scale EmbedPositions "
        "Linear Activate Linear LayerNorm Scale Add "
        "LayerNorm Linear Linear Linear RmsNorm RmsNorm StoreKV Attend Linear LayerNorm Add "
        "LayerNorm Linear Activate Linear Scale Add"
    )
    attend = next(op for op in program.body if isinstance(op, Attend))
    assert (attend.window, attend.softcap) == (4, 50.0)
    assert program.head[-1] == Softcap("logits", 30.0)
    shapes = weight_shapes(program)
    assert shapes["layers.0.first.up.bias"] == (32,)
    assert shapes["layers.0.attention.query_norm"] == (8,)
    assert shapes["layers.0.second.norm.bias"] == (16,)


def test_every_operator_reads_a_buffer_that_was_written_before(tiny: LoadedModel) -> None:
    written: set[str] = set()
    for op in tiny.program.body + tiny.program.head:
        inputs = {
            StoreKV: ("key", "value"),
            Attend: ("query",),
            Gate: ("gate", "up"),
            Rope: ("buffer",),
        }.get(type(op), ("src",))
        read = {getattr(op, field) for field in inputs if hasattr(op, field)}
        assert read <= written, op
        written |= {op.out} if hasattr(op, "out") else set()
    assert written == set(tiny.program.buffers)


def test_a_file_is_described_for_people(tiny_path: Path) -> None:
    report = describe(tiny_path)
    assert (report.name, report.family, report.layers, report.licence) == ("Tiny Llama", "llama", 2, "apache-2.0")
    assert report.parameters == 300 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64) + 5 * 64
    assert report.kv_bytes_per_token == {"f16": 256, "f32": 512, "int8": 160}
    assert report.types[0].type == "F32"
    assert report.bits_per_parameter == 32
    assert report.tokenizer == "byte-level BPE (smollm), 300 tokens"
    assert report.chat_template


def test_a_quantised_folder_is_described_as_it_lies_and_as_it_runs() -> None:
    packed = Path(__file__).parent / "data" / "packed"
    report = describe(packed / "autoawq")
    shares = {share.type: (share.tensors, share.parameters, share.bytes) for share in report.matrices}
    assert shares == {"Q4_Z": (7, 30_720, 19_200), "F16": (1, 4096, 8192)}  # five bits a weight, sixteen
    assert {share.type: share.tensors for share in report.types} == {"I32": 14, "F16": 11}
    assert report.parameters == 30_720 + 4096 + 3 * 64
    assert 6 < report.bits_per_parameter < 6.1  # four, a scale and a zero for 32, and the table of tokens
    assert [share.type for share in describe(packed / "auto-gptq-4").matrices] == ["F16"]


def test_an_unusable_tokenizer_is_reported_not_raised(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", metadata={"tokenizer.ggml.model": "bert"})
    assert "unusable" in describe(path).tokenizer


@pytest.mark.model
def test_smollm2_opens_as_what_it_is(smollm2: LoadedModel) -> None:
    spec = smollm2.spec
    assert (len(spec.layers), spec.width, spec.vocab_size, spec.context_length) == (30, 576, 49152, 8192)
    attention = spec.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (9, 3, 64)
    assert spec.tied_head
    assert smollm2.weights["embedding"].type == "Q8_0"
    assert describe(smollm2.path).parameters == 134_515_008
