"""A folder's tokenizer.json as GGUF metadata: tokens, their kinds, merges or scores, and the rules around them.

GGUF names a way of cutting text where tokenizer.json spells it out. The name is found by trying: it is the one that
cuts a text of many scripts in the same places. A tokenizer that GGUF cannot describe is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from puna.models.conversion.layout import PlannedFile
from puna.models.model_file import ModelFile
from puna.models.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from puna.models.safetensors import SafetensorsFolder
from puna.models.tokenizer import Tokenizer
from puna.models.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

SPACE = "\u2581"
NEVER_MERGED = -1e9  # the score of a token that no merge makes
NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
LIKELY = ("gpt-2", "llama-bpe", "qwen2", "smollm", "default", "falcon", "starcoder", "stablelm2")
PROBE = (
    "Hello  world, it's we'LL don't  \t x\n\n  y \r\n1 22 333 4444 55555 1,234.5 \u0663\u0664\u0665 \u00bd e=mc\u00b2 "
    "if (a != b) { return x->y[0]; } // _under_score $100 50% #tag @me ~/a/b.txt <b>`code`</b> a+b=c^d|e "
    "\u00c9t\u00e9 na\u00efve \u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093"
    "\u306b\u3061\u306f \uc548\ub155 \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\U0001f600\U0001f468\u200d\U0001f469 \u2014 \u201cq\u201d\u2026 camelCaseHTTPServer ABCdef "
    "I'M O'Neil   \n \n\t\tz  "
)


def ggml_vocabulary(file: ModelFile, arch: str, vocab_size: int) -> dict[str, Any]:
    """Entries of tokenizer.ggml and the chat template. A folder without tokenizer.json gives a file without a
    vocabulary. Raises ModelFileError for a tokenizer that GGUF has no description of."""
    if not isinstance(file, SafetensorsFolder) or not (file.path / "tokenizer.json").is_file():
        return {"tokenizer.ggml.model": "no_vocab"}
    ours = file.tokenizer()  # refuses what is no tokenizer; below it is one
    described, config = file.json("tokenizer.json"), file.json("tokenizer_config.json")
    model = described.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE" or not isinstance(model, dict):
        file.fail(f"tokenizer.json is of kind {kind!r}; only byte-pair vocabularies (BPE) can be written to GGUF")
    texts, kinds = _tokens(file, described, model, vocab_size)
    ids = {text: index for index, text in reversed(list(enumerate(texts)))}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges", [])]
    entries: dict[str, Any] = {"tokenizer.ggml.tokens": texts}
    if "ByteLevel" in json.dumps([described.get("pre_tokenizer"), described.get("decoder")]):
        entries |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _pre_name(file, described, arch),
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
    else:
        kinds = [BYTE if kind == NORMAL and _is_byte(text) else kind for text, kind in zip(texts, kinds, strict=True)]
        entries |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": _scores(texts, merges),
            "tokenizer.ggml.add_space_prefix": _prefixes_space(described),
        }
    entries["tokenizer.ggml.token_type"] = np.array(kinds, np.int32)
    entries |= _named_tokens(file, config, ids)
    entries |= _around(described, config, entries)
    _check_same(file, ours, entries)
    if file.chat_template:
        entries["tokenizer.chat_template"] = file.chat_template
    return entries


def _check_same(file: SafetensorsFolder, ours: Tokenizer, entries: Mapping[str, Any]) -> None:
    """Raises ModelFileError where the entries make other tokens: GGUF has no words for most normalizers, say, and a
    model would get what it was not trained on without anyone's noticing."""
    theirs = Tokenizer.from_gguf(PlannedFile(file.path, "gguf", entries, {}))  # type: ignore[arg-type]
    for specials in (True, False):
        have, want = (each.encode(PROBE, parse_special=specials) for each in (theirs, ours))
        if have != want:
            place = next((i for i, pair in enumerate(zip(have, want, strict=False)) if pair[0] != pair[1]), len(want))
            said = repr(ours.decode(want[max(0, place - 1) : place + 3], skip_special_tokens=False))
            file.fail(
                f"tokenizer.json cuts text as GGUF cannot describe: of a text of many scripts token {place} would be "
                f"another, near {said}"
            )


