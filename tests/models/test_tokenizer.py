"""Text to ids and back: as the file says, as others do, and the same whether at once or token by token."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from puna.errors import InputError, ModelFileError
from puna.models.encoders import LONG_TEXT
from puna.models.gguf import read_gguf
from puna.models.gguf_write import write_gguf
from puna.models.load import LoadedModel, load_model
from puna.models.pretokenizers import PRE_TOKENIZERS
from puna.models.tokenizer import Tokenizer
from puna.models.vocabulary import NORMAL, USER_DEFINED
from tests.tiny import FIRST_BYTE_ID, SPECIAL_TOKENS, tiny_vocabulary, write_tiny_llama

DATA = Path(__file__).parent / "data"
TEXTS = [json.loads(line) for line in (DATA / "corpus.txt").read_text().splitlines()]
RECORDED = json.loads((DATA / "tokenization.json").read_text())

CUTS = json.loads((DATA / "cuts.json").read_text())

any_text = st.text(st.characters(exclude_categories=["Cs"]))
tiny_ids = st.lists(st.integers(0, 299), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tiny: LoadedModel) -> Tokenizer:
    return tiny.tokenizer


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    def make_tokenizer(**metadata: Any) -> Tokenizer:
        entries = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
        return load_model(write_tiny_llama(tmp_path_factory.mktemp("m") / "m.gguf", metadata=entries)).tokenizer

    return make_tokenizer


def test_merges_are_used_and_bytes_are_the_rest(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(i) for i in tokenizer.encode(" the llama é")] == [" the", " llama", " ", "�", "�"]


def test_special_tokens_are_cut_out_of_the_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [1, FIRST_BYTE_ID + ord("a"), 2]
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.token_id("no such token") is None


def test_special_tokens_stay_text_where_they_are_not_parsed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>", parse_special=False)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == "<|im_start|>"


def test_special_tokens_are_hidden_from_text_unless_wanted(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>a<|im_end|>")
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>a<|im_end|>"


def test_begin_and_end_tokens_are_added_where_the_file_asks_for_them(make: Callable[..., Tokenizer]) -> None:
    neither, both = make(), make(add_bos_token=True, add_eos_token=True)
    assert neither.encode("a") == [100]
    assert both.encode("a") == [1, 100, 2]
    assert both.encode("a", add_special=False) == [100]
    assert both.encode("") == [1, 2]


def test_the_llama_3_convention_adds_a_begin_token_where_the_file_is_silent(make: Callable[..., Tokenizer]) -> None:
    assert make(pre="llama-bpe", add_bos_token=None).encode("a") == [1, 100]


def test_end_tokens_are_the_files_own_first_then_those_that_end_a_turn(make: Callable[..., Tokenizer]) -> None:
    assert make().eos_ids == (2, 0)
    assert make(eos_token_id=0).eos_ids == (0, 2)
    assert make(eos_token_id=0, eot_token_id=1).eos_ids == (0, 1, 2)


def test_tokens_that_the_maker_added_are_found_even_in_plain_text(make: Callable[..., Tokenizer]) -> None:
    kinds = np.array([USER_DEFINED, 3, 3] + [NORMAL] * 297, np.int32)
    tokenizer = make(token_type=kinds)
    ids = tokenizer.encode("a<|endoftext|><|im_end|>", parse_special=False)
    assert ids[:2] == [100, 0]
    assert 2 not in ids
    assert tokenizer.decode([0]) == "<|endoftext|>"


def test_the_longest_of_several_special_tokens_wins(make: Callable[..., Tokenizer]) -> None:
    tokens, _ = tiny_vocabulary(300)
    tokens[0], tokens[1] = "<x>", "<x><y>"
    assert make(tokens=tokens).encode("<x><y><x>") == [1, 0]


@given(any_text)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    for parse_special in (True, False):
        ids = tokenizer.encode(text, parse_special=parse_special)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


words = st.lists(st.sampled_from(["the", "llama", " ", "a", "a\u0301", "\u2581b", "<|im_end|>", "\n", "1"])).map(
    " ".join
)


@given(any_text | words)
def test_no_text_has_fewer_tokens_than_the_fewest(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))


def test_words_are_counted_where_no_token_has_two(make: Callable[..., Tokenizer]) -> None:
    assert make().fewest_tokens("llama " * 1000) == 1000
    tokens, _ = tiny_vocabulary(300)
    tokens[0] = "hello the llama"
    kinds = np.array([USER_DEFINED, 3, 3] + [NORMAL] * 297, np.int32)
    assert make(tokens=tokens, token_type=kinds).fewest_tokens("the " * 999) == 333


def test_long_text_has_the_tokens_of_its_parts(tokenizer: Tokenizer) -> None:
    text = "the llama said hello, and 123 others; with you\n"
    assert len(text) * 200 > LONG_TEXT > len(text)
    assert tokenizer.encode(text * 200) == tokenizer.encode(text) * 200


def test_other_threads_go_on_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    turns, done = 0, threading.Event()

    def encode() -> None:
        tokenizer.encode("7" * 400_000)
        done.set()

    worker = threading.Thread(target=encode)
    worker.start()
    while not done.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 5


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ude00x"])
def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match=r"U\+D[8-F]"):
        tokenizer.encode(text)


@pytest.mark.parametrize("token_id", [-1, 300, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(InputError, match="300 tokens"):
        tokenizer.decode([token_id])


@given(tiny_ids, st.booleans())
def test_text_token_by_token_is_the_text_at_once(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = tokenizer.detokenizer(skip_special_tokens=skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


@given(any_text)
def test_no_push_ever_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("�", "")
    stream = tokenizer.detokenizer()
    pieces = [stream.push(FIRST_BYTE_ID + byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_an_unfinished_character_is_given_out_at_the_end_as_a_replacement(tokenizer: Tokenizer) -> None:
    stream = tokenizer.detokenizer()
    assert [stream.push(FIRST_BYTE_ID + byte) for byte in "é".encode()[:1]] == [""]
    assert stream.flush() == "�"


@given(any_text, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), st.data())
def test_a_character_begun_in_the_prompt_is_finished_in_the_answer(
    tokenizer: Tokenizer, before: str, text: str, data: st.DataObject
) -> None:
    spelled = [FIRST_BYTE_ID + byte for byte in text.encode()]
    cut = data.draw(st.integers(0, len(spelled)))
    stream = tokenizer.detokenizer([*tokenizer.encode(before), *spelled[:cut]])
    answer = "".join(stream.push(token) for token in spelled[cut:]) + stream.flush()
    starts = [len(text[:i].encode()) for i in range(len(text) + 1)]
    assert answer == text[max(i for i in range(len(text) + 1) if starts[i] <= cut) :]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"model": "bert"}, "'bert'; Puna reads: 'gpt2', 'llama', 'gemma4', 't5'"),
        ({"model": "rwkv"}, "'rwkv'; Puna reads: 'gpt2'"),
        ({"model": "llama"}, "scores' has to be 300 numbers"),
        ({"model": "llama", "scores": np.full(300, np.nan, np.float32)}, "no finite number"),
        ({"model": None}, "tokenizer.ggml.model' is missing"),
        ({"pre": "mystery"}, "'mystery' is not known; known: .*smollm"),
        ({"tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"tokens": ["a", "b", "a"]}, "'a' twice"),
        ({"token_type": np.array([1, 2], np.int32)}, "300 whole numbers"),
        ({"merges": ["ab"]}, "'ab' has to be two tokens"),
        ({"merges": ["nothere neither"]}, "contradicts itself.*nothere"),
        ({"eos_token_id": 300}, "from 0 to 299"),
    ],
)
def test_a_broken_vocabulary_is_named(make: Callable[..., Tokenizer], metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        make(**metadata)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'m", " 1234", " ", " x", "!?", "\n\n"]),
        ("smollm", ["I", "'m", " ", "1", "2", "3", "4", " ", " x", "!?", "\n\n"]),
        ("llama-bpe", ["I", "'m", " ", "123", "4", " ", " x", "!?\n\n"]),
        ("qwen2", ["I", "'m", " ", "1", "2", "3", "4", " ", " x", "!?\n\n"]),
        ("default", ["I", "'", "m", " ", "123", "4", " ", " x", "!?", "\n\n"]),
    ],
)
def test_each_cut_splits_numbers_and_line_ends_its_own_way(pre: str, pieces: list[str]) -> None:
    text = "I'm 1234  x!?\n\n"
    assert cut_into(PRE_TOKENIZERS[pre].patterns, text) == pieces


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_cut_that_is_listed_can_be_built_and_loses_nothing(make: Callable[..., Tokenizer], pre: str) -> None:
    tokenizer = make(pre=pre, add_bos_token=False)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


# What the fast expressions stand for; each of these looks at all of a number from each of its digits.
PLAIN = {
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)"],
    # As the model's own tokenizer.json has it.
    "afmoe": [
        r"\p{Nd}{1,510}(?=(?>\p{Nd}{510})*(?:\P{Nd}|$))|\G\p{Nd}{510}",
        r"\A\p{Nd}{1,2}(?=\p{Nd}{3}+\z)",
        r"\A\p{Nd}{3}|\G\p{Nd}{3}",
    ],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
}
FAST = {pre: PRE_TOKENIZERS[pre].patterns[:count] for pre, count in (("tiny_aya", 1), ("afmoe", 1), ("superbpe", 2))}


def cut_into(patterns: Sequence[str], text: str) -> list[str]:
    found = [text]
    for pattern in patterns:
        split = Split(Regex(pattern), "isolated")
        found = [piece for part in found for piece, _ in split.pre_tokenize_str(part)]
    return found


@pytest.mark.parametrize("pre", PLAIN)
@given(st.text("1234567890٣½a _\u0301\n", max_size=30))
def test_numbers_are_cut_into_threes_from_the_right(pre: str, text: str) -> None:
    assert cut_into(FAST[pre], text) == cut_into(PLAIN[pre], text)


def test_a_number_is_cut_from_the_right_and_before_a_letter_each_in_its_way() -> None:
    cut = {pre: cut_into(FAST[pre], "x 1234567a") for pre in PLAIN}
    assert cut["afmoe"] == cut["superbpe"] == ["x ", "1", "234", "567", "a"]
    assert cut["tiny_aya"] == ["x 1234567a"]


def test_digits_beyond_five_hundred_are_cut_as_afmoe_s_own_expressions_cut_them() -> None:
    for count in (509, 510, 511, 512, 1019, 1021, 1023):
        text = "x  " + "7" * count + "\n"
        assert cut_into(FAST["afmoe"], text) == cut_into(PLAIN["afmoe"], text)


@pytest.mark.parametrize("end", ["", "a"])
@pytest.mark.parametrize("pre", ["tiny_aya", "afmoe", "superbpe"])
def test_a_million_digits_are_cut_at_once(make: Callable[..., Tokenizer], pre: str, end: str) -> None:
    """Steps that grow with the square of the length would take hours."""
    tokenizer = make(pre=pre)
    assert tokenizer.decode(tokenizer.encode("7" * 1_000_000 + end)) == "7" * 1_000_000 + end


def test_the_tiny_vocabulary_has_room_for_special_tokens_bytes_and_merges() -> None:
    tokens, merges = tiny_vocabulary(300)
    assert tokens[:3] == list(SPECIAL_TOKENS)
    assert len(set(tokens)) == 300
    assert len(merges) == 300 - 259
    assert len(tiny_vocabulary(259)[1]) == 0


@pytest.mark.model
@pytest.mark.parametrize("parse_special", [True, False])
def test_smollm2_tokenizes_as_llama_cpp_does(smollm2: LoadedModel, parse_special: bool) -> None:
    assert len(RECORDED["rows"]) == len(TEXTS) > 200
    for row in RECORDED["rows"]:
        expected = row["llama.cpp"][0 if parse_special else 1]
        assert smollm2.tokenizer.encode(row["text"], parse_special=parse_special) == expected, row["text"]


@pytest.mark.model
@pytest.mark.parametrize("recorded", CUTS["cuts"], ids=lambda recorded: recorded["pre"])
def test_every_cut_gives_the_ids_that_llama_cpp_gives(
    smollm2: LoadedModel, tmp_path: Path, recorded: dict[str, Any]
) -> None:
    """SmolLM2's vocabulary under another pre-tokenizer's name."""
    metadata = {**smollm2.metadata, "tokenizer.ggml.pre": recorded["pre"]}
    write_gguf(tmp_path / "vocabulary.gguf", metadata, [])
    tokenizer = Tokenizer.from_gguf(read_gguf(tmp_path / "vocabulary.gguf"))
    for text, expected in zip(TEXTS, recorded["crc32"], strict=True):
        assert zlib.crc32(json.dumps(tokenizer.encode(text)).encode()) == expected, text


@pytest.mark.model
def test_smollm2_tokenizes_as_transformers_does_but_for_digits(smollm2: LoadedModel) -> None:
    """Reading a GGUF file, transformers passes over `tokenizer.ggml.pre`, so digits after a space are not set apart."""
    differing = 0
    for row in RECORDED["rows"]:
        text = row["text"]
        if smollm2.tokenizer.encode(text) != row["transformers"][0]:
            differing += 1
            assert any(a.isspace() and b.isnumeric() for a, b in pairwise(text)), text
    assert differing < 15


@pytest.mark.model
def test_smollm2_gives_every_text_of_the_corpus_back(smollm2: LoadedModel) -> None:
    for text in TEXTS:
        ids = smollm2.tokenizer.encode(text)
        stream = smollm2.tokenizer.detokenizer(skip_special_tokens=False)
        assert "".join(map(stream.push, ids)) + stream.flush() == text


@pytest.mark.model
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=40), st.booleans())
def test_smollm2_streams_random_tokens_as_it_decodes_them(smollm2: LoadedModel, ids: list[int], skip: bool) -> None:
    stream = smollm2.tokenizer.detokenizer(skip_special_tokens=skip)
    joined = "".join(map(stream.push, ids)) + stream.flush()
    assert joined == smollm2.tokenizer.decode(ids, skip_special_tokens=skip)
    assert joined == b"".join(
        smollm2.tokenizer.token_bytes(i) for i in ids if not (skip and i in smollm2.tokenizer.special_ids)
    ).decode(errors="replace")


@pytest.mark.model
def test_smollm2_ends_turns_and_texts(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert [tokenizer.token_text(i) for i in tokenizer.eos_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.vocab_size == 49152
