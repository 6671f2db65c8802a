"""The tokenizer of a folder: tokenizer.json as it is, with what tokenizer_config.json and generation_config.json add.

The `tokenizers` library runs the file's own normalizer, pre-tokenizer, model and post-processor, in a process apart
where the file has expressions that nobody knows (guarded_encoding.py). What tokens stand for is read from the file's
decoder, so that decoding is exact bytes. Tokens at beginnings and ends are the post-processor's, as in transformers 5:
add_bos_token and add_eos_token of tokenizer_config.json hold for tokenizer.model alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from puna.models.encoders import Encoder, LibraryEncoder, LibraryReading, library_errors
from puna.models.gguf_parse import brief, clipped
from puna.models.guarded_encoding import GuardedEncoder, unknown_expression
from puna.models.model_file import ModelFile
from puna.models.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    Spelling,
    Vocabulary,
    byte_of,
    end_ids,
)

MODELS = ("BPE", "Unigram")
MAX_ID = 1 << 24
MAX_GROWTH = 4096  # characters that normalising may make of one
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Folder(ModelFile, Protocol):
    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the weights; empty where there is no such file."""
        ...


def folder_tokenizer(folder: Folder) -> tuple[Vocabulary, Encoder]:
    """Raises ModelFileError."""
    described = folder.json("tokenizer.json")
    _check(folder, described)
    config = folder.json("tokenizer_config.json")
    named = named_tokens(folder, config)
    added = _with_named(described, named.values())
    text = json.dumps({**described, "added_tokens": added, "truncation": None, "padding": None})

    encoder: LibraryEncoder | GuardedEncoder
    try:
        with library_errors():
            expression = unknown_expression(described)
            encoder = LibraryEncoder(text) if expression is None else GuardedEncoder(text, expression)
            reading = encoder.reading
    except ValueError as error:
        _fail(folder, f"the tokenizers library cannot read it: {clipped(str(error))}")
    return _vocabulary(folder, described, named, reading), encoder


def _with_named(described: Mapping[str, Any], named: Iterable[str]) -> Any:
    """The file's added tokens, and tokens of its vocabulary that tokenizer_config.json alone calls special. They go
    into the text: changed later, the library would build its search for all added tokens once more."""
    added, vocab = described.get("added_tokens", []), described["model"].get("vocab")
    if not isinstance(added, list):
        return added
    known = [token.get("content") for token in added if isinstance(token, dict)]
    ids = vocab if isinstance(vocab, dict) else {}
    if isinstance(vocab, list):
        pieces = (entry[0] if isinstance(entry, list) and entry else None for entry in vocab)
        ids = {piece: index for index, piece in enumerate(pieces) if isinstance(piece, str)}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    found = [text for text in dict.fromkeys(named) if text in ids and text not in known]
    return [*added, *({"id": ids[text], "content": text, "special": True, **plain} for text in found)]


def kind_of_folder(folder: Folder) -> str:
    """In a few words, for people."""
    described = folder.json("tokenizer.json")
    model = described.get("model")
    if not isinstance(model, dict):
        return "tokenizer.json, unusable: 'model' is no object"
    return f"tokenizer.json ({clipped(str(model.get('type')))}, {len(model.get('vocab') or ())} tokens and more)"


def _check(folder: Folder, described: Mapping[str, Any]) -> None:
    """What the library would take or pass over though Puna cannot use it."""
    model = described.get("model")
    if not isinstance(model, dict):
        _fail(folder, f"'model' is {brief(model)}; expected an object")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in MODELS:
        _fail(folder, f"the model is of type {brief(kind)}; Puna reads: {', '.join(MODELS)}")
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        _fail(folder, "the model marks parts of words (end_of_word_suffix, continuing_subword_prefix); Puna does not")
    if model.get("dropout"):
        _fail(folder, f"the model has dropout {brief(model['dropout'])}, so that a text has no one tokenization")
    if (growth := _growth(described.get("normalizer"))) > MAX_GROWTH:
        _fail(folder, f"its normalizer makes up to {brief(growth)} characters of one; allowed: {MAX_GROWTH}")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        for token, index in vocab.items():
            if type(index) is not int or not 0 <= index < MAX_ID:
                _fail(folder, f"token {clipped(token)!r} has the id {brief(index)}; expected one below {MAX_ID}")


def _vocabulary(
    folder: Folder,
    described: Mapping[str, Any],
    named: Mapping[str, str],
    reading: LibraryReading,
) -> Vocabulary:
    decoding = _read_decoder(folder, described.get("decoder"))
    ids = reading.ids
    if not ids or max(ids.values()) >= MAX_ID:
        _fail(folder, f"the vocabulary has {len(ids)} tokens with ids that do not start at 0 and stay below {MAX_ID}")
    texts, kinds = [""] * (max(ids.values()) + 1), [UNUSED] * (max(ids.values()) + 1)
    for text, index in ids.items():
        texts[index] = text
        kinds[index] = BYTE if decoding.bytes_by_name and byte_of(text) is not None else NORMAL
    for index, (text, special) in reading.added.items():
        texts[index] = text
        kinds[index] = CONTROL if special else USER_DEFINED
    padded(folder, texts, kinds)
    bos, eos = (ids.get(named.get(key, "")) for key in ("bos_token", "eos_token"))
    if reading.problem:
        _fail(folder, f"it cannot encode: {clipped(reading.problem)}")
    before, after = reading.before, reading.after
    for index in (*before, *after):
        if index >= len(texts):
            _fail(folder, f"its post-processor adds token {index}; the vocabulary has {len(texts)}")
    return Vocabulary(
        texts=tuple(texts),
        kinds=tuple(kinds),
        spelling=decoding.spelling,
        bos_id=bos if bos is not None else next(iter(before), None),
        eos_ids=end_ids(texts, kinds, [eos, *stated_ids(folder, len(texts))]),
        before=before,
        after=after,
        drops_first_space=decoding.drops_first_space,
        shrinks=_shrinks(described),
    )


