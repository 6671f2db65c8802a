"""Checkpoints written by compressed-tensors itself: values beside those that it decodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")

import torch

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.load import load_model
from puna.models.packed_weights import plain_weights
from tests.oracle.running import logits
from tests.oracle.small_models import IDS

pytestmark = pytest.mark.oracle
TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
}


def refuse(message: str) -> Any:
    raise ModelFileError(message)


def raw(name: str, values: Any) -> RawTensor:
    data = values.reshape(-1).clone().view(torch.uint8).numpy()
    return RawTensor(name, TYPES[values.dtype], tuple(values.shape), data)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 32])
def test_packed_whole_numbers(bits: int, symmetric: bool, group: int | None, dtype: str) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize as theirs

    random = torch.Generator().manual_seed(3)
    outputs, inputs, half = 24, 64, 1 << (bits - 1)
    groups = inputs // group if group else 1
    q = torch.randint(-half, half, (outputs, inputs), generator=random, dtype=torch.int8)
    scales = torch.rand((outputs, groups), generator=random).to(getattr(torch, dtype)) * 0.01
    zeros = torch.randint(-half, half, (outputs, groups), generator=random, dtype=torch.int8)
    zeros = None if symmetric else zeros
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel", group_size=group
    )
    wanted = theirs(q, scales, zeros, args)
    tensors = [
        raw("x.weight_packed", pack_to_int32(q, bits)),
        raw("x.weight_scale", scales),
        raw("x.weight_shape", torch.tensor([outputs, inputs])),
    ]
    if zeros is not None:
        tensors.append(raw("x.weight_zero_point", pack_to_int32(zeros, bits, packed_dim=0)))
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    made = plain_weights({each.name: each for each in tensors}, config, refuse)["x.weight"]
    assert np.array_equal(dequantize(made), wanted.float().numpy())


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("per_row", [True, False])
def test_eight_bits_with_a_scale_a_row_or_one(kind: str, per_row: bool) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize as theirs

    random = torch.Generator().manual_seed(4)
    q = (torch.randn((24, 64), generator=random) * 40).clamp(-120, 120).to(getattr(torch, kind))
    scales = torch.rand((24, 1) if per_row else (1,), generator=random).to(torch.bfloat16) * 0.01
    args = QuantizationArgs(
        num_bits=8, type="int" if kind == "int8" else "float", strategy="channel" if per_row else "tensor"
    )
    wanted = theirs(q, scales, None, args)
    tensors = {each.name: each for each in (raw("x.weight", q), raw("x.weight_scale", scales))}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}
    made = plain_weights(tensors, config, refuse)["x.weight"]
    assert np.array_equal(dequantize(made), wanted.float().numpy())


def test_a_folder_of_eight_bits_answers_as_its_decoded_weights_do(answered: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    decoded, packed = {}, {}
    for name, values in load_file(answered("llama").folder / "model.safetensors").items():
        decoded[name] = packed[name] = values
        if name.endswith("_proj.weight"):
            scales = (values.abs().amax(dim=1, keepdim=True) / 127).to(torch.float32)
            packed[name] = (values / scales).round().to(torch.int8)
            packed[f"{name}_scale"] = scales
            decoded[name] = packed[name].float() * scales
    for folder, tensors in (("decoded", decoded), ("packed", packed)):
        shutil.copytree(answered("llama").folder, tmp_path / folder)
        save_file(tensors, tmp_path / folder / "model.safetensors")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    ours, wanted = (logits(load_model(tmp_path / folder), IDS) for folder in ("packed", "decoded"))
    assert np.array_equal(ours, wanted)
