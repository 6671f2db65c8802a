"""From messages or prompts to token ids, with the context limit checked before the engine hears of anything.

It knows the wire's shapes of a prompt and the model's tokenizer and chat template; it knows nothing of sampling.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from puna.engine.truncation import fit_conversation, last_tokens
from puna.server.errors import RequestError
from puna.server.ignored import Ignored

if TYPE_CHECKING:
    from puna.models.template import ChatTemplate
    from puna.models.tokenizer import Tokenizer

MAX_PROMPTS = 256
ROLES = ("system", "developer", "user", "assistant")
# Fields that clients send back with an assistant's message; these values say nothing.
_EMPTY_MESSAGE_FIELDS: dict[str, tuple[Any, ...]] = {
    "tool_calls": (None, []),
    "function_call": (None,),
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
    "reasoning_content": (None, ""),
}
_PART_FIELDS = {"type", "text", "cache_control"}  # the last asks for what happens anyway


@dataclass(frozen=True)
class Prompt:
    """`text` is what a client would call the prompt (for echo); `token_ids` is what the engine is given, and
    `truncated_tokens` says how many were cut."""

    text: str
    token_ids: list[int]
    truncated_tokens: int = 0


def chat_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: list[dict[str, Any]],
    context_tokens: int,
    limit: int | None,
    ignored: Ignored,
    *,
    prefill: str = "",
) -> Prompt:
    """`limit`: most tokens, to which a longer conversation is cut; None where it is to be refused. `prefill`: how the
    answer begins. Fields of messages that nobody reads are noted in `ignored`."""
    template, cleaned = conversation(template, messages, ignored)
    text = template.render(cleaned, add_generation_prompt=True) + prefill
    if limit is None:
        _check_length(tokenizer, text, context_tokens)
        return Prompt(text, tokenizer.encode(text, add_special=False, parse_special=True))

    def encode(of: Sequence[Mapping[str, Any]]) -> list[int]:
        rendered = template.render(of, add_generation_prompt=True) + prefill
        return tokenizer.encode(rendered, add_special=False, parse_special=True)

    return Prompt(text, *fit_conversation(cleaned, limit, encode, tokenizer))


def conversation(
    template: ChatTemplate | None, messages: list[dict[str, Any]], ignored: Ignored
) -> tuple[ChatTemplate, list[dict[str, Any]]]:
    """The template, and the messages as it takes them. RequestError where there is no template, or something in a
    message that this server does not understand."""
    if template is None:
        raise RequestError(
            "this model's file has no chat template; use /v1/completions, or a model that was tuned for chat",
            param="messages",
            code="no_chat_template",
        )
    if not messages:
        raise RequestError("messages is empty; send at least one", param="messages")
    cleaned = [_message(index, message, ignored) for index, message in enumerate(messages)]
    if any(message.get("name") for message in cleaned):
        _note_unread_names(template, cleaned, ignored)
    return template, cleaned


def completion_prompts(
    tokenizer: Tokenizer, prompt: str | list[Any], context_tokens: int, limit: int | None
) -> list[Prompt]:
    """A string, a list of strings, token ids, or a list of lists of token ids. Without a `limit` to cut it to, what
    cannot fit into the context is refused as soon as that is known: encoding megabytes of text takes seconds."""
    if limit is not None:
        return [_cut(tokenizer, whole, limit) for whole in completion_prompts(tokenizer, prompt, sys.maxsize, None)]
    if isinstance(prompt, str):
        return [_text(tokenizer, prompt, context_tokens)]
    if not prompt:
        raise RequestError("prompt is empty; send a string, strings, token ids or lists of token ids", param="prompt")
    if all(_is_id(item) for item in prompt):
        return [_ids(tokenizer, prompt, "prompt", context_tokens)]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"prompt has {len(prompt)} entries; the limit is {MAX_PROMPTS} a request", param="prompt")
    if all(isinstance(item, str) for item in prompt):
        return [_text(tokenizer, item, context_tokens) for item in prompt]
    if all(isinstance(item, list) for item in prompt):
        return [_ids(tokenizer, item, f"prompt[{index}]", context_tokens) for index, item in enumerate(prompt)]
    raise RequestError(
        "prompt mixes kinds; send a string, a list of strings, a list of token ids or a list of such lists",
        param="prompt",
    )


def _cut(tokenizer: Tokenizer, whole: Prompt, limit: int) -> Prompt:
    if len(whole.token_ids) <= limit:
        return whole
    kept = last_tokens(whole.token_ids, limit, tokenizer)
    return Prompt(tokenizer.decode(kept, skip_special_tokens=False), kept, len(whole.token_ids) - len(kept))


def check_context(prompts: list[Prompt], max_tokens: int | None, context_tokens: int) -> None:
    """RequestError, with the numbers, where a prompt and its answer cannot fit into the context."""
    for prompt in prompts:
        count = len(prompt.token_ids)
        wanted = max_tokens or 1
        if count + wanted > context_tokens:
            asked = f"{max_tokens} tokens of answer" if max_tokens else "at least one token of answer"
            raise RequestError(
                f"the context holds {context_tokens} tokens, but the prompt has {count} and you ask for {asked}; "
                f"shorten the prompt{' or lower max_tokens' if max_tokens and count < context_tokens else ''}, or let "
                "it be cut with truncate_prompt_tokens",
                code="context_length_exceeded",
                param="max_tokens" if max_tokens and count < context_tokens else "prompt",
            )


def _note_unread_names(template: ChatTemplate, messages: list[dict[str, Any]], ignored: Ignored) -> None:
    """Most templates write roles only; who of several users speaks is lost on the model then."""
    nameless = [{key: value for key, value in message.items() if key != "name"} for message in messages]
    if template.render(messages, add_generation_prompt=True) == template.render(nameless, add_generation_prompt=True):
        for index, message in enumerate(messages):
            if message.get("name"):
                ignored.note(f"messages[{index}].name", "is not read by this model's chat template")


def _message(index: int, message: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}.role is {str(role)[:80]!r}; allowed: {', '.join(ROLES)}", param=f"{where}.role")
    for name, value in message.items():
        if name in ("role", "content"):
            continue
        if name == "name":
            if not isinstance(value, str | None):
                raise RequestError(f"{where}.name takes a string", param=f"{where}.name")
            continue
        if name not in _EMPTY_MESSAGE_FIELDS:
            ignored.note(f"{where}.{name}")
        elif value not in _EMPTY_MESSAGE_FIELDS[name]:
            raise RequestError(
                f"{where}.{name[:80]} is not supported by this server; leave it out",
                param=f"{where}.{name[:80]}",
                code="unsupported_parameter",
            )
    content = _content(message.get("content"), f"{where}.content", role, ignored)
    kept = {name: message[name] for name in ("name",) if name in message}
    return {"role": "system" if role == "developer" else role, "content": content, **kept}


def _content(content: Any, where: str, role: str, ignored: Ignored) -> str | list[Any]:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list):
        for position, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RequestError(
                    f"{where}[{position}] is not a text part; this model reads text only: "
                    "{'type': 'text', 'text': '...'}",
                    param=f"{where}[{position}]",
                )
            for name in part.keys() - _PART_FIELDS:
                ignored.note(f"{where}[{position}].{name}")
        return [{"type": "text", "text": part["text"]} for part in content]
    raise RequestError(f"{where} takes a string or a list of text parts", param=where)


def _check_length(tokenizer: Tokenizer, text: str, context_tokens: int) -> None:
    """RequestError where a text is so long that counting its tokens would be wasted work."""
    if len(text) > context_tokens and (fewest := tokenizer.fewest_tokens(text)) > context_tokens:
        raise _too_long(context_tokens, f"at least {fewest}")


def _too_long(context_tokens: int, count: str) -> RequestError:
    return RequestError(
        f"the context holds {context_tokens} tokens, but the prompt has {count}; shorten the prompt, or let it be "
        "cut with truncate_prompt_tokens",
        code="context_length_exceeded",
        param="prompt",
    )


def _text(tokenizer: Tokenizer, text: str, context_tokens: int) -> Prompt:
    _check_length(tokenizer, text, context_tokens)
    ids = tokenizer.encode(text)
    if not ids:
        raise RequestError("prompt is empty: it has no tokens; send some text", param="prompt")
    if len(ids) > context_tokens:
        raise _too_long(context_tokens, str(len(ids)))
    return Prompt(text, ids)


def _ids(tokenizer: Tokenizer, ids: list[Any], where: str, context_tokens: int) -> Prompt:
    if not ids:
        raise RequestError(f"{where} is empty; send at least one token id", param=where)
    if len(ids) > context_tokens:
        raise _too_long(context_tokens, str(len(ids)))
    vocab = tokenizer.vocab_size
    for position, token in enumerate(ids):
        if not _is_id(token) or not 0 <= token < vocab:
            raise RequestError(
                f"{where}[{position}] is {str(token)[:40]}; token ids are whole numbers from 0 to {vocab - 1}",
                param=where,
            )
    return Prompt(tokenizer.decode(ids, skip_special_tokens=False), ids)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
