"""Converts folders to GGUF with llama.cpp's own converter: python llama_cpp.py CHECKOUT < pairs of folder and file.

CHECKOUT is a folder with llama.cpp's source; its classes do the work, but for the vocabulary, which small random
models have not. Runs as a process of its own, since it brings its own `gguf` package. Prints a line of JSON for each
pair: null, or why the converter refused.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    checkout = Path(sys.argv[1])
    sys.path[:0] = [str(checkout), str(checkout / "gguf-py")]
    import conversion
    import gguf
    import torch

    logging.disable(logging.CRITICAL)
    for folder, out in json.load(sys.stdin):
        refusal = None
        try:
            config = json.loads((Path(folder) / "config.json").read_text())
            known = conversion.get_model_class(config["architectures"][0])
            without_vocabulary = type(known.__name__, (known,), {"model_arch": known.model_arch, "set_vocab": _nothing})
            with torch.inference_mode():
                without_vocabulary(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out), hparams=config).write()
        except Exception as error:  # whatever the converter raises is its answer
            refusal = f"{type(error).__name__}: {error}"
        print(json.dumps(refusal), flush=True)


def _nothing(self: object) -> None:
    """No vocabulary."""


if __name__ == "__main__":
    main()
