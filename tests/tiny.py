"""A Llama of a few thousand random weights in a GGUF file, for tests that need a model but not its wits.

It has a byte-level vocabulary with special tokens and a ChatML template, so the whole way from a chat message to
sampled text runs on it within milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.models.gguf_write import TensorToWrite, encode, write_gguf
from puna.models.vocabulary import CONTROL, NORMAL

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIRST_BYTE_ID = len(SPECIAL_TOKENS)
_WORDS = (
    *("the", "and", "ing", "llama", "user", "assistant", "system", "hello", "you", "that"),
    *("with", "for", "was", "are", "not", "this", "have", "from"),
)


def write_tiny_llama(
    path: str | Path,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn: int = 96,
    experts: int = 0,
    vocab: int = 300,
    context: int = 256,
    types: str | Mapping[str, str] = "F32",
    tied: bool = True,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a random model and gives back its path.

    `types`: the element type of all matrices, or a mapping from parts of tensor names to types (first hit wins; ""
    hits all), as in {"token_embd": "Q8_0", "": "Q4_1"}. Norms are F32. `metadata` is added to what is written, a value
    of None takes an entry out. `vocab` is at least 259: three special tokens and all bytes. `experts`: so many
    feed-forwards a layer, of which a token takes two; 0 is a plain one.
    """
    tokens, merges = tiny_vocabulary(vocab)
    random = np.random.default_rng(seed)
    tensors: list[TensorToWrite] = []

    def matrix(name: str, rows: int, columns: int, spread: float) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(spread)
        tensors.append(encode(name, values, _type_of(name, types)))

    def feed_forward(name: str, rows: int, columns: int) -> None:
        if not experts:
            matrix(f"{name}.weight", rows, columns, columns**-0.5)
            return
        values = random.standard_normal((experts, rows, columns), np.float32) * np.float32(columns**-0.5)
        tensors.append(encode(f"{name}_exps.weight", values, _type_of(name, types)))

    def norm(name: str) -> None:
        tensors.append(encode(name, 1 + 0.1 * random.standard_normal(width, np.float32), "F32"))

    matrix("token_embd.weight", vocab, width, 1.0)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        norm(prefix + "attn_norm.weight")
        matrix(prefix + "attn_q.weight", heads * head_dim, width, 2 / width**0.5)
        matrix(prefix + "attn_k.weight", kv_heads * head_dim, width, 2 / width**0.5)
        matrix(prefix + "attn_v.weight", kv_heads * head_dim, width, 1 / width**0.5)
        matrix(prefix + "attn_output.weight", width, heads * head_dim, 1 / (heads * head_dim) ** 0.5)
        norm(prefix + "ffn_norm.weight")
        if experts:
            matrix(prefix + "ffn_gate_inp.weight", experts, width, 2 / width**0.5)
        feed_forward(prefix + "ffn_gate", ffn, width)
        feed_forward(prefix + "ffn_up", ffn, width)
        feed_forward(prefix + "ffn_down", width, ffn)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", vocab, width, 1.0)

    entries: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny Llama",
        "general.license": "apache-2.0",
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head_dim,
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(
            [CONTROL] * len(SPECIAL_TOKENS) + [NORMAL] * (vocab - len(SPECIAL_TOKENS)), np.int32
        ),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    if experts:
        entries |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    entries |= metadata or {}
    write_gguf(path, {key: value for key, value in entries.items() if value is not None}, tensors)
    return Path(path)


def tiny_vocabulary(vocab: int) -> tuple[list[str], list[str]]:
    """Tokens and merges: the special tokens, all bytes in their order, then pieces of common words, then filler."""
    if vocab < FIRST_BYTE_ID + 256:
        raise ValueError(
            f"a vocabulary of {vocab} tokens has no room for all bytes; the least is {FIRST_BYTE_ID + 256}"
        )
    characters = _characters_of_bytes()
    tokens = [*SPECIAL_TOKENS, *characters]
    merges: list[str] = []
    for word in _WORDS:
        left = characters[ord(" ")]
        for letter in word:
            if left + letter not in tokens:
                tokens.append(left + letter)
                merges.append(f"{left} {letter}")
            left += letter
    merges = merges[: vocab - FIRST_BYTE_ID - 256]
    tokens = tokens[:vocab]
    return tokens + [f"[unused {index}]" for index in range(len(tokens), vocab)], merges


def _characters_of_bytes() -> list[str]:
    others = iter(range(0x100, 0x200))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _type_of(name: str, types: str | Mapping[str, str]) -> str:
    if isinstance(types, str):
        return types
    return next((kind for part, kind in types.items() if part in name), "F32")
