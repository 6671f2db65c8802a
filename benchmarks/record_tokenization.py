"""Records how other programs tokenize the corpus of the tests, so that the tests can compare without them.

    python benchmarks/record_tokenization.py MODEL.gguf --llama-tokenize PATH [--out FILE]
    python benchmarks/record_tokenization.py MODEL.gguf --llama-tokenize PATH --cuts gpt-2 llama-bpe ... [--out FILE]

`llama-tokenize` is the program of llama.cpp; transformers is used where it can be imported (with `gguf` and `torch`).
Each text is recorded twice, with special tokens parsed and as plain text. This needs nothing of Puna, so it runs in the
environment that has the peers. With `--cuts` the model's vocabulary is recorded under other pre-tokenizers' names, with
llama.cpp alone, as a checksum of each text's ids; Puna writes the files for that.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "tests" / "models" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-tokenize", type=Path, help="path of the program")
    parser.add_argument("--cuts", nargs="+", default=[], help="pre-tokenizer names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = [json.loads(line) for line in (DATA / "corpus.txt").read_text().splitlines()]
    if options.cuts:
        record_cuts(options, texts)
        return
    peers: dict[str, str] = {}
    rows: list[dict[str, Any]] = [{"text": text} for text in texts]
    if options.llama_tokenize:
        peers["llama.cpp"] = llama_version(options.llama_tokenize)
        for row in rows:
            row["llama.cpp"] = [
                llama_ids(options, options.model, row["text"], parse_special=special) for special in (True, False)
            ]
    if importlib.util.find_spec("transformers"):
        peers["transformers"] = importlib.metadata.version("transformers")
        record_transformers(options.model, rows)
    head = {"model_sha256": hashlib.sha256(options.model.read_bytes()).hexdigest(), "peers": peers}
    write(options.out or DATA / "tokenization.json", head, "rows", rows)


def record_cuts(options: argparse.Namespace, texts: list[str]) -> None:
    from puna.models.gguf import read_gguf
    from puna.models.gguf_write import write_gguf

    metadata = read_gguf(options.model).metadata
    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        for cut in options.cuts:
            path = Path(folder) / f"{cut}.gguf"
            write_gguf(path, {**metadata, "tokenizer.ggml.pre": cut}, [])
            ids = [llama_ids(options, path, text, parse_special=True) for text in texts]
            recorded.append({"pre": cut, "crc32": [zlib.crc32(json.dumps(row).encode()) for row in ids]})
    head = {"peers": {"llama.cpp": llama_version(options.llama_tokenize)}}
    write(options.out or DATA / "cuts.json", head, "cuts", recorded)


def write(out: Path, head: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    out.write_text(f'{json.dumps(head)[:-1]}, "{name}": [\n{lines}\n]}}\n')
    print(f"{len(rows)} {name}, {head['peers']} -> {out}")


def llama_version(program: Path) -> str:
    outcome = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return (outcome.stdout + outcome.stderr).splitlines()[0].removeprefix("version:").strip()


def llama_ids(options: argparse.Namespace, model: Path, text: str, *, parse_special: bool) -> list[int] | None:
    command = [options.llama_tokenize, "-m", model, "--stdin", "--ids", "--no-escape"]
    command += [] if parse_special else ["--no-parse-special"]
    outcome = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if outcome.returncode:
        return None
    ids: list[int] = ast.literal_eval(outcome.stdout.decode().splitlines()[-1])
    return ids


def record_transformers(model: Path, rows: list[dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)
    for row in rows:
        row["transformers"] = [tokenizer.encode(row["text"], split_special_tokens=split) for split in (False, True)]


if __name__ == "__main__":
    main()
