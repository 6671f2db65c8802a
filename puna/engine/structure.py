"""What form an answer has to take: a JSON schema, any JSON object, an expression, a choice, or a grammar.

Checked when it is made for what can be told without compiling: that exactly one form is asked for, its type and its
size. Knows no grammar library and no tokenizer; what compiles is found out by the engine.
"""

from __future__ import annotations

from typing import Any

import msgspec

from puna.errors import InputError

MAX_FORM_CHARS = 1 << 18  # of a schema, an expression, a grammar or all choices together
MAX_CHOICES = 4096
FIELD = "structured_outputs"
FORMS = ("json", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of the five forms. An answer that ends with "stop" has it; one that ends otherwise is the beginning
    of an answer that has it.

    `json`: a JSON schema, as an object, as its text, or as true or false; kept as text. `grammar`: Lark as llguidance
    reads it, or GBNF as llama.cpp reads it. `any_whitespace`: JSON may have white space between its tokens, a little
    in each place; without it the answer is compact. `named`: what the caller calls the field, for errors.
    """

    json: dict[str, Any] | str | bool | None = None
    json_object: bool = False
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    any_whitespace: bool = False
    named: str = FIELD

    def __post_init__(self) -> None:
        if self.json is not None:
            msgspec.structs.force_setattr(self, "json", _schema_text(self.json, self.named))
        asked = self.asked
        if len(asked) != 1:
            raise InputError(
                f"{self.named} takes exactly one of {', '.join(FORMS)}; it has "
                f"{' and '.join(asked) if asked else 'none of them'}",
                param=self.named,
            )
        if self.choice is not None:
            _check_choices(self.choice, self.named)
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None:
                _check_text(name, text, self.named)
        if self.any_whitespace and asked not in (["json"], ["json_object"]):
            raise InputError(
                f"any_whitespace goes with json and json_object, not with {asked[0]}; leave it out",
                param=self.named,
            )

    @property
    def asked(self) -> list[str]:
        """The forms that are asked for."""
        return [name for name in FORMS if getattr(self, name) not in (None, False)]


def _check_choices(choices: list[str], named: str) -> None:
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise InputError(f"choice takes 1 to {MAX_CHOICES} strings", param=named)
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise InputError("choice takes strings of at least one character", param=named)
    _check_text("choice", "".join(choices), named)


def _check_text(name: str, text: str, named: str) -> None:
    if not isinstance(text, str) or not text:
        raise InputError(f"{name} takes a text of at least one character", param=named)
    if len(text) > MAX_FORM_CHARS:
        raise InputError(f"{name} has {len(text)} characters; the limit is {MAX_FORM_CHARS}", param=named)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid Unicode text", param=named) from None


def _schema_text(schema: dict[str, Any] | str | bool, named: str) -> str:
    if isinstance(schema, str):
        text = schema
    elif isinstance(schema, dict | bool):
        try:
            text = msgspec.json.encode(schema).decode()
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InputError(f"json is not a JSON schema: {error}", param=named) from None
    else:
        raise InputError(
            f"json takes a JSON schema: an object, its text, or true or false, not {type(schema).__name__}",
            param=named,
        )
    _check_text("json", text, named)
    return text