def _tokens(
    file: SafetensorsFolder, described: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    vocab = dict(model.get("vocab", {}))
    added = {entry["content"]: entry for entry in described.get("added_tokens") or () if isinstance(entry, dict)}
    vocab |= {text: entry["id"] for text, entry in added.items()}
    if not vocab or not all(type(index) is int and 0 <= index < vocab_size for index in vocab.values()):
        file.fail(f"tokenizer.json has {len(vocab)} tokens; expected ids from 0 to {vocab_size - 1}")
    texts = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    unknown = model.get("unk_token")
    for text, index in vocab.items():
        texts[index] = text
        kinds[index] = UNKNOWN if text == unknown else NORMAL
        if text in added and kinds[index] != UNKNOWN:
            kinds[index] = CONTROL if added[text].get("special") else USER_DEFINED
    return texts, kinds


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(texts: list[str], merges: list[tuple[str, ...]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Earlier merges score higher, as in the files that such merges are made from."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault("".join(merge), index)
    return np.array([-float(rank[text]) if text in rank else NEVER_MERGED for text in texts], np.float32)


def _pre_name(file: SafetensorsFolder, described: Mapping[str, Any], arch: str) -> str:
    whole = _library(described)
    if whole.pre_tokenizer is None:
        file.fail("tokenizer.json cuts text nowhere before merging; GGUF has no name for that")
    wanted = _places(whole.pre_tokenizer)
    ignores = bool(described["model"].get("ignore_merges"))
    names = sorted(PRE_TOKENIZERS, key=lambda name: (name != arch, name not in LIKELY, name))
    cuts: dict[PreTokenizer, list[str]] = {}
    for name in names:
        cuts.setdefault(PRE_TOKENIZERS[name], []).append(name)
    found = [names for cut, names in cuts.items() if _places(_cutter(cut)) == wanted]
    same = [names for names in found if PRE_TOKENIZERS[names[0]].ignore_merges == ignores] or found
    if not same:
        file.fail("tokenizer.json cuts text in a way that no pre-tokenizer name of GGUF stands for")
    return same[0][0]


def _library(described: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps({**described, "truncation": None, "padding": None}))


def _cutter(cut: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cut.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _places(cutter: pre_tokenizers.PreTokenizer) -> list[tuple[int, int]]:
    return [place for _, place in cutter.pre_tokenize_str(PROBE)]


def _prefixes_space(described: Mapping[str, Any]) -> bool:
    text = json.dumps([described.get("normalizer"), described.get("pre_tokenizer")])
    metaspace = '"Metaspace"' in text and '"prepend_scheme": "never"' not in text
    return '"Prepend"' in text or metaspace


def _named_tokens(file: SafetensorsFolder, config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    entries = {}
    for ours, theirs in NAMED.items():
        value = config.get(theirs)
        text = value.get("content") if isinstance(value, dict) else value
        index = ids.get(text) if isinstance(text, str) else None
        if index is None:
            stated = file.config.get(f"{theirs}_id")
            first = stated[0] if isinstance(stated, list) and stated else stated
            index = first if type(first) is int else None
        if index is not None and 0 <= index < len(ids):
            entries[f"tokenizer.ggml.{ours}_token_id"] = index
    return entries


def _around(described: Mapping[str, Any], config: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a beginning and an end go around a text: as the configuration says, else as a probe shows."""
    around = _library(described).encode("a").ids
    found = {}
    for ours, place in (("bos", 0), ("eos", -1)):
        said, token = config.get(f"add_{ours}_token"), entries.get(f"tokenizer.ggml.{ours}_token_id")
        probed = len(around) > 1 and around[place] == token
        found[f"tokenizer.ggml.add_{ours}_token"] = said if isinstance(said, bool) else probed
    return found
