"""What a caller of the offline API may give as prompts, made uniform: token ids, and the text where there was one.

Knows the accepted shapes, the tokenizer and the chat template; knows nothing of the engine's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

from puna.engine.params import SamplingParams
from puna.engine.truncation import fit_conversation, last_tokens
from puna.errors import InputError
from puna.models.template import ChatTemplate

if TYPE_CHECKING:
    from puna.models.load import LoadedModel
    from puna.models.tokenizer import Tokenizer

_SHAPES = (
    'a string, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these'  # in messages
)


@dataclass(frozen=True)
class Prompt:
    """`text` is None where token ids were given. `token_ids` is what the model reads: `truncated_tokens` less than
    given."""

    text: str | None
    token_ids: list[int]
    truncated_tokens: int = 0

    def shortened(self, limit: int | None, tokenizer: Tokenizer) -> Prompt:
        """Of `limit` tokens at most, where there is a limit."""
        if limit is None or len(self.token_ids) <= limit:
            return self
        kept = last_tokens(self.token_ids, limit, tokenizer)
        return Prompt(self.text, kept, self.truncated_tokens + len(self.token_ids) - len(kept))


def encode_within(
    most_tokens: int | None, tokenizer: Tokenizer, text: str, *, what: str = "the prompt", add_special: bool = True
) -> list[int]:
    """The tokens of `text`. InputError where it cannot have as few as `most_tokens`: before the seconds that encoding
    megabytes takes."""
    if most_tokens is not None and len(text) > most_tokens and (fewest := tokenizer.fewest_tokens(text)) > most_tokens:
        raise InputError(
            f"{what} has at least {fewest} tokens, but the context is {most_tokens} tokens; shorten it, or let it be "
            "cut with truncate_prompt_tokens (--truncate-prompt-tokens -1 on the command line)",
            param="prompt",
        )
    return tokenizer.encode(text, add_special=add_special)


def as_prompts(prompts: Any, tokenizer: Tokenizer, most_tokens: int | None = None) -> list[Prompt]:
    """One Prompt each. InputError names the prompt that is of no known shape, or too long for `encode_within`."""
    encode = partial(encode_within, most_tokens, tokenizer)
    if isinstance(prompts, str | Mapping):
        return [_as_prompt(prompts, encode, "the prompt")]
    if not isinstance(prompts, SequenceOf) and not hasattr(prompts, "__iter__"):
        raise InputError(f"prompts is a {type(prompts).__name__}; give {_SHAPES}", param="prompts")
    items = list(prompts)
    if not items:
        return []
    if all(_is_id(item) for item in items):
        return [Prompt(None, [index(item) for item in items])]
    return [_as_prompt(item, encode, f"prompt {number}") for number, item in enumerate(items)]


def as_conversations(messages: SequenceOf[Any]) -> list[SequenceOf[Any]]:
    """One conversation, or several, as a list of them. InputError where there is none."""
    if not messages:
        raise InputError("messages is empty; give at least one message", param="messages")
    return [messages] if isinstance(messages[0], Mapping) else list(messages)


def chat_prompts(
    model: LoadedModel,
    conversations: SequenceOf[SequenceOf[Any]],
    add_generation_prompt: bool,
    extra: dict[str, Any],
    limits: SequenceOf[int | None],
) -> list[Prompt]:
    """The rendered conversations, cut where they have more tokens than their limit. A special token that a template
    writes becomes that token."""
    template = chat_template(model)
    if template is None:
        raise InputError(
            f"{model.name} has no chat template; use generate, or a model that was tuned for chat", param="messages"
        )
    wanted = zip(conversations, limits, strict=True)
    return [_rendered(model.tokenizer, template, c, add_generation_prompt, extra, limit) for c, limit in wanted]


def _rendered(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: SequenceOf[Any],
    add_generation_prompt: bool,
    extra: dict[str, Any],
    limit: int | None,
) -> Prompt:
    def render(of: SequenceOf[Any]) -> Prompt:
        text = template.render(of, add_generation_prompt=add_generation_prompt, **extra)
        return Prompt(text, tokenizer.encode(text, add_special=False))

    whole = render(messages)
    if limit is None or len(whole.token_ids) <= limit:
        return whole
    ids, cut = fit_conversation(messages, limit, lambda of: render(of).token_ids, tokenizer)
    return Prompt(whole.text, ids, cut)


def chat_template(model: LoadedModel) -> ChatTemplate | None:
    """The model's own template, compiled, or None."""
    if model.chat_template is None or isinstance(model.chat_template, ChatTemplate):
        return model.chat_template
    tokenizer = model.tokenizer
    bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    eos = tokenizer.token_text(tokenizer.eos_ids[0]) if tokenizer.eos_ids else ""
    return ChatTemplate(model.chat_template, bos, eos)


def one_params_each(params: SamplingParams | SequenceOf[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """InputError where the numbers differ."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    wanted = list(params)
    if len(wanted) != count:
        raise InputError(
            f"there are {count} prompts but {len(wanted)} sampling_params; give one for all, or one each",
            param="sampling_params",
        )
    return wanted


def _as_prompt(item: Any, encode: Callable[..., list[int]], where: str) -> Prompt:
    if isinstance(item, str):
        return Prompt(item, encode(item, what=where))
    if isinstance(item, Mapping):
        if isinstance(ids := item.get("prompt_token_ids"), SequenceOf) and all(_is_id(i) for i in ids):
            text = item.get("prompt")
            return Prompt(text if isinstance(text, str) else None, [index(i) for i in ids])
        if isinstance(text := item.get("prompt"), str):
            return Prompt(text, encode(text, what=where))
    elif hasattr(item, "__iter__"):
        ids = list(item)
        if all(_is_id(i) for i in ids):
            return Prompt(None, [index(i) for i in ids])
    raise InputError(f"{where} is a {type(item).__name__} of another shape; give {_SHAPES}", param="prompts")


def _is_id(item: Any) -> bool:
    return hasattr(item, "__index__") and not isinstance(item, bool)
