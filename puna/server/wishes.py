"""From the fields of a chat to what is wanted of the turn: tools, the template's variables, how the answer begins.

Chat completions and /tokenize have the same fields for it, so that what is counted is what will be computed.
"""

from __future__ import annotations

from typing import Any

from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.tools import chat_tools
from puna.server.turn import Speech, Wishes, variables_of


def chat_wishes(speech: Speech, body: Any, ignored: Ignored) -> Wishes:
    """Of a body with the chat's fields. RequestError where they contradict each other or the model cannot have them."""
    variables = variables_of(speech, ignored, body.chat_template_kwargs, body.reasoning_effort)
    if body.documents:
        if not speech.reads("documents"):
            raise RequestError(
                "documents is not supported: this model's template reads none; put them into a message",
                code="unsupported_parameter",
                param="documents",
            )
        variables["documents"] = body.documents
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message goes on in the last message, add_generation_prompt begins a new one; give one",
            param="continue_final_message",
        )
    return Wishes(
        chat_tools(body, ignored),
        variables,
        continues=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt is not False,
    )
