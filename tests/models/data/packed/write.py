"""Writes the folders beside it: a small random model, quantised and saved by a format's own package.

Beside each model lies decoded.json: of every quantised weight the SHA-256 of what the package's own code decodes it to
(float32, row by row, little-endian). Packages are imported where they are used: they do not fit into one environment.
README.md says which versions wrote what is here. Where a package insists on a GPU without needing one, that check alone
is taken away.

    python write.py FOLDER...
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY, TEXTS, LENGTH, GROUP = 64, 16, 64, 32
Decoded = Iterator[tuple[str, torch.Tensor]]


def main() -> None:
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as work:
            plain, made = Path(work) / "plain", Path(work) / "made"
            os.chdir(work)  # some leave logs where they stand
            save_plain(plain, torch.bfloat16 if name.startswith(("llmcompressor", "transformers")) else torch.float16)
            decoded = dict(WRITERS[name](plain, made))
            folder = next(made.rglob("config.json")).parent
            shutil.rmtree(HERE / name, ignore_errors=True)
            (HERE / name).mkdir()
            for file in [folder / "config.json", *folder.glob("*.safetensors")]:
                (HERE / name / file.name).write_bytes(file.read_bytes())
        sums = {
            weight: hashlib.sha256(values.float().numpy().tobytes()).hexdigest() for weight, values in decoded.items()
        }
        (HERE / name / "decoded.json").write_text(json.dumps(sums, indent=2) + "\n")
        print(name, len(sums), "weights")


def save_plain(folder: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=16)
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True})
    config.update({"initializer_range": 0.3, "max_position_embeddings": 128})
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {f"t{token}": token for token in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t1", pad_token="t2"
    )


def texts() -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    found: list[list[int]] = torch.randint(0, VOCABULARY, (TEXTS, LENGTH), generator=random).tolist()
    return found


def parts(folder: Path, part: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each quantised module's name and tensors, as they were saved."""
    saved = load_file(next(folder.rglob("*.safetensors")))
    for name in saved:
        if name.endswith(f".{part}"):
            module = name.removesuffix(part)
            yield module, {key.removeprefix(module): saved[key] for key in saved if key.startswith(module)}


def autoawq(plain: Path, made: Path) -> Decoded:
    from awq import AutoAWQForCausalLM
    from awq.utils.packing_utils import dequantize_gemm

    model = AutoAWQForCausalLM.from_pretrained(str(plain), device_map="cpu", torch_dtype=torch.float16)
    wanted = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"}
    # Clipping works on 64 output channels at a time, and the small model's key heads have 32.
    model.quantize(tokenizer(), wanted, calib_data=texts(), max_calib_seq_len=LENGTH, apply_clip=False)
    model.save_quantized(str(made))
    for module, found in parts(made, "qweight"):
        values = dequantize_gemm(found["qweight"], found["qzeros"], found["scales"], 4, GROUP)
        yield f"{module}weight", values.T.contiguous()


def auto_gptq(bits: int, by_activation: bool) -> Callable[[Path, Path], Decoded]:
    def write(plain: Path, made: Path) -> Decoded:
        from auto_gptq import BaseQuantizeConfig
        from auto_gptq.modeling import _base
        from auto_gptq.modeling.llama import LlamaGPTQForCausalLM
        from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

        _base.CUDA_0 = torch.device("cpu")
        torch.cuda.synchronize = lambda *_: None
        inner = AutoModelForCausalLM.from_pretrained(plain, torch_dtype=torch.float16)
        inner.seqlen = LENGTH
        wanted = BaseQuantizeConfig(bits=bits, group_size=GROUP, desc_act=by_activation, sym=False)
        model = LlamaGPTQForCausalLM(inner, False, wanted)
        model.quantize(
            [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, LENGTH).long()} for ids in texts()],
            cache_examples_on_gpu=False,
        )
        model.save_quantized(str(made))
        for module, found in parts(made, "qweight"):
            layer = QuantLinear(bits, GROUP, len(found["g_idx"]), found["scales"].shape[1], True)
            layer.load_state_dict(found)
            yield f"{module}weight", by_identity(layer, len(found["g_idx"]))

    return write


