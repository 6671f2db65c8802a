"""Turns a model's description into the straight line of operators that every backend interprets.

The order of operators is decided here and nowhere else. Weights are named by their place in the model
("layers.3.attention.query", "layers.3.attention.query.bias"), never by a file's names. Buffers are reused from layer
to layer; a buffer's name gets its width appended where two layers disagree about it.
"""

from __future__ import annotations

from puna.kernels.program import (
    Activate,
    Add,
    Attend,
    Embed,
    EmbedPositions,
    Experts,
    Gate,
    KVShape,
    LayerNorm,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    Scale,
    ScaleRows,
    Softcap,
    StoreKV,
)
from puna.models.spec import (
    AttentionSpec,
    BranchSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)


def lower(spec: ModelSpec) -> Program:
    """The program of a model."""
    line = _Line(spec.width)
    line.ops.append(Embed("hidden", "embedding"))
    if spec.embedding_scale != 1.0:
        line.ops.append(Scale("hidden", spec.embedding_scale))
    if spec.learned_positions:
        line.ops.append(EmbedPositions("hidden", "positions", spec.position_offset))
    if spec.embedding_norm is not None:
        line.norm(spec.embedding_norm, "hidden", "hidden", "embedding_norm")
    for index, layer in enumerate(spec.layers):
        line.layer(layer, index)
    body, line.ops = tuple(line.ops), []

    source = "hidden"
    if spec.final_norm is not None:
        source = line.buffer("normed", spec.width)
        line.norm(spec.final_norm, "hidden", source, "output_norm")
    line.buffer("logits", spec.vocab_size)
    output = "embedding" if spec.tied_head else "output"
    line.ops.append(Linear(source, "logits", output, "output.bias" if spec.output_bias else None))
    if spec.logit_divisor != 1.0:
        line.ops.append(Scale("logits", 1.0 / spec.logit_divisor))
    if spec.logit_softcap:
        line.ops.append(Softcap("logits", spec.logit_softcap))
    kv = tuple(KVShape(layer.attention.kv_heads, layer.attention.head_dim) for layer in spec.layers)
    return Program(dict(line.widths), body, tuple(line.ops), kv, spec.vocab_size)


