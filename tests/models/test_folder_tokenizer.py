"""tokenizer.json and tokenizer.model: the file's own rules, exact bytes, and one clear error for what is broken."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import InputError, ModelFileError
from puna.models.tokenizer import Tokenizer
from puna.models.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN
from tests.models.small_tokenizers import (
    BYTES,
    PIECES,
    SPACE,
    SPECIAL,
    added,
    folder_tokenizer,
    sentencepiece_bpe,
    sentencepiece_model,
    unigram,
)

any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[SPACE]))  # which stands for a space
COUNT = len(SPECIAL) + len(BYTES) + len(PIECES)
SCORED = [
    *[(text, 0.0, kind) for text, kind in zip(SPECIAL, (UNKNOWN, CONTROL, CONTROL), strict=True)],
    *[(text, 0.0, BYTE) for text in BYTES],
    *[(text, -float(place), NORMAL) for place, text in enumerate(PIECES)],
]


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return folder_tokenizer(tmp_path_factory.mktemp("t"), tokenizer=sentencepiece_bpe())


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    files: dict[str, Any] = {"tokenizer": sentencepiece_bpe()}
    if request.param == "tokenizer.model":
        files = {"model": sentencepiece_model(SCORED)}
    return folder_tokenizer(tmp_path_factory.mktemp("t"), **files)


def test_words_bytes_and_the_first_space_are_as_sentencepiece_has_them(either: Tokenizer) -> None:
    pieces = [either.token_bytes(token) for token in either.encode("the lama é")]
    assert pieces == [b"<s>", b" the", b" ", b"lama", b" ", b"\xc3", b"\xa9"]
    assert either.special_ids == {0, 1, 2}
    assert either.bos_id == 1
    assert either.eos_ids == (2,)
    assert either.adds_bos


@given(any_text, st.booleans())
def test_any_text_comes_back_at_once_and_token_by_token(either: Tokenizer, text: str, parse_special: bool) -> None:
    if parse_special and any(name in text for name in SPECIAL):
        return
    ids = either.encode(text, parse_special=parse_special)
    stream = either.detokenizer()
    assert either.decode(ids) == text
    assert "".join(map(stream.push, ids)) + stream.flush() == text


@given(st.lists(st.integers(0, COUNT - 1), max_size=30), st.booleans())
def test_streamed_text_is_the_decoded_text(either: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = either.detokenizer(skip_special_tokens=skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == either.decode(ids, skip_special_tokens=skip)


def test_the_first_space_goes_at_the_beginning_of_a_text_only(either: Tokenizer) -> None:
    the = either.encode("the", add_special=False)
    assert either.decode([1, *the, *the]) == "the the"
    assert either.detokenizer([1]).push_all(the) == "the"
    assert either.detokenizer(either.encode("lama")).push_all(the) == " the"
    assert either.decode([1, *the], skip_special_tokens=False) == "<s> the"


def test_special_tokens_stay_text_where_they_are_not_parsed(either: Tokenizer) -> None:
    assert either.encode("<s>")[1:] == [1]
    plain = either.encode("<s>", parse_special=False)
    assert not either.special_ids & set(plain[1:])
    assert either.decode(plain) == "<s>"


def test_no_space_is_dropped_where_none_was_put(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=sentencepiece_bpe(prefix=False))
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_unigrams_take_the_likeliest_cut(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=unigram())
    assert [tokenizer.token_text(token) for token in tokenizer.encode("lama the")] == [" l", "a", "ma", " the"]
    assert tokenizer.decode(tokenizer.encode("lama the")) == "lama the"
    assert tokenizer.fewest_tokens("7" * 10_000) == 0  # a run of unknown characters is one token


def test_begin_and_end_tokens_are_the_post_processors_or_else_the_configs(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}
    by_config = folder_tokenizer(tmp_path, model=sentencepiece_model(SCORED), tokenizer_config=config)
    by_processor = folder_tokenizer(tmp_path, tokenizer=sentencepiece_bpe())
    the = by_config.encode("the", add_special=False)
    assert by_config.encode("the") == [*the, 2]
    assert by_processor.encode("the") == [1, *the]
    assert not by_config.adds_bos


@pytest.mark.parametrize("described", [sentencepiece_bpe(), unigram()], ids=["bpe", "unigram"])
def test_a_token_that_only_tokenizer_config_calls_special_is_found_in_text(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    token = "h"
    number = [piece if isinstance(piece, str) else piece[0] for piece in described["model"]["vocab"]].index(token)
    tokenizer = folder_tokenizer(tmp_path, tokenizer=described, tokenizer_config={"cls_token": token})
    assert number in tokenizer.special_ids
    assert number in tokenizer.encode("the")
    assert number not in tokenizer.encode("the", parse_special=False)


def test_end_ids_are_those_of_generation_config(tmp_path: Path) -> None:
    files = {"tokenizer": sentencepiece_bpe(), "generation_config": {"eos_token_id": [5, 6]}}
    assert folder_tokenizer(tmp_path, {"eos_token_id": 7}, **files).eos_ids == (5, 6, 2)
    (tmp_path / "generation_config.json").unlink()
    assert folder_tokenizer(tmp_path, {"eos_token_id": 7}).eos_ids == (7, 2)


def test_rows_of_the_model_without_a_token_show_nothing(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, {"vocab_size": COUNT + 5}, tokenizer=sentencepiece_bpe())
    assert tokenizer.vocab_size == COUNT + 5
    assert tokenizer.token_bytes(COUNT + 4) == b""
    with pytest.raises(InputError, match=f"{COUNT + 5} tokens"):
        tokenizer.token_bytes(COUNT + 5)


def test_what_the_file_says_of_cutting_short_and_filling_up_is_passed_over(tmp_path: Path) -> None:
    described = sentencepiece_bpe()
    described["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    described["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    assert len(folder_tokenizer(tmp_path, tokenizer=described).encode("the the the the")) == 5


def test_added_plain_tokens_are_found_even_in_plain_text(tmp_path: Path) -> None:
    described = sentencepiece_bpe()
    described["added_tokens"].append(added(COUNT, "  é", special=False))
    tokenizer = folder_tokenizer(tmp_path, tokenizer=described)
    assert tokenizer.encode("the  é", parse_special=False)[-1] == COUNT
    assert tokenizer.token_bytes(COUNT) == "  é".encode()


BROKEN: list[tuple[str, Any, str]] = [
    ("model", None, "'model' is"),
    ("model.type", "WordPiece", "'WordPiece'; Puna reads: BPE, Unigram"),
    ("model.vocab", {"a": -1}, "'a' has the id -1"),
    ("model.vocab", {"a": 1 << 40}, "'a' has the id"),
    ("model.vocab", [], "cannot read it"),
    ("model.merges", [["x", "y"]], "cannot read it"),
    ("model.dropout", 0.1, "dropout"),
    ("model.end_of_word_suffix", "</w>", "parts of words"),
    ("decoder", None, "'decoder' is"),
    ("decoder.decoders", None, "cannot read it"),
    ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "'WordPiece'; Puna reads: ByteLevel"),
    ("decoder", {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}, "replaces"),
    ("decoder", {"type": "Strip", "content": " ", "start": 3, "stop": 0}, "strips one space"),
    ("added_tokens", [{"id": 1}], "cannot read it"),
    ("normalizer", {"type": "Nothing"}, "cannot read it"),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}, "cannot read it"),
]


@pytest.mark.parametrize(("key", "value", "said"), BROKEN, ids=lambda given: str(given)[:20])
def test_a_broken_tokenizer_json_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    described = sentencepiece_bpe()
    *path, last = key.split(".")
    place = described
    for step in path:
        place = place[step]
    place[last] = value
    with pytest.raises(ModelFileError, match=said):
        folder_tokenizer(tmp_path, tokenizer=described)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no tokenizer.json and no tokenizer.model"),
        ({"tokenizer": b"{"}, "tokenizer.json: is no valid JSON"),
        ({"tokenizer": b"[]"}, "expected a JSON object"),
        ({"model": sentencepiece_model(SCORED), "tokenizer_config": {"add_bos_token": 1}}, "'add_bos_token' is 1"),
        ({"tokenizer": sentencepiece_bpe(), "tokenizer_config": {"eos_token": 1}}, "'eos_token' is 1"),
        ({"tokenizer": sentencepiece_bpe(), "generation_config": {"eos_token_id": "x"}}, "'eos_token_id' is 'x'"),
        ({"tokenizer": sentencepiece_bpe(), "generation_config": {"eos_token_id": [COUNT]}}, f"0 to {COUNT - 1}"),
        ({"model": b""}, "it has no pieces"),
        ({"model": b"\x0a\xff"}, "ends within a number"),
        ({"model": b"\x0a\x7fxyz"}, "a field of 127 bytes"),
        ({"model": sentencepiece_model(SCORED, model_type=3)}, "neither a unigram nor a byte-pair model"),
    ],
)
def test_what_is_wrong_beside_tokenizer_json_is_named(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        folder_tokenizer(tmp_path, **files)


def test_a_tokenizer_json_broken_anywhere_opens_or_is_refused_with_one_error(tmp_path: Path) -> None:
    """Every value in turn replaced by others, every key left out, the text cut and its bytes changed."""
    drawn = random.Random(3)
    whole = sentencepiece_bpe(fallback=False)
    texts = [json.dumps(changed).encode() for changed in _changed(whole)]
    written = json.dumps(whole).encode()
    for _ in range(300):
        cut = bytearray(written)
        cut[drawn.randrange(len(cut))] = drawn.randrange(256)
        texts += [bytes(cut), written[: drawn.randrange(len(written))]]
    refusals = [refused for text in texts if (refused := _refusal(tmp_path, text))]
    assert all("tokenizer.json" in said or "eos_token_id" in said for said in refusals)
    assert 300 < len(refusals) < len(texts) - 50


def _refusal(folder: Path, text: bytes) -> str:
    """What the ModelFileError says; empty where the file opens and works."""
    try:
        tokenizer = folder_tokenizer(folder, tokenizer=text)
        tokenizer.decode(tokenizer.encode("the lama <s> é"))
    except ModelFileError as error:
        return str(error)
    return ""


def _changed(whole: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for path in _paths(whole):
        for value in (..., None, 1 << 70, "x", [], {}, [1], {"type": "x"}):
            changed = copy.deepcopy(whole)
            place: Any = changed
            for step in path[:-1]:
                place = place[step]
            if value is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            found.append(changed)
    return found


def _paths(value: Any) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(key, *rest) for key in list(keys)[:6] for rest in [(), *_paths(value[key])]]


def test_text_that_a_vocabulary_does_not_hold_for_is_an_input_error(tmp_path: Path) -> None:
    without_unknown = unigram()
    without_unknown["model"]["unk_id"] = None
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"tokenizer cannot encode the text: .*unknown token"):
        folder_tokenizer(tmp_path / "a", tokenizer=without_unknown).encode("the z")
    endless = sentencepiece_bpe()
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    endless["pre_tokenizer"] = split
    (tmp_path / "b").mkdir()
    for text in ("a" * 40 + "!", "a" * 5000 + "!"):  # the library panics, which is no Exception
        with pytest.raises(InputError, match=r"tokenizer cannot encode the text: .*retry-limit"):
            folder_tokenizer(tmp_path / "b", tokenizer=endless).encode(text)


def test_a_token_around_texts_that_no_vocabulary_has_is_refused(tmp_path: Path) -> None:
    described = sentencepiece_bpe()
    described["post_processor"]["special_tokens"]["<s>"]["ids"] = [99_999]
    with pytest.raises(ModelFileError, match=r"post-processor adds token 99999; the vocabulary has 274"):
        folder_tokenizer(tmp_path, tokenizer=described)


@pytest.mark.parametrize("steps", [[10_000], [100, 100]])
def test_a_normalizer_that_blows_texts_up_is_refused(tmp_path: Path, steps: list[int]) -> None:
    described = sentencepiece_bpe()
    growing = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * count} for count in steps]
    described["normalizer"] = {"type": "Sequence", "normalizers": growing}
    with pytest.raises(ModelFileError, match=r"normalizer makes up to 10000 characters of one; allowed: 4096"):
        folder_tokenizer(tmp_path, tokenizer=described)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, score: float) -> None:
    pieces = [("<unk>", 0.0, 2), ("a", score, 1)]
    with pytest.raises(ModelFileError, match=r"piece 1, 'a', has the score (nan|inf)"):
        folder_tokenizer(tmp_path, model=sentencepiece_model(pieces))
