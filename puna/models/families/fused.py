"""How heads lie in tensors that hold queries, keys and values together.

Two layouts are known: all queries, then all keys, then all values; or group by group, where each key head comes behind
the query heads that share it. Knows names and row numbers, no bytes; weights.py cuts and picks.
"""

from __future__ import annotations

from puna.models.facts import Facts
from puna.models.families.family import Sizes
from puna.models.weights import Picked, Rows, Source, Turned


def queries_keys_values(
    name: str, heads: int, kv_heads: int, head_dim: int, *, by_group: bool = False, turned: bool = False
) -> dict[str, Source]:
    """Sources of the three weights and their biases. `name`: of the tensor, without ".weight" or ".bias". `turned`:
    its matrix lies as (in_features, out_features)."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    order = by_kind(heads, kv_heads, head_dim) if by_group else ()
    found: dict[str, Source] = {}
    for ending, ours in (("weight", ""), ("bias", ".bias")):
        whole: Source = f"{name}.{ending}"
        if turned and ending == "weight":
            whole = Turned(whole)
        if by_group:
            whole = Picked(whole, order)
        found[f"attention.query{ours}"] = Rows(whole, 0, queries)
        found[f"attention.key{ours}"] = Rows(whole, queries, queries + keys)
        found[f"attention.value{ours}"] = Rows(whole, queries + keys, queries + 2 * keys)
    return found


def by_kind(heads: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    """The rows of a tensor that lies by group, in the order of queries, keys, values.

    rows, by group:  | q 0 | q 1 | ... | k 0 | v 0 |  | q n | ... | k 1 | v 1 |   head_dim rows each
    """
    sharing = heads // kv_heads
    group = [[g * (sharing + 2) + head for head in range(sharing + 2)] for g in range(kv_heads)]
    queries = [head for members in group for head in members[:sharing]]
    keys, values = [members[-2] for members in group], [members[-1] for members in group]
    return tuple(head * head_dim + row for head in (*queries, *keys, *values) for row in range(head_dim))


def check_rows(facts: Facts, tensor: str, sizes: Sizes) -> None:
    """Fails unless the tensor is there and has the rows of all heads; before as many are counted as a file claims."""
    rows = (sizes.heads[0] + 2 * sizes.kv_heads[0]) * sizes.head_dim
    found = facts.file.tensors.get(tensor)
    if found is None or found.shape[:1] != (rows,):
        shape = "missing" if found is None else f"of shape {found.shape}"
        facts.fail(f"tensor {tensor!r} is {shape}; it holds queries, keys and values and has to have {rows} rows")


def gguf_heads(facts: Facts, sizes: Sizes) -> dict[str, Source]:
    """GGUF files of families that fuse them: converters have put them by kind, or taken them apart."""
    if "blk.0.attn_qkv.weight" not in facts.file.tensors:
        return {}
    return queries_keys_values("attn_qkv", sizes.heads[0], sizes.kv_heads[0], sizes.head_dim)
