"""Makes an engine that is started with this folder on its PYTHONPATH die of one prompt.

PUNA_FAULT is "<token id> <n>": the process kills itself before the step that would draw token n of a sample whose
prompt begins with that id. Everything else is the real engine.
"""

from __future__ import annotations

import os
import signal

if fault := os.environ.get("PUNA_FAULT"):
    from puna.engine.core import Engine
    from puna.engine.news import StepNews

    first_id, count = (int(number) for number in fault.split())
    step = Engine.step

    def step_or_die(engine: Engine) -> StepNews:
        for live in engine._live.values():
            for stream in live.streams:
                if live.request.prompt_token_ids[0] == first_id and stream.sequence.output_len >= count:
                    os.kill(os.getpid(), signal.SIGKILL)
        return step(engine)

    Engine.step = step_or_die  # type: ignore[method-assign]
