"""From messages or prompts to token ids, with the context limit checked before the engine hears of anything.

It knows the wire's shapes of a prompt and the model's tokenizer and chat template; it knows nothing of sampling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from puna.engine.truncation import fit_conversation, last_tokens
from puna.models.calls.history import for_template
from puna.server.chat_messages import named_results, read_message
from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.turn import Speech, Wishes

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer

MAX_PROMPTS = 256
PLAIN_WISHES = Wishes()
Render = Callable[[Sequence[Mapping[str, Any]]], str]
_ANSWER_MARK = "\x02answer\x03"  # where an answer that is begun stands, while that is looked for


@dataclass(frozen=True)
class Prompt:
    """`text` is what a client would call the prompt (for echo); `token_ids` is what the engine is given, and
    `truncated_tokens` says how many were cut."""

    text: str
    token_ids: list[int]
    truncated_tokens: int = 0


def chat_prompt(
    tokenizer: Tokenizer,
    speech: Speech,
    messages: list[dict[str, Any]],
    context_tokens: int,
    limit: int | None,
    ignored: Ignored,
    wishes: Wishes = PLAIN_WISHES,
) -> Prompt:
    """`limit`: most tokens, to which a longer conversation is cut; None where it is to be refused. Fields of messages
    that nobody reads are noted in `ignored`."""
    cleaned, render = conversation(speech, messages, ignored, wishes)
    text = render(cleaned)
    if limit is None:
        _check_length(tokenizer, text, context_tokens)
        return Prompt(text, tokenizer.encode(text, add_special=False, parse_special=True))

    def encode(of: Sequence[Mapping[str, Any]]) -> list[int]:
        return tokenizer.encode(render(of), add_special=False, parse_special=True)

    return Prompt(text, *fit_conversation(cleaned, limit, encode, tokenizer))


def conversation(
    speech: Speech, messages: list[dict[str, Any]], ignored: Ignored, wishes: Wishes = PLAIN_WISHES
) -> tuple[list[dict[str, Any]], Render]:
    """The messages as the template takes them, and what makes text of them or of some of them. RequestError where there
    is no template, or something in a message that this server does not understand."""
    template = speech.template
    if template is None:
        raise RequestError(
            "this model's file has no chat template; use /v1/completions, or a model that was tuned for chat",
            param="messages",
            code="no_chat_template",
        )
    if not messages:
        raise RequestError("messages is empty; send at least one", param="messages")
    checked = [read_message(index, message, ignored) for index, message in enumerate(messages)]
    prefill = wishes.prefill
    if wishes.continues:
        prefill = _final_text(checked)
        checked = checked[:-1]
    told = () if wishes.tools.choice == "none" else wishes.tools.tools
    checked = named_results(checked)
    cleaned, tools = for_template(template, checked, told)

    def render(of: Sequence[Mapping[str, Any]]) -> str:
        def rendered(messages: Sequence[Mapping[str, Any]], *, generation: bool) -> str:
            return template.render(messages, add_generation_prompt=generation, tools=tools, **wishes.variables)

        text = rendered(of, generation=wishes.add_generation_prompt)
        if not prefill:
            return text
        if speech.reasoning is not None and speech.reasoning.is_open(text):  # the answer has begun behind the block
            whole = rendered([*of, {"role": "assistant", "content": _ANSWER_MARK}], generation=False)
            text = whole.rpartition(_ANSWER_MARK)[0] or text
        return text + prefill

    if any(message.get("name") and message["role"] != "tool" for message in cleaned):
        _note_unread_names(render, cleaned, ignored)
    return cleaned, render


def _final_text(messages: list[dict[str, Any]]) -> str:
    """Of the assistant's message that an answer is to go on from."""
    last = messages[-1]
    if len(messages) < 2 or last["role"] != "assistant" or last.get("tool_calls"):
        raise RequestError(
            "continue_final_message needs a last message of the assistant, of text, behind another message",
            param="continue_final_message",
        )
    content = last["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


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


def _note_unread_names(render: Render, messages: list[dict[str, Any]], ignored: Ignored) -> None:
    """Most templates write roles only; who of several users speaks is lost on the model then."""
    nameless = [{key: value for key, value in message.items() if key != "name"} for message in messages]
    if render(messages) == render(nameless):
        for index, message in enumerate(messages):
            if message.get("name") and message["role"] != "tool":
                ignored.note(f"messages[{index}].name", "is not read by this model's chat template")


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
