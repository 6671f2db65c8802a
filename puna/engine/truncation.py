"""What becomes of a prompt that is too long where `truncate_prompt_tokens` allows to cut it.

A text loses its beginning, but for the token that every text begins with. A conversation loses its oldest turns; system
messages and the last question stay, and where these alone are too long the question's middle gives way to a mark that
the model reads. What was cut is counted, so that every way out can say it. It knows token ids and messages, no limits
of its own and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puna.engine.params import SamplingParams
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Encode = Callable[[Messages], list[int]]

ANSWER_SHARE = 4  # of the context one part in so many is left for an answer whose length is not said
KEPT_ROLES = ("system", "developer")
_ATTEMPTS = 8


def prompt_limit(params: SamplingParams, context_tokens: int) -> int | None:
    """Most tokens that a prompt may have before it is cut; None where it is not to be cut."""
    wanted = params.truncate_prompt_tokens
    if wanted is None:
        return None
    answer = params.max_tokens or max(params.min_tokens, 1 if wanted > 0 else context_tokens // ANSWER_SHARE)
    room = context_tokens - answer
    if room < 1:
        raise InputError(
            f"an answer of {answer} tokens leaves no room for a prompt in the context of {context_tokens} tokens; "
            "lower max_tokens",
            param="max_tokens",
        )
    return min(wanted, room) if wanted > 0 else room


def last_tokens(token_ids: list[int], limit: int, tokenizer: Tokenizer) -> list[int]:
    """At most `limit` tokens from the end, behind the beginning token where there was one."""
    if len(token_ids) <= limit:
        return token_ids
    first = token_ids[:1] if limit > 1 and tokenizer.adds_bos and token_ids[0] == tokenizer.bos_id else []
    return first + token_ids[len(token_ids) - limit + len(first) :]


def fit_conversation(messages: Messages, limit: int, encode: Encode, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The tokens of as much of the conversation as `limit` holds, and how many tokens were cut. `encode` renders and
    tokenizes messages. InputError where even the system messages and a mark are too long."""
    whole = encode(messages)
    if len(whole) <= limit:
        return whole, 0
    starts = _turns(messages)
    fitting: list[int] | None = None
    low, high = 1, len(starts)  # turns to leave out; `high` does not fit as far as is known
    while low < high:
        middle = (low + high) // 2
        ids = encode(_without(messages, starts[middle]))
        if len(ids) <= limit:
            fitting, high = ids, middle
        else:
            low = middle + 1
    if fitting is None:
        fitting = _shorten_question(_without(messages, starts[-1]) if starts else messages, limit, encode, tokenizer)
    return fitting, len(whole) - len(fitting)


def _turns(messages: Messages) -> list[int]:
    """Where each turn begins: at a user's message, or at the first that is no system message."""
    spoken = [place for place, message in enumerate(messages) if message.get("role") not in KEPT_ROLES]
    return [place for place in spoken if place == spoken[0] or messages[place].get("role") == "user"]


def _without(messages: Messages, start: int) -> Messages:
    """Without what was said before `start`."""
    return [m for place, m in enumerate(messages) if place >= start or m.get("role") in KEPT_ROLES]


def _shorten_question(messages: Messages, limit: int, encode: Encode, tokenizer: Tokenizer) -> list[int]:
    """Cuts the middle out of the last user's message until all of it fits."""
    count = len(encode(messages))
    at = max((place for place, m in enumerate(messages) if m.get("role") == "user"), default=None)
    content = None if at is None else _text(messages[at].get("content"))
    if at is None or content is None:
        raise _too_long(count, limit)
    words = tokenizer.encode(content, add_special=False, parse_special=False)
    kept = len(words)
    for _ in range(_ATTEMPTS):
        kept -= max(1, count - limit)
        if kept < 2:
            break
        head, tail = words[: (kept + 1) // 2], words[len(words) - kept // 2 :]
        mark = f"\n[... {len(words) - kept} tokens left out ...]\n"
        parts = (tokenizer.decode(part, skip_special_tokens=False).strip("\ufffd") for part in (head, tail))
        text = mark.join(parts)
        ids = encode([*messages[:at], {**messages[at], "content": text}, *messages[at + 1 :]])
        if len(ids) <= limit:
            return ids
        count = len(ids)
    raise _too_long(count, limit)


def _text(content: Any) -> str | None:
    """A message's text, given as a string or as parts of text."""
    if isinstance(content, str):
        return content
    parts = [p.get("text") for p in content if isinstance(p, Mapping)] if isinstance(content, list) else []
    return "\n".join(map(str, parts)) if parts and all(isinstance(part, str) for part in parts) else None


def _too_long(count: int, limit: int) -> InputError:
    return InputError(
        f"without its earlier turns the conversation still has {count} tokens, but {limit} fit and the rest "
        "cannot be cut; shorten the system message or lower max_tokens",
        param="messages",
    )