def gptqmodel(bits: int, written: str) -> Callable[[Path, Path], Decoded]:
    def write(plain: Path, made: Path) -> Decoded:
        os.cpu_count = lambda: 8  # it cannot be imported on two cores
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        wanted = QuantizeConfig(bits=bits, group_size=GROUP, desc_act=False, sym=False, format=written)
        model = GPTQModel.load(str(plain), wanted, device="cpu")
        model.quantize([{"input_ids": ids, "attention_mask": [1] * LENGTH} for ids in texts()], batch_size=1)
        model.save(str(made))
        read = GPTQModel.load(str(made), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
        for name, layer in read.model.named_modules():
            if hasattr(layer, "qweight"):
                yield f"{name}.weight", layer.dequantize_weight().detach().T.contiguous()

    return write


def auto_round(plain: Path, made: Path) -> Decoded:
    from auto_round import AutoRound
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float16)
    work = AutoRound(model, tokenizer(), bits=4, group_size=GROUP, sym=False, iters=0, device_map="cpu")
    work.quantize_and_save(str(made), format="auto_awq")
    for module, found in parts(made, "qweight"):
        values = dequantize_gemm(found["qweight"], found["qzeros"], found["scales"], 4, GROUP)
        yield f"{module}weight", values.T.contiguous()


def llmcompressor(scheme: str | dict[str, Any]) -> Callable[[Path, Path], Decoded]:
    def write(plain: Path, made: Path) -> Decoded:
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
        if isinstance(scheme, str):
            recipe = QuantizationModifier(ignore=["lm_head"], targets="Linear", scheme=scheme)
        else:
            group = {"targets": ["Linear"], "weights": scheme}
            recipe = QuantizationModifier(ignore=["lm_head"], config_groups={"group_0": group})
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(made, save_compressed=True)
        config = json.loads((made / "config.json").read_text())["quantization_config"]
        stated = QuantizationConfig.model_validate(config).config_groups["group_0"]
        compressor = BaseCompressor.get_value_from_registry(config["format"])
        for module, found in parts(made, "weight_scale"):
            yield f"{module}weight", compressor.decompress(found, stated)["weight"]

    return write


def transformers_fp8(plain: Path, made: Path) -> Decoded:
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    FineGrainedFP8HfQuantizer.validate_environment = lambda *_, **__: None
    wanted = FineGrainedFP8Config(weight_block_size=(GROUP, GROUP))
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=wanted, device_map="cpu")
    model.save_pretrained(made)
    for module, found in parts(made, "weight_scale_inv"):
        values = Fp8Dequantize(None)._dequantize_one(found["weight"], found["weight_scale_inv"])
        yield f"{module}weight", values


def by_identity(layer: torch.nn.Module, inputs: int) -> torch.Tensor:
    """The weight [outputs, inputs] that a layer multiplies by: each sum has one term that is not zero."""
    with torch.no_grad():
        return layer(torch.eye(inputs, dtype=torch.float16)).reshape(inputs, -1).T.contiguous()


INT4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
WRITERS: dict[str, Callable[[Path, Path], Decoded]] = {
    "autoawq": autoawq,
    "auto-gptq-4": auto_gptq(4, by_activation=True),
    "auto-gptq-2": auto_gptq(2, by_activation=False),
    "gptqmodel-v2-8": gptqmodel(8, "gptq_v2"),
    "gptqmodel-v1-4": gptqmodel(4, "gptq"),
    "auto-round": auto_round,
    "llmcompressor-int4": llmcompressor(INT4),
    "llmcompressor-int8": llmcompressor("W8A8"),
    "llmcompressor-fp8": llmcompressor("FP8_DYNAMIC"),
    "transformers-fp8": transformers_fp8,
}

if __name__ == "__main__":
    main()
