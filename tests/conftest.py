"""What holds for all tests: Ctrl-C works, however they were started; CI draws the same random examples every time, and
a run by hand new ones."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure() -> None:
    """A shell starts its background jobs with SIGINT ignored, and a process that is born so cannot be interrupted: the
    commands and servers that tests start would never hear the signals that the tests are about."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
