"""The process in which grammars are tried: reads a vocabulary, then forms, and answers what became of each.

`seconds` of processor time are all that a message gets: then the system ends the process, whatever it is doing. Memory
and the depth of calls are bounded as well. It also ends with its input. Messages are grammar_trial.py's.
"""

from __future__ import annotations

import resource
import signal
import sys

from puna.engine.grammar_library import GrammarLibrary
from puna.engine.grammar_text import grammar_text
from puna.engine.grammar_trial import Opening, Trial, Verdict, receive, send
from puna.errors import InputError

MORE_BYTES = 1 << 30  # of address space, beyond what the process has when it knows the vocabulary
STACK_BYTES = 4 << 20  # less than the engine's thread has, so that what is too deep is found out here


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asked decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        opening = receive(sys.stdin.buffer, Opening)
        signal.setitimer(signal.ITIMER_PROF, opening.seconds)
        library = GrammarLibrary(opening.vocabulary)
        _bound_memory()
        _answer(Verdict())
        while True:
            trial = receive(sys.stdin.buffer, Trial)
            signal.setitimer(signal.ITIMER_PROF, trial.seconds)
            _answer(_try(library, trial))
    except EOFError:
        return


def _try(library: GrammarLibrary, trial: Trial) -> Verdict:
    try:
        text = grammar_text(trial.form)
        library.compile(text, trial.form.named)
    except InputError as error:
        return Verdict(error=str(error))
    except MemoryError:
        return Verdict(error="it takes too much memory to compile; make it simpler")
    return Verdict(text=text)


def _answer(verdict: Verdict) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    send(sys.stdout.buffer, verdict)


def _bound_memory() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, used + MORE_BYTES))


if __name__ == "__main__":
    main()
