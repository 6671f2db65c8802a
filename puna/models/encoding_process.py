"""The process that runs a stranger's expressions: reads a tokenizer.json, then texts, and answers token ids.

The first message is {tokenizer, seconds}, each other {text, special, seconds}; answers are what LibraryReading
has, {ids}, or {error}. `seconds` of processor time are all a message gets: then the system ends the process, whatever
it is doing. It also ends with its input.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from puna.models.encoders import LibraryEncoder, library_errors
from puna.models.guarded_encoding import receive, send


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asked decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    encoder: LibraryEncoder | None = None
    while True:
        try:
            message = receive(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, message["seconds"])
        answer: dict[str, Any]
        try:
            with library_errors():
                if encoder is None:
                    encoder = LibraryEncoder(message["tokenizer"])
                    answer = encoder.reading.to_json()
                else:
                    answer = {"ids": encoder.encode(message["text"], parse_special=message["special"])}
        except ValueError as error:
            answer = {"error": str(error)[:2000]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(sys.stdout.buffer, answer)


if __name__ == "__main__":
    main()
