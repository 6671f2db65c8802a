"""A GGUF file's vocabulary as tokenizer.json, tokenizer_config.json and generation_config.json.

Byte-level pair merging keeps its merges and the patterns that its pre-tokenizer's name stands for. SentencePiece's
scores become merges: every way to make a token of two others, the best token first. Other kinds are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.models.conversion.ggml_vocabulary import SPACE
from puna.models.model_file import ModelFile
from puna.models.pretokenizers import PRE_TOKENIZERS
from puna.models.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED

NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_texts(file: ModelFile, end_ids: Sequence[int], context: int) -> dict[str, dict[str, Any]]:
    """JSON objects by file name; empty for a GGUF file without a vocabulary. `end_ids`: tokens that end an answer.
    Raises ModelFileError."""
    kind, texts = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list):
        return {}
    if kind not in ("gpt2", "llama"):
        file.fail(f"the vocabulary is of kind {kind!r}; folders can be written of 'gpt2' and 'llama'")
    kinds = [int(value) for value in file.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))]
    named = {name: _named(file, name, texts) for name in NAMES}
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, texts[i], kinds[i]) for i in range(len(texts)) if kinds[i] in _ADDED],
        **(_byte_level(file, texts) if kind == "gpt2" else _scored(file, texts, named["unknown"])),
        "post_processor": _around(file, named, default=kind == "llama"),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{theirs: named[ours] for ours, theirs in NAMES.items() if named[ours] is not None},
    }
    texts_by_name = {"tokenizer.json": described, "tokenizer_config.json": config}
    generation: dict[str, Any] = {"eos_token_id": list(end_ids)} if end_ids else {}
    for ours in ("bos", "padding"):
        if named[ours] is not None:
            generation[NAMES[ours] + "_id"] = texts.index(named[ours])
    return {**texts_by_name, "generation_config.json": generation}


_ADDED = (CONTROL, UNKNOWN, USER_DEFINED)


def _added(index: int, text: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": kind != USER_DEFINED}


def _named(file: ModelFile, name: str, texts: Sequence[str]) -> str | None:
    index = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return texts[index] if type(index) is int and 0 <= index < len(texts) else None


def _byte_level(file: ModelFile, texts: Sequence[str]) -> dict[str, Any]:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        file.fail(f"the pre-tokenizer {name!r} is not known; known: {', '.join(sorted(PRE_TOKENIZERS))}")
    cut = PRE_TOKENIZERS[name]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps: list[dict[str, Any]] = [{**split, "pattern": {"Regex": pattern}} for pattern in cut.patterns]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    merges = [merge.split(" ", 1) for merge in file.metadata.get("tokenizer.ggml.merges", [])]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, to_bytes]},
        "decoder": to_bytes,
        "model": _model(texts, merges, ignore_merges=cut.ignore_merges),
    }


def _scored(file: ModelFile, texts: Sequence[str], unknown: str | None) -> dict[str, Any]:
    scores = file.metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(texts):
        file.fail("metadata 'tokenizer.ggml.scores' has to be a list of numbers, one a token")
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    to_marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, to_marks]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _model(texts, _merges(texts, scores), unknown=unknown, byte_fallback=True),
    }


def _merges(texts: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Pairs of tokens that make a token, best token first; of one token's pairs the leftmost cut last, as its pieces
    are rarer."""
    ids = {text: index for index, text in enumerate(texts)}
    found: list[tuple[float, int, int, list[str]]] = []
    for index, text in enumerate(texts):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-float(scores[index]), ids[left], ids[right], [left, right]))
    return [pair for *_, pair in sorted(found, key=lambda entry: entry[:3])]


def _model(
    texts: Sequence[str],
    merges: list[list[str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": {text: index for index, text in enumerate(texts)},
        "merges": merges,
    }


def _around(file: ModelFile, named: Mapping[str, str | None], *, default: bool) -> dict[str, Any] | None:
    pre = PRE_TOKENIZERS.get(str(file.metadata.get("tokenizer.ggml.pre")))
    default = default or (pre is not None and pre.add_bos)
    before = named["bos"] if file.metadata.get("tokenizer.ggml.add_bos_token", default) else None
    after = named["eos"] if file.metadata.get("tokenizer.ggml.add_eos_token", False) else None
    if before is None and after is None:
        return None
    texts: list[str] = file.metadata["tokenizer.ggml.tokens"]
    specials = {text: {"id": text, "ids": [texts.index(text)], "tokens": [text]} for text in (before, after) if text}

    def template(*parts: str) -> list[dict[str, Any]]:
        whole: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            whole += [{"SpecialToken": {"id": before, "type_id": number}}] if before else []
            whole += [{"Sequence": {"id": part, "type_id": number}}]
            whole += [{"SpecialToken": {"id": after, "type_id": number}}] if after else []
        return whole

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": specials,
    }
