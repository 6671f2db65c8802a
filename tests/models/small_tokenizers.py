"""Small tokenizers of folders: byte-level BPE, SentencePiece-like BPE and unigram as tokenizer.json has them, and a
tokenizer.model written field by field."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from puna.models.safetensors import SafetensorsFolder
from puna.models.tokenizer import Tokenizer

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
PIECES = [SPACE, "t", "h", "e", "l", "a", "m", f"{SPACE}t", "he", f"{SPACE}the", "la", "ll", "ma", f"{SPACE}l", "lama"]


def added(index: int, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, "special": special, **flags}


def sentencepiece_bpe(*, prefix: bool = True, fallback: bool = True) -> dict[str, Any]:
    """As Llama 2's file is written: spaces become "▁" in the normalizer, one is put before the text."""
    texts = [*SPECIAL, *(BYTES if fallback else []), *PIECES]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    merges = [
        [SPACE, "t"],
        ["h", "e"],
        [f"{SPACE}t", "he"],
        ["l", "a"],
        ["l", "l"],
        ["m", "a"],
        [SPACE, "l"],
        ["la", "ma"],
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "added_tokens": [added(index, text) for index, text in enumerate(SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), replace],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *(strip if prefix else [])],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": fallback,
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": merges,
        },
    }


def unigram() -> dict[str, Any]:
    pieces = [(text, 0.0) for text in SPECIAL] + [(text, -float(len(PIECES) - i)) for i, text in enumerate(PIECES)]
    return {
        "added_tokens": [added(index, text) for index, text in enumerate(SPECIAL)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    }


def folder_tokenizer(folder: Path, config: dict[str, Any] | None = None, **files: dict[str, Any] | bytes) -> Tokenizer:
    """Of a folder without weights. File names are given with "_" where a dot belongs behind "tokenizer"."""
    names = {"tokenizer": "tokenizer.json", "model": "tokenizer.model"}
    for name, content in files.items():
        path = folder / names.get(name, f"{name}.json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return SafetensorsFolder(folder, config or {}, {}, ()).tokenizer()


def sentencepiece_model(
    pieces: list[tuple[str, float, int]], *, model_type: int = 2, prefix: bool = True, one_space: bool = False
) -> bytes:
    """tokenizer.model: a message of pieces (1), the trainer's settings (2) and the normalizer's (3)."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    def number(field_number: int, value: int) -> bytes:
        return varint(field_number << 3) + varint(value)

    written = [
        field(1, field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
        for text, score, kind in pieces
    ]
    normalizer = number(3, prefix) + number(4, one_space)
    return b"".join([*written, field(2, number(3, model_type) + number(40, 0)), field(3, normalizer)])