def padded(folder: Folder, texts: list[str], kinds: list[int]) -> None:
    """Adds the rows of the embedding matrix that no token belongs to: a model can draw them, and they show nothing."""
    rows = folder.metadata.get("vocab_size")
    missing = rows - len(texts) if isinstance(rows, int) and rows <= MAX_ID else 0
    texts += [""] * missing
    kinds += [UNUSED] * missing


def around_by_config(
    folder: Folder, config: Mapping[str, Any], bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The tokens before and after a text as tokenizer_config.json wants them; None where it does not say."""
    keys = ("add_bos_token", "add_eos_token")
    for key in keys:
        if not isinstance(config.get(key), bool | None):
            folder.fail(f"tokenizer_config.json: {key!r} is {brief(config[key])}; expected true or false")
    if all(config.get(key) is None for key in keys):
        return None
    before, after = (
        (token,) if config.get(key) and token is not None else () for key, token in zip(keys, (bos, eos), strict=True)
    )
    return before, after


def _growth(normalizer: Any) -> int:
    """Characters that steps which write texts of their own make of one character, one step after the other."""
    growth, steps = 1, [normalizer]
    while steps and growth <= MAX_GROWTH:
        step = steps.pop()
        if isinstance(step, dict):
            inner = step.get("normalizers")
            steps += inner if isinstance(inner, list) else []
            written = (step.get("content"), step.get("prepend"))
            growth *= max([1, *(len(text) for text in written if isinstance(text, str))])
    return growth


def _shrinks(described: Mapping[str, Any]) -> int:
    """As Vocabulary has it, from the normalizer: composing (NFC) makes one character of four at most."""
    normalizer, model = described.get("normalizer"), described["model"]
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    kinds = {str(step.get("type")) for step in steps if isinstance(step, dict)}
    added = described.get("added_tokens") or []
    strips = any(token.get("lstrip") or token.get("rstrip") for token in added if isinstance(token, dict))
    fuses = not model.get("byte_fallback") and (model.get("fuse_unk") or model.get("type") == "Unigram")
    if strips or fuses or not kinds <= {"NFC", "Prepend", "Replace"}:
        return 0
    return 4 if "NFC" in kinds else 1


@dataclass(frozen=True)
class _Decoding:
    spelling: Spelling = "spaces"
    bytes_by_name: bool = False
    drops_first_space: bool = False


def _read_decoder(folder: Folder, decoder: Any) -> _Decoding:
    """What the steps of the file's decoder come to."""
    steps = list(_steps(folder, decoder))
    spelling: Spelling = "spaces"
    by_name = drops = False
    for step in steps:
        match step.get("type"):
            case "ByteLevel":
                spelling = "characters"
            case "ByteFallback":
                by_name = True
            case "Metaspace":
                scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
                drops = drops or scheme != "never"
                if step.get("replacement", SPACE) != SPACE:
                    _fail(
                        folder, f"its decoder writes a space as {brief(step.get('replacement'))}; Puna reads {SPACE!r}"
                    )
            case "Strip":
                if step.get("content") != " " or step.get("start") not in (0, 1) or step.get("stop"):
                    _fail(folder, f"its decoder has the step {clipped(str(step))}; Puna strips one space at the start")
                drops = drops or step.get("start") == 1
            case "Replace":
                if step.get("pattern") != {"String": SPACE} or step.get("content") != " ":
                    _fail(folder, f"its decoder has the step {clipped(str(step))}; Puna replaces {SPACE!r} by a space")
            case "Fuse":
                pass
            case kind:
                known = "ByteLevel, ByteFallback, Metaspace, Replace, Strip, Fuse, Sequence"
                _fail(folder, f"its decoder has a step of type {brief(kind)}; Puna reads: {known}")
    return _Decoding(spelling, by_name, drops)


def _steps(folder: Folder, decoder: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(decoder, dict):
        _fail(folder, f"'decoder' is {brief(decoder)}; expected an object that says how tokens become text")
    if decoder.get("type") != "Sequence":
        return [decoder]
    inner = decoder.get("decoders")
    if not isinstance(inner, list) or not all(isinstance(step, dict) for step in inner):
        _fail(folder, "'decoder' is a sequence without a list of steps")
    return inner


def named_tokens(folder: Folder, config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of bos_token and its like in tokenizer_config.json."""
    named = {}
    for key in _NAMED:
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            folder.fail(f"tokenizer_config.json: {key!r} is {brief(value)}; expected a token's text")
        if value:
            named[key] = value
    return named


def stated_ids(folder: Folder, count: int) -> list[int]:
    """`eos_token_id` of generation_config.json, or else of config.json: a number or a list of them."""
    for name in ("generation_config.json", "config.json"):
        value = (folder.metadata if name == "config.json" else folder.json(name)).get("eos_token_id")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for token in values:
            if type(token) is not int or not 0 <= token < count:
                folder.fail(f"{name}: 'eos_token_id' is {brief(value)}; expected token ids from 0 to {count - 1}")
        return values
    return []


def _fail(folder: Folder, message: str) -> NoReturn:
    folder.fail(f"tokenizer.json: {message}")
