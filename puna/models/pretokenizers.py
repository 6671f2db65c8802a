"""How text is cut into pieces before byte-pair merging, by the name in `tokenizer.ggml.pre`.

A cut is a list of patterns applied one after the other: each splits every piece so far into its matches and what lies
between them. Which name stands for which cut is the convention that files are written by; a wrong one gives a model
token sequences it was not trained on, so a name that is not listed here is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_CONTRACTIONS_ANY_CASE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s+(?!\S)|\s+"


def _gpt2() -> str:
    """Words, numbers and symbols, each with the one space before it."""
    return "|".join([_CONTRACTIONS, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES])


def _cl100k(letters: str, numbers: str) -> str:
    """As GPT-4 cuts: any one character may open a word, symbols take the line ends after them, numbers come short."""
    return "|".join([letters, numbers, r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", _SPACES])


_WORDS = rf"{_CONTRACTIONS_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"


@dataclass(frozen=True)
class PreTokenizer:
    """`ignore_merges`: a piece that is a token as it stands is taken whole, whatever the merges say. `add_bos`: the
    convention where the file does not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = PreTokenizer((_gpt2(),))
_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _gpt2()))
_LLAMA3 = PreTokenizer((_cl100k(_WORDS, r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_LLAMA3_PLAIN = PreTokenizer(_LLAMA3.patterns)
_LLAMA3_WHOLE = PreTokenizer(_LLAMA3.patterns, ignore_merges=True)
_QWEN2 = PreTokenizer((_cl100k(_WORDS, r"\p{N}"),))
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _gpt2(), r"\p{N}+", "[0-9][0-9][0-9]"))
_FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _gpt2(), "[0-9][0-9][0-9]"))


def _named(cut: PreTokenizer, names: Sequence[str]) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names, cut)


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_named(_DEFAULT, ["default"]),
    **_named(
        _GPT2,
        [
            *("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum"),
            *("modern-bert", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"),
        ],
    ),
    **_named(
        _DIGITS_THEN_GPT2,
        ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
    ),
    **_named(
        _LLAMA3,
        ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
    ),
    **_named(_LLAMA3_PLAIN, ["dbrx", "smaug-bpe", "chatglm-bpe"]),
    **_named(_LLAMA3_WHOLE, ["glm4", "glm5"]),
    **_named(_QWEN2, ["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"]),
    **_named(_FALCON, ["falcon"]),
}
