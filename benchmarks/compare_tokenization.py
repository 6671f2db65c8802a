"""Compares Puna's tokenizers with other programs' over a megabyte of twenty scripts, code and emoji.

    python benchmarks/compare_tokenization.py MODEL.gguf --llama-tokenize PATH
    python benchmarks/compare_tokenization.py FOLDER            # with tokenizer.json: transformers
    python benchmarks/compare_tokenization.py tokenizer.model   # sentencepiece

The corpus is made here, the same for the same machine: translations of its programs' messages (/usr/share/locale),
words drawn from scripts' letters, names from Unicode's tables, Python's own sources, numbers, white space, control
characters. A folder needs no weights. Texts that differ are counted, and the first ones shown with the place where the
ids part.
"""

from __future__ import annotations

import argparse
import ast
import gettext
import json
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from puna.models.tokenizer import Tokenizer

SIZE = 1 << 20  # characters
# First and last code points of letters, a script each; words are drawn from them at random.
SCRIPTS = {
    "latin": (0x61, 0x7A), "latin-1": (0xC0, 0xFF), "latin-ext": (0x100, 0x24F), "vietnamese": (0x1EA0, 0x1EF9),
    "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F), "armenian": (0x531, 0x586), "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x620, 0x652), "devanagari": (0x904, 0x94D), "bengali": (0x985, 0x9CD), "tamil": (0xB85, 0xBCD),
    "telugu": (0xC05, 0xC4D), "thai": (0xE01, 0xE4C), "lao": (0xE81, 0xECD), "tibetan": (0xF40, 0xF84),
    "burmese": (0x1000, 0x104F), "georgian": (0x10D0, 0x10FF), "hangul": (0xAC00, 0xD7A3), "ethiopic": (0x1200, 0x1357),
    "khmer": (0x1780, 0x17D3), "hiragana": (0x3041, 0x3096), "katakana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5),
    "han-ext": (0x20000, 0x20100), "math": (0x1D400, 0x1D4C0),
}  # fmt: skip
EMOJI = [chr(code) for code in (*range(0x1F300, 0x1F650), *range(0x2600, 0x26FF), *range(0x1F900, 0x1F9FF))]


def corpus() -> list[str]:
    """Texts of up to some kilobytes, about a megabyte in all."""
    drawn = random.Random(20)
    makers: list[Callable[[], str]] = [
        *(lambda span=span: sentence(drawn, span) for span in SCRIPTS.values()),  # type: ignore[misc]
        lambda: " ".join(unicodedata.name(chr(drawn.randrange(0x3000)), "nameless") for _ in range(20)).title(),
        lambda: "".join(drawn.choice([*EMOJI, "\u200d", "\ufe0f", "\U0001f3fd", " "]) for _ in range(40)),
        lambda: " ".join(str(drawn.randrange(10 ** drawn.randrange(1, 12))) for _ in range(30)),
        lambda: "".join(drawn.choice("\n\r\t  \u00a0\u3000\u2003ab.1'") for _ in range(100)),
        lambda: "".join(
            chr(drawn.choice([drawn.randrange(1, 0xD800), drawn.randrange(0xE000, 0x2FFFF)])) for _ in range(50)
        ),
    ]
    sources, translations = code(drawn), messages(drawn)
    texts: list[str] = []
    size = 0
    while size < SIZE:
        kind = drawn.random()
        text = next(sources, "") if kind < 0.15 else next(translations, "") if kind < 0.5 else drawn.choice(makers)()
        texts.append(text)
        size += len(text)
    return [text for text in texts if text]


def sentence(drawn: random.Random, span: tuple[int, int]) -> str:
    words = []
    for _ in range(drawn.randrange(20, 120)):
        word = "".join(chr(drawn.randint(*span)) for _ in range(drawn.randrange(1, 12)))
        words.append(word + drawn.choice(["", "", "", ",", ". ", "!", "?\n", "'s", " 12", "\u3002", "\u060c"]))
    return " ".join(words)


