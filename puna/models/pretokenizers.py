"""How text is cut into pieces before byte-pair merging, by the name in `tokenizer.ggml.pre`.

A cut is a list of patterns applied one after the other: each splits every piece so far into its matches and what lies
between them. Which name stands for which cut is the convention that files are written by; a wrong one gives a model
token sequences it was not trained on, so a name that is not listed here is an error, not a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

_SPACES = r"\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
_SPACES_AT_THE_END = r"(?<!\s)\s+$"  # begun at a run's beginning alone: else a run of n costs n * n where more follows
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OPENED = r"[^\r\n\p{L}\p{N}]?"  # any one character may open a word
_WORDS = rf"{_ENDINGS}|{_OPENED}\p{{L}}+"
_LINE_ENDS = r"\s*[\r\n]+"
_KANA_AND_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SYMBOLS = r"!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~"
# Groups of three from the right. Where one match ended inside a number (\G), the rest of it divides by three: without
# that every group would count to the number's end. What is said of the rest is atomic, so that it is counted once.
_GROUPS_FROM_THE_RIGHT = r"\G(?<=\p{Nd})\p{Nd}{3}|\p{Nd}{1,3}(?=(?>(?:\p{Nd}{3})*)(?!\p{Nd}))"
# The same where a word ends behind them; digits that a letter follows stay as they are.
_GROUPS_AT_WORDS_ENDS = r"\G(?<=\d)\d{3}|(?<!\d)\d{1,3}(?=(?>(?:\d{3})*)\b)"
# Boundaries wherever a multiple of three digits is left, as what lies between them: other numerals stay with what
# precedes them.
_THREES_FOLLOW = r"(?=(?>(?:\d{3})+)(?!\d))"
_BETWEEN_GROUPS = "|".join(
    [
        r"\G(?<=\d)\d{3}(?=\d)",
        rf"\d{{3}}{_THREES_FOLLOW}",
        rf"(?>(?:\d{{3}}(?!\d))?(?:\D+|\d{{1,2}}(?!\d))*)(?:\d{{1,2}}{_THREES_FOLLOW})?",
    ]
)


def _cl100k(words: str, numbers: str, symbols: str = _SYMBOLS + r"[\r\n]*") -> str:
    """As GPT-4 cuts: symbols take the line ends after them, numbers come short."""
    return "|".join([words, numbers, symbols, _LINE_ENDS, _SPACES])


def _o200k(upper: str, lower: str, endings: str, numbers: str, line_ends: str = r"[\r\n/]*") -> str:
    """As GPT-4o cuts: a word also ends where a capital follows small letters, and keeps its contraction."""
    words = f"{_OPENED}[{upper}]*[{lower}]+{endings}|{_OPENED}[{upper}]+[{lower}]*{endings}"
    return _cl100k(words, numbers, _SYMBOLS + line_ends)


def _deepseek3(symbols: str = r" ?[\p{P}\p{S}]+[\r\n]*", line_ends: str = _LINE_ENDS) -> str:
    opened = rf"[{_ASCII_SYMBOLS}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    return "|".join([opened, symbols, line_ends, _SPACES])


_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NOT_HAN = r"&&[^\p{Han}]"
_GPT2 = "|".join([_CONTRACTIONS, r" ?\p{L}+", r" ?\p{N}+", _SYMBOLS, _SPACES])  # each with the one space before it
_GPT4O = _o200k(_UPPER, _LOWER, f"{_ENDINGS}?", r"\p{N}{1,3}")
_PUNCTUATION_ENDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# DeepSeek's first models list letters that have a case, without some alphabets.
_CASED = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{560}-\x{588}\x{10C7}\x{10CD}\x{10D0}-\x{10FF}\x{1C80}-\x{1C8F}\x{2D00}-\x{2D2D}"
    r"\x{A790}-\x{A7FF}\x{AB30}-\x{AB6F}\x{10570}-\x{105BF}\x{10D40}-\x{10D8F}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DFFF}]]+"
)
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Scripts that AFMoE keeps together, each by itself: Han and kana, Thai, Lao, Khmer, Burmese, Hangul.
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf]+"
    "|[\u0e00-\u0e7f]+|[\u0e80-\u0eff]+|[\u1780-\u17ff]+|[\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff]+"
    "|[\uac00-\ud7af\u1100-\u11ff]+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """`ignore_merges`: a piece that is a token as it stands is taken whole, whatever the merges say. `add_bos`: the
    convention where the file does not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


def _cut(*patterns: str, ignore_merges: bool = False, add_bos: bool = False) -> PreTokenizer:
    return PreTokenizer(patterns, ignore_merges, add_bos)


