"""What holds for all tests: Ctrl-C works, however they were started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts its background jobs with SIGINT ignored, and a process that is born so cannot be interrupted: the
    commands and servers that tests start would never hear the signals that the tests are about."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