def messages(drawn: random.Random) -> Iterator[str]:
    """What programs say in some hundred languages, where the machine has translations."""
    paths = sorted(Path("/usr/share/locale").glob("*/LC_MESSAGES/*.mo"))
    drawn.shuffle(paths)
    for path in paths:
        with path.open("rb") as file:
            try:
                found = [text for text in gettext.GNUTranslations(file)._catalog.values() if isinstance(text, str)]
            except (OSError, UnicodeDecodeError):
                continue
        yield "\n".join(drawn.sample(found, min(len(found), 12)))


def code(drawn: random.Random) -> Iterator[str]:
    """Pieces of Python's own library, which has prose, code and tables of many character sets."""
    paths = sorted(path for path in Path(ast.__file__).parent.glob("**/*.py") if "site-packages" not in path.parts)
    drawn.shuffle(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        for start in range(0, min(len(text), 20_000), 3000):
            yield text[start : start + 3000]


def of_llama(program: Path, model: Path) -> Callable[[list[str]], list[list[int]]]:
    """One call for many texts: a program's start takes longer than its work."""

    def ids(texts: list[str]) -> list[list[int]]:
        found = []
        for text in texts:
            command = [program, "-m", model, "--stdin", "--ids", "--no-escape", "--log-disable"]
            outcome = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
            found.append(ast.literal_eval(outcome.stdout.decode().splitlines()[-1]))
        return found

    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--llama-tokenize", type=Path, help="path of the program")
    parser.add_argument("--join", type=int, default=40, help="texts that are compared in one piece, in their blocks")
    options = parser.parse_args()
    texts = corpus()
    joined = ["\n".join(texts[start : start + options.join]) for start in range(0, len(texts), options.join)]
    print(f"{len(texts)} texts, {sum(map(len, texts))} characters, {len(''.join(texts).encode())} bytes")
    for model in options.model:
        tokenizer, peers = opened(model, options.llama_tokenize)
        started = time.perf_counter()
        ours = [tokenizer.encode(text) for text in joined]
        took = time.perf_counter() - started
        print(f"{model.name}: {sum(map(len, ours))} tokens in {took:.2f} s")
        for name, peer in peers.items():
            compare(name, joined, ours, peer(joined), tokenizer)


def opened(model: Path, program: Path | None) -> tuple[Tokenizer, dict[str, Callable[[list[str]], list[list[int]]]]]:
    if model.suffix == ".gguf":
        from puna.models.gguf import read_gguf

        return read_gguf(model).tokenizer(), {"llama.cpp": of_llama(program, model)} if program else {}
    folder = model if model.is_dir() else Path(tempfile.mkdtemp())
    if model.suffix == ".model":
        import sentencepiece

        (folder / "tokenizer.model").write_bytes(model.read_bytes())
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        return folder_tokenizer(folder), {
            "sentencepiece": lambda texts: [[pieces.bos_id(), *pieces.encode(t)] for t in texts]
        }
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(str(folder))
    return folder_tokenizer(folder), {"transformers": lambda texts: [peer.encode(text) for text in texts]}


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Of a folder without weights."""
    from puna.models.safetensors import SafetensorsFolder

    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    return SafetensorsFolder(folder, config, {}, ()).tokenizer()


def compare(name: str, texts: list[str], ours: list[list[int]], theirs: list[list[int]], tokenizer: Tokenizer) -> None:
    differing = [place for place in range(len(texts)) if ours[place] != theirs[place]]
    print(f"  {name}: {len(texts) - len(differing)} of {len(texts)} pieces equal")
    for place in differing[:8]:
        mine, other = ours[place], theirs[place]
        at = next((i for i, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1]), len(mine))
        for whose, ids in (("ours", mine), ("theirs", other)):
            print(f"    at {at} {whose:6}: {[tokenizer.token_text(token) for token in ids[max(0, at - 2) : at + 6]]}")


if __name__ == "__main__":
    sys.exit(main())