LINES = _cut(r"[^\n]+|\n+")  # for merging that goes across words
_LLAMA3 = _cl100k(_WORDS, r"\p{N}{1,3}")

_NAMES: list[tuple[PreTokenizer, str]] = [
    (_cut(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), "default"),
    (_cut(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"), "falcon"),
    (
        _cut(_GPT2),
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
        "modern-bert mpt olmo jais exaone4 trillion granite-docling",
    ),
    (_cut(r"\p{N}", _GPT2), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (
        _cut(_LLAMA3, ignore_merges=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (_cut(_LLAMA3), "dbrx smaug-bpe chatglm-bpe"),
    (_cut(_LLAMA3, ignore_merges=True), "glm4 glm5"),
    (
        _cut(_cl100k(_WORDS, r"\p{N}")),
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    ),
    (
        _cut(_cl100k(rf"{_ENDINGS}|{_OPENED}[\p{{L}}\p{{M}}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")),
        "qwen35",
    ),
    (_cut(_cl100k(rf"{_OPENED}\p{{L}}+", r"\p{N}")), "ufakzeka"),
    (_cut(r"[^\n]+|\n+", _cl100k(_WORDS, r"\p{N}")), "laguna"),
    (_cut(r"\p{N}{1,3}", _cl100k(_WORDS, r"\p{N}+"), ignore_merges=True), "minicpm5"),
    (
        _cut(
            "|".join([_WORDS, r"\p{N}{1,3}", _SYMBOLS + r"[\r\n]*", _LINE_ENDS])
            + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s"
        ),
        "jais-2",
    ),
    (_cut("|".join([_WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINE_ENDS, _SPACES])), "seed-coder"),
    (
        _cut(
            "|".join(
                [rf"'(?i:[sdmt]|ll|ve|re)|{_OPENED}\p{{L}}+", r"\p{N}", _SYMBOLS + r"[\r\n]*", r"\s*[\r\n]", _SPACES]
            )
        ),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    (
        _cut(
            "|".join(
                [
                    rf"{_ENDINGS}|{_OPENED}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+",
                    *(r"\p{N}", _SYMBOLS + r"[\r\n/]?", r"\s*[\r\n]", _SPACES),
                ]
            )
        ),
        "exaone-moe",
    ),
    (_cut(_o200k(_UPPER, _LOWER, "", r"\p{N}"), ignore_merges=True, add_bos=True), "tekken"),
    (_cut(_GPT4O), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (_cut(_GPT4O, ignore_merges=True), "granite-embed-multi-97m"),
    (_cut(_GROUPS_AT_WORDS_ENDS, _GPT4O), "tiny_aya cohere2moe"),
    (
        _cut(
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
            f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_KANA_AND_HAN}",
            _o200k(_UPPER, _LOWER, f"{_ENDINGS}?", r"\p{N}"),
            ignore_merges=True,
        ),
        "youtu",
    ),
    (
        _cut(
            r"\p{Han}+|"
            + _o200k(_UPPER + _NOT_HAN, _LOWER + _NOT_HAN, f"{_ENDINGS}?", r"\p{N}{1,3}").replace(
                r"[\r\n/]*", r"[\r\n]*"
            )
        ),
        "kimi-k2",
    ),
    (_cut(r"\p{N}{1,3}", _KANA_AND_HAN, _deepseek3()), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (_cut(r"\p{N}{1,3}", _KANA_AND_HAN, _deepseek3(r" ?[\p{P}\p{S}]+", r"[\r\n]"), r"\p{N}"), "spark2_5"),
    (_cut(_GROUPS_FROM_THE_RIGHT, _ASIAN, _deepseek3()), "afmoe"),
    (
        _cut(
            *(r"[\r\n]", rf"\s?{_CASED}", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            *(_SPACES_AT_THE_END, _DEEPSEEK_HAN, r"\p{N}"),
        ),
        "deepseek-llm",
    ),
    (_cut(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}"), "deepseek-coder"),
    (_cut(_PUNCTUATION_ENDS), "poro-chat bloom gpt3-finnish"),
    (_cut(_PUNCTUATION_ENDS, r"\p{N}"), "viking"),
    (_cut(r"\p{N}+", _BETWEEN_GROUPS), "superbpe"),
    (
        _cut(
            *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"[\t\n]|    |  ", r"\p{N}"),
            *(r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
            add_bos=True,
        ),
        "chameleon",
    ),
]

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: cut for cut, names in _NAMES for name in names.split()}