def weight_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """The shape that each weight has to have, as the operators that read it imply. Position tables have as many rows
    as the model was given; their first extent is -1 here."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in program.body + program.head:
        if isinstance(op, Embed):
            shapes[op.weight] = (program.vocab_size, program.buffers[op.out])
        elif isinstance(op, EmbedPositions):
            shapes[op.weight] = (-1, program.buffers[op.out])
        elif isinstance(op, Linear):
            shapes[op.weight] = (program.buffers[op.out], program.buffers[op.src])
        elif isinstance(op, RmsNorm):
            shapes[op.weight] = (op.group or program.buffers[op.src],)
        elif isinstance(op, LayerNorm):
            shapes[op.weight] = (program.buffers[op.src],)
        elif isinstance(op, Experts):
            experts, inputs, outputs = (program.buffers[name] for name in (op.router, op.src, op.out))
            shapes[op.gate] = shapes[op.up] = (experts, op.width, inputs)
            shapes[op.down] = (experts, outputs, op.width)
        if isinstance(op, Linear | LayerNorm) and op.bias is not None:
            shapes[op.bias] = (program.buffers[op.out],)
    return shapes


class _Line:
    """Operators as they are laid down, and the buffers they need."""

    def __init__(self, width: int) -> None:
        self.ops: list[Op] = []
        self.widths: dict[str, int] = {"hidden": width}
        self.width = width

    def buffer(self, name: str, width: int) -> str:
        if self.widths.get(name, width) != width:
            name = f"{name}_{width}"
        self.widths[name] = width
        return name

    def norm(self, norm: NormSpec, source: str, out: str, weight: str, group: int = 0) -> None:
        if norm.kind == "rms":
            self.ops.append(RmsNorm(source, out, weight, norm.eps, group))
        else:
            self.ops.append(LayerNorm(source, out, weight, f"{weight}.bias" if norm.bias else None, norm.eps))

    def layer(self, layer: LayerSpec, index: int) -> None:
        """In turn, each branch reads what those before it have added; parallel ones are normalised before any adds."""
        if not layer.parallel:
            for branch in layer.branches:
                self.branch(branch, index, self.norm_before(branch, index))
            return
        sources = [self.norm_before(branch, index, f"normed.{branch.name}") for branch in layer.branches]
        for branch, source in zip(layer.branches, sources, strict=True):
            self.branch(branch, index, source)

    def norm_before(self, branch: BranchSpec, layer: int, buffer: str = "normed") -> str:
        if branch.norm_before is None:
            return "hidden"
        out = self.buffer(buffer, self.width)
        self.norm(branch.norm_before, "hidden", out, f"layers.{layer}.{branch.name}.norm")
        return out

    def branch(self, branch: BranchSpec, layer: int, source: str) -> None:
        """Adds straight into the residual stream, unless something stands between the last matrix and the addition."""
        prefix = f"layers.{layer}.{branch.name}"
        direct = branch.norm_after is None and branch.factor == 1.0
        out = "hidden" if direct else self.buffer("branch", self.width)
        if isinstance(branch.compute, AttentionSpec):
            self.attention(branch.compute, source, out, prefix, layer)
        elif isinstance(branch.compute, ExpertsSpec):
            self.experts(branch.compute, source, out, prefix)
        else:
            self.feed_forward(branch.compute, source, out, prefix)
        if direct:
            return
        if branch.norm_after is not None:
            self.norm(branch.norm_after, out, out, f"{prefix}.norm_after")
        if branch.factor != 1.0:
            self.ops.append(Scale(out, branch.factor))
        self.ops.append(Add(out, "hidden"))

    def attention(self, spec: AttentionSpec, source: str, out: str, prefix: str, layer: int) -> None:
        query = self.buffer("query", spec.heads * spec.head_dim)
        key = self.buffer("key", spec.kv_heads * spec.head_dim)
        value = self.buffer("value", spec.kv_heads * spec.head_dim)
        attended = self.buffer("attended", spec.heads * spec.head_dim)
        self.linear(source, query, f"{prefix}.query", spec.query_bias)
        self.linear(source, key, f"{prefix}.key", spec.key_bias)
        self.linear(source, value, f"{prefix}.value", spec.value_bias)
        if spec.query_key_norm is not None:
            group = 0 if spec.norm_whole_rows else spec.head_dim
            self.norm(spec.query_key_norm, query, query, f"{prefix}.query_norm", group)
            self.norm(spec.query_key_norm, key, key, f"{prefix}.key_norm", group)
        if spec.rope is not None:
            self.ops.append(_rope(spec.rope, query, spec.heads, spec.head_dim))
            self.ops.append(_rope(spec.rope, key, spec.kv_heads, spec.head_dim))
        self.ops.append(StoreKV(layer, key, value))
        self.ops.append(
            Attend(
                layer,
                query,
                attended,
                heads=spec.heads,
                kv_heads=spec.kv_heads,
                head_dim=spec.head_dim,
                scale=spec.scale,
                window=spec.window,
                softcap=spec.softcap,
            )
        )
        self.linear(attended, out, f"{prefix}.output", spec.output_bias)

    def feed_forward(self, spec: FeedForwardSpec, source: str, out: str, prefix: str) -> None:
        up = self.buffer("up", spec.width)
        if spec.gated:
            gate = self.buffer("gate", spec.width)
            self.linear(source, gate, f"{prefix}.gate", spec.gate_bias)
            self.linear(source, up, f"{prefix}.up", spec.up_bias)
            self.ops.append(Gate(gate, up, gate, spec.activation))
            self.linear(gate, out, f"{prefix}.down", spec.down_bias)
        else:
            self.linear(source, up, f"{prefix}.up", spec.up_bias)
            self.ops.append(Activate(up, up, spec.activation))
            self.linear(up, out, f"{prefix}.down", spec.down_bias)

    def experts(self, spec: ExpertsSpec, source: str, out: str, prefix: str) -> None:
        """The shared feed-forward first: the experts then add to what it leaves."""
        router = self.buffer("router", spec.experts)
        self.linear(source, router, f"{prefix}.router", bias=False)
        if spec.shared_width:
            shared = self.buffer("shared", self.width)
            self.feed_forward(FeedForwardSpec(spec.shared_width, spec.activation), source, shared, f"{prefix}.shared")
            if spec.shared_gate:
                gate = self.buffer("shared_gate", 1)
                self.linear(source, gate, f"{prefix}.shared.router", bias=False)
                self.ops.append(ScaleRows(shared, gate))
        self.ops.append(
            Experts(
                source,
                router,
                out,
                f"{prefix}.gate",
                f"{prefix}.up",
                f"{prefix}.down",
                used=spec.used,
                width=spec.width,
                kind=spec.activation,
                normalised=spec.normalised,
                scale=spec.scale,
                accumulate=out == "hidden",
            )
        )
        if spec.shared_width:
            self.ops.append(Add(shared, out))

    def linear(self, source: str, out: str, weight: str, bias: bool) -> None:
        self.ops.append(Linear(source, out, weight, f"{weight}.bias" if bias else None, accumulate=out == "hidden"))


def _rope(rope: RopeSpec, buffer: str, heads: int, head_dim: int) -> Rope:
    return Rope(buffer, heads, head_dim, rope.inverse_frequencies(), rope.style, rope.magnitude)
