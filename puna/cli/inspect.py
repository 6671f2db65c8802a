"""`puna inspect`: what is in a model file, and what a question becomes for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A name (see `puna models`) or a .gguf file.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Show exactly what this question becomes: text and token ids.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message, for --prompt.")] = None,
) -> None:
    """Describe a model file."""
    if prompt is None and system is not None:
        raise typer.BadParameter("needs --prompt", param_hint="--system")
    if prompt is not None and tensors:
        raise typer.BadParameter("does not go with --prompt", param_hint="--tensors")
    from puna.cli.progress import PullProgress
    from puna.models.names import resolve

    with PullProgress() as progress:
        path = resolve(model, progress=progress)
    facts = _prompt_facts(path, prompt, system) if prompt is not None else _file_facts(path, with_tensors=tensors)
    if json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(facts, enc_hook=str), indent=2).decode())
    elif prompt is not None:
        _print_prompt(facts)
    else:
        _print_facts(facts)


def _file_facts(path: Path, *, with_tensors: bool) -> dict[str, Any]:
    from puna.models.inspect import describe
    from puna.models.load import load_model

    facts = dataclasses.asdict(describe(path))
    if with_tensors:
        facts["tensors"] = [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape, "bytes": tensor.nbytes}
            for tensor in load_model(path).file.tensors.values()
        ]
    return facts


def _prompt_facts(path: Path, prompt: str, system: str | None) -> dict[str, Any]:
    from puna.engine.prompts import chat_prompts
    from puna.models.load import load_model

    loaded = load_model(path)
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
    (rendered,) = chat_prompts(loaded, messages, True, {})
    tokens = [{"id": token, "text": loaded.tokenizer.token_text(token)} for token in rendered.token_ids]
    return {"text": rendered.text, "count": len(tokens), "tokens": tokens}


def _print_prompt(facts: dict[str, Any]) -> None:
    print(facts["text"])
    print(f"--- {facts['count']} tokens")
    for token in facts["tokens"]:
        print(f"{token['id']:>8}  {token['text']!r}")


def _print_facts(facts: dict[str, Any]) -> None:
    from puna.cli.plain import plain
    from puna.engine.memory import format_bytes

    kv = ", ".join(f"{format_bytes(size)} as {kind}" for kind, size in facts["kv_bytes_per_token"].items())
    lines = {
        "name": facts["name"],
        "file": f"{facts['path']} ({format_bytes(facts['file_bytes'])}, {facts['container']})",
        "fingerprint": facts["fingerprint"],
        "family": facts["family"],
        "layers": f"{facts['layers']} of width {facts['width']}, feed-forward {facts['feed_forward_width']}",
        "heads": f"{facts['heads']} of {facts['head_dim']}, {facts['kv_heads']} for keys and values",
        "context": f"{facts['context_length']} tokens",
        "vocabulary": f"{facts['vocab_size']} tokens{', tied to the output' if facts['tied_head'] else ''}",
        "parameters": f"{facts['parameters']:,} at {facts['bits_per_parameter']:.2f} bits",
        "keys and values": f"{kv}, a token",
        "tokenizer": facts["tokenizer"],
        "chat template": "yes" if facts["chat_template"] else "no",
        "licence": facts["licence"] or "not stated",
    }
    for name, value in lines.items():
        print(f"{name:16} {plain(value)}")
    for share in facts["types"]:
        print(f"{share['type']:16} {share['tensors']} tensors, {format_bytes(share['bytes'])}")
    for tensor in facts.get("tensors", ()):
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"{plain(tensor['name']):40} {tensor['type']:6} {shape:>16} {format_bytes(tensor['bytes']):>12}")
