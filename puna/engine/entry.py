"""From a request to the sequences that the scheduler runs for it.

Normally one sequence for all n samples or beams, forked when the prompt is computed; where a resumed request's samples
already differ, one each, which wait and run together as forks do. Knows requests, recipes and the context
limit; does not know who runs sequences.
"""

from __future__ import annotations

from array import array

from puna.engine.beam_group import open_search
from puna.engine.door import DoorLimits, room_for_output
from puna.engine.grammars import Compiling
from puna.engine.live import PromptScores, Sample, Stream
from puna.engine.matcher import Matcher
from puna.engine.params import EngineRequest
from puna.engine.sampling import compile_recipe
from puna.sched.group import Group
from puna.sched.sequence import Sequence


class StreamMaker:
    """Numbers the sequences of one engine."""

    def __init__(self, limits: DoorLimits) -> None:
        self._limits = limits
        self._last_id = 0

    def first_streams(self, request: EngineRequest, arrival: float, grammar: Compiling | None = None) -> list[Stream]:
        """The streams that a checked request starts with. `grammar`: of its form. Raises what compiling that did."""
        p, prompt_len = request.params, len(request.prompt_token_ids)
        samples = [
            Sample(request.request_id, i, compile_recipe(p, i, prompt_len, request.eos_token_ids, request.bad_word_ids))
            for i in range(p.samples)
        ]
        form = p.structured_outputs
        if grammar is not None and form is not None:
            for sample in samples:
                ends = sample.recipe.eos_ids | sample.recipe.stop_ids
                sample.matcher = Matcher(grammar.matcher(form.named), grammar.ends, ends)
        if any(request.delivered) or request.done:
            missing: list[list[int]] = [[]] * (p.samples - len(request.delivered))
            resumed = zip(samples, [*request.delivered, *missing], strict=True)
            streams = [
                self._resumed(request, sample, tokens, arrival)
                for sample, tokens in resumed
                if sample.index not in request.done
            ]
            if len(streams) > 1:
                group = Group([stream.sequence for stream in streams], prompt_len)
                for stream in streams:
                    stream.sequence.group = group
            return streams
        stream = Stream(self._sequence(request, [], p.seats, arrival), samples)
        if p.beam_width:
            longest = stream.sequence.max_total_len - prompt_len
            open_search(request, samples[0].recipe, stream, longest, self._limits.vocab_size)
        if p.prompt_logprobs is not None:
            stream.scores = PromptScores(request.prompt_token_ids, p.prompt_logprobs)
            stream.sequence.reuse_prefix = prompt_len == 1
        return [stream]

    def child(self, request: EngineRequest, parent: Stream, sample: Sample) -> Stream:
        """A stream of its own for `sample` of `parent`, to be forked."""
        return Stream(self._sequence(request, [], 1, parent.sequence.arrival), [sample])

    def _resumed(self, request: EngineRequest, sample: Sample, tokens: list[int], arrival: float) -> Stream:
        sample.started = bool(tokens)
        if sample.matcher is not None:
            sample.matcher.take_all(tokens)
        return Stream(self._sequence(request, tokens, 1, arrival), [sample])

    def _sequence(self, request: EngineRequest, delivered: list[int], seats: int, arrival: float) -> Sequence:
        self._last_id += 1
        prompt_len = len(request.prompt_token_ids)
        return Sequence(
            sequence_id=self._last_id,
            tokens=array("i", [*request.prompt_token_ids, *delivered]),
            prompt_len=prompt_len,
            max_total_len=prompt_len + room_for_output(request, self._limits),
            arrival=arrival,
            priority=request.priority,
            tenant=request.tenant,
            cache_salt=request.cache_salt,
            seats=seats,
        )
