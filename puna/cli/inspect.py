"""`puna inspect`: what is in a model file, and what a question becomes for it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A name (see `puna models`), a .gguf file or a folder.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Show exactly what this question becomes: text and token ids.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message, for --prompt.")] = None,
    messages: Annotated[
        Path | None,
        typer.Option("--messages", help="The same for a conversation: a JSON file with a list of messages."),
    ] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", help="A JSON file with a list of tools, for --prompt and --messages.")
    ] = None,
) -> None:
    """Describe a model file."""
    _check_usage(prompt, system, messages, tools, tensors)
    from puna.cli.progress import PullProgress
    from puna.models.names import resolve

    with PullProgress() as progress:
        path = resolve(model, progress=progress)
    conversation = _conversation(prompt, system, messages)
    facts = _prompt_facts(path, conversation, tools) if conversation else _file_facts(path, with_tensors=tensors)
    if json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(facts, enc_hook=str), indent=2).decode())
    elif conversation:
        _print_prompt(facts)
    else:
        _print_facts(facts)


def _check_usage(
    prompt: str | None, system: str | None, messages: Path | None, tools: Path | None, tensors: bool
) -> None:
    if prompt is None and system is not None:
        raise typer.BadParameter("needs --prompt", param_hint="--system")
    if prompt is not None and messages is not None:
        raise typer.BadParameter("does not go with --prompt; put the question into the file", param_hint="--messages")
    if prompt is None and messages is None and tools is not None:
        raise typer.BadParameter("needs --prompt or --messages", param_hint="--tools")
    if (prompt is not None or messages is not None) and tensors:
        raise typer.BadParameter("does not go with --prompt and --messages", param_hint="--tensors")


def _conversation(prompt: str | None, system: str | None, messages: Path | None) -> list[Any]:
    """Empty where no conversation was asked about."""
    if messages is not None:
        return _json_list(messages, "messages")
    if prompt is None:
        return []
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]


def _json_list(path: Path, what: str) -> list[Any]:
    """Raises InputError, naming the file, where there is no list of objects in it."""
    import json

    from puna.errors import InputError

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}", param=what) from None
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"{path}: expected a JSON list of {what}, each an object", param=what)
    return value


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


def _prompt_facts(path: Path, conversation: list[Any], tools: Path | None) -> dict[str, Any]:
    from puna.engine.prompts import as_conversations, chat_prompts
    from puna.models.load import load_model

    loaded = load_model(path)
    given = {} if tools is None else {"tools": _json_list(tools, "tools")}
    (rendered,) = chat_prompts(loaded, as_conversations(conversation), True, given, [None])
    tokens = [{"id": token, "text": loaded.tokenizer.token_text(token)} for token in rendered.token_ids]
    facts = {"text": rendered.text, "count": len(tokens), "tokens": tokens}
    if given:
        (plain,) = chat_prompts(loaded, as_conversations(conversation), True, {}, [None])
        facts["tools_rendered"] = plain.text != rendered.text
    return facts


def _print_prompt(facts: dict[str, Any]) -> None:
    print(facts["text"])
    print(f"--- {facts['count']} tokens")
    if facts.get("tools_rendered") is False:
        print("this model's chat template has no place for tools: they are not in the prompt", file=sys.stderr)
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
    for share in facts["matrices"]:
        print(f"{'multiplied as':16} {share['type']}: {share['tensors']} matrices, {format_bytes(share['bytes'])}")
    for tensor in facts.get("tensors", ()):
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"{plain(tensor['name']):40} {tensor['type']:6} {shape:>16} {format_bytes(tensor['bytes']):>12}")
