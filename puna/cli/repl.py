"""The conversation at the terminal: reads lines, runs slash commands, asks the model.

Ctrl-C stops an answer, not the program; at the prompt a second Ctrl-C in a row, Ctrl-D or /exit leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from puna.cli.conversation import Conversation
from puna.cli.plain import plain
from puna.cli.stream import Answer, dim, print_answer, print_stats
from puna.engine.params import SamplingParams
from puna.engine.prompts import Prompt
from puna.errors import InputError, PunaError

if TYPE_CHECKING:
    from puna.cli.local import LocalModel
    from puna.models.calls.tool import Tool

PROMPT = ">>> "
SETTABLE = tuple(name for name in SamplingParams.__struct_fields__ if name != "n")
HELP = """\
/help             this list
/reset            forget the conversation, keep the system message
/system [TEXT]    set the system message; without TEXT take it out
/save FILE        write the conversation to a file (JSON)
/load FILE        read a conversation that was saved
/params           show the sampling parameters
/set NAME VALUE   set one of them, as in: /set temperature 0.7
/retry            answer the last question again
/undo             take the last question and its answer back
/tokens           tokens of the conversation, and the context's size
/exit             leave (or Ctrl-D)"""


class Repl:
    """One conversation with one model."""

    def __init__(
        self,
        local: LocalModel,
        model: str,
        params: SamplingParams,
        system: str | None,
        tools: Sequence[Tool] = (),
    ) -> None:
        self._tools = tools
        self._local = local
        self._model = model
        self._params = params
        self._conversation = Conversation()
        self._conversation.set_system(system or "")
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "reset": self._reset,
            "system": self._system,
            "save": self._save,
            "load": self._load,
            "params": self._show_params,
            "set": self._set,
            "retry": self._retry,
            "undo": self._undo,
            "tokens": self._tokens,
        }

    def run(self) -> None:
        import readline  # noqa: F401  (gives `input` line editing and history)

        print(dim(f"{self._model}: /help lists commands, /exit leaves, Ctrl-C stops an answer"), file=sys.stderr)
        interrupts = 0
        while True:
            try:
                line = input(PROMPT).strip()
                interrupts = 0
                if line in ("/exit", "/quit"):
                    return
                self._handle(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # at the prompt, or in the middle of a command
                interrupts += 1
                if interrupts > 1:
                    raise
                print("\n" + dim("(Ctrl-C once more, Ctrl-D or /exit leaves)"))
            except PunaError as error:
                print(f"error: {plain(str(error))}", file=sys.stderr)

    def _handle(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise InputError(f"there is no /{name}; /help lists the commands (a question cannot begin with a slash)")
        command(rest.strip())

    def _ask(self, question: str) -> None:
        self._conversation.ask(question)
        try:
            answer = self._answer()
            while self._keep(answer):
                answer = self._answer()
        except BaseException:
            self._conversation.undo()
            raise

    def _keep(self, answer: Answer) -> bool:
        """Whether the model is to go on: its answer called tools, and a person said what they gave."""
        self._conversation.answered(answer.text, [(call.name, call.arguments) for call in answer.calls])
        print_stats(answer)
        for call in self._conversation.open_calls():
            self._conversation.returned(call, input(f"result of {call['function']['name']}: "))
        return bool(answer.calls)

    def _answer(self) -> Answer:
        prompt = self._local.chat_prompt(self._conversation.as_dicts(), self._params, self._tools)
        count, context = len(prompt.token_ids), self._local.context_tokens
        if count >= context:
            raise InputError(
                f"the conversation has {count} tokens, but the context holds {context}; /set truncate_prompt_tokens -1 "
                "goes on without its oldest turns, /reset begins anew (/save keeps it first)"
            )
        return print_answer(self._local, prompt, self._params, self._local.chat_reader(prompt, self._tools))

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        print(dim("forgotten; the system message stays" if self._conversation.messages else "forgotten"))

    def _system(self, text: str) -> None:
        self._conversation.set_system(text)
        print(dim("system message set" if text else "no system message, unless the model's template brings its own"))

    def _save(self, name: str) -> None:
        path = _path(name, "/save")
        self._conversation.save(path, self._model)
        print(f"saved to {path}")

    def _load(self, name: str) -> None:
        self._conversation.load(_path(name, "/load"))
        print(f"{len(self._conversation.messages)} messages")

    def _show_params(self, _: str) -> None:
        for name in SETTABLE:
            print(f"{name:27} {getattr(self._params, name)!r}")

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        if not name or (name in SETTABLE and not text.strip()):
            raise InputError(f"/set takes a name and a value, as in: /set {name or 'temperature'} VALUE")
        if name not in SETTABLE:
            raise InputError(f"{name} cannot be set; /params lists what can")
        self._params = msgspec.structs.replace(self._params, **{name: _value(name, text.strip())})
        print(f"{name} = {getattr(self._params, name)!r}")

    def _retry(self, _: str) -> None:
        before = list(self._conversation.messages)
        question = self._conversation.undo()
        if question is None:
            raise InputError("there is no question to answer again")
        if self._params.temperature == 0:
            print(dim("(temperature is 0: with the same parameters the answer is the same; /set temperature 0.7)"))
        try:
            self._ask(question)
        except BaseException:
            self._conversation.messages = before
            raise

    def _undo(self, _: str) -> None:
        question = self._conversation.undo()
        if question is None:
            raise InputError("there is nothing to undo")
        print(dim(f"took back: {question}"))

    def _tokens(self, _: str) -> None:
        messages = self._conversation.as_dicts()
        prompt = self._local.chat_prompt(messages, self._params, self._tools) if messages else Prompt("", [])
        cut = f" ({prompt.truncated_tokens} more are cut)" if prompt.truncated_tokens else ""
        print(f"{len(prompt.token_ids)} tokens of {self._local.context_tokens}{cut}")


def _path(name: str, command: str) -> Path:
    if not name:
        raise InputError(f"{command} needs a file name")
    return Path(name).expanduser()


def _value(name: str, text: str) -> Any:
    """`text` as the parameter's type: JSON where it is JSON, otherwise plain text."""
    kind = next(f.type for f in msgspec.structs.fields(SamplingParams) if f.name == name)
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = None if text in ("none", "off") else text
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {error}", param=name) from None
