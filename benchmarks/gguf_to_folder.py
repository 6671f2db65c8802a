"""A GGUF file as the folder of bfloat16 weights that vLLM reads. Runs inside vLLM's environment, with `gguf` and
`accelerate` installed there too.

usage: python gguf_to_folder.py FILE.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, folder = Path(sys.argv[1]).resolve(), sys.argv[2]
    options = {}
    try:
        from transformers import GgufConfig  # newer ones keep weights packed unless they are told otherwise

        options["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16, **options)
    for holder in (model, model.config):
        if getattr(holder, "quantization_config", None) is not None:
            del holder.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


if __name__ == "__main__":
    main()
