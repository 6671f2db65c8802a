"""Trials against a model of a world: requests at positions, a poison at one of them, kills from outside at random."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.resumable import Resumable
from puna.engine.trials import CLEARED_TOKENS, SUSPECT_ANYWAY_DEATHS, VAIN_DEATHS, Trials
from tests.engine.driving import request

LENGTH = 40


class World:
    """Requests of LENGTH tokens each; `poison` (request, position): an engine that would draw that token dies. Of
    kills from outside no six in a row hit the same request alone before it has a token: that would look like poison."""

    def __init__(self, count: int, poison: tuple[int, int] | None, kills: int, seed: int) -> None:
        self.requests = [Resumable(request(f"r{i}", [3])) for i in range(count)]
        self.at = dict.fromkeys(self.requests, 0)
        self.poison = None if poison is None else (self.requests[poison[0] % count], poison[1])
        self.trials = Trials()
        self.random = random.Random(seed)
        self.kills = kills
        self.culprits: list[Resumable] = []
        self.lives = 0

    def run(self) -> None:
        """Engine after engine, until nobody is left."""
        while self.requests:
            self.lives += 1
            assert self.lives < 200, "it comes to an end"
            self.live()

    def live(self) -> None:
        brought = dict.fromkeys(self.requests, 0)
        inside: list[Resumable] = []
        until = self.random.randrange(1, 30) if self.kills else 0
        while self.requests:
            for one in self.requests:
                one.waits = one not in inside
            chosen = self.trials.choose()
            if chosen is not None:
                inside.clear()  # all are held
            inside += [one for one in self.requests if self.trials.may_run(one) and one not in inside]
            assert inside, "somebody may run"
            assert self.trials.on_trial is None or inside == [self.trials.on_trial]
            until -= 1
            was_unlucky = any(one.in_vain >= VAIN_DEATHS - 2 and not brought[one] for one in inside)
            is_killed = self.kills > 0 and until <= 0 and not was_unlucky
            if is_killed or (self.poison is not None and any((one, self.at[one]) == self.poison for one in inside)):
                self.kills -= is_killed
                where = self.random.randrange(10**6) if is_killed else 7  # the operator
                self.die(inside, brought, (sum(brought.values()), where))
                return
            for one in list(inside):
                self.at[one] += 1
                brought[one] += 1
                if self.at[one] == LENGTH:
                    inside.remove(one)
                    self.requests.remove(one)
                    self.trials.remove(one)
            suspect = self.trials.on_trial
            if suspect is not None:
                self.trials.note_progress(brought[suspect], runs=suspect in inside)

    def die(self, inside: list[Resumable], brought: dict[Resumable, int], place: tuple[int, int]) -> None:
        culprit = self.trials.note_death([(one, brought[one]) for one in inside], "died", place)
        if culprit is not None:
            self.culprits.append(culprit)
            self.requests.remove(culprit)


@settings(max_examples=300)
@given(
    count=st.integers(1, 12),
    poison=st.none() | st.tuples(st.integers(0, 11), st.integers(0, LENGTH - 1)),
    kills=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_the_culprit_is_found_and_nobody_else_is_given_up(
    count: int, poison: tuple[int, int] | None, kills: int, seed: int
) -> None:
    world = World(count, poison, kills, seed)
    world.run()
    assert world.culprits == ([] if world.poison is None else [world.poison[0]])
    assert world.culprits == [] or "not tried again" in (world.culprits[0].culprit or "")


def test_kills_from_outside_that_let_nobody_get_on_are_not_blamed_on_who_was_not_alone() -> None:
    trials, two = Trials(), [Resumable(request("a", [3])), Resumable(request("b", [3]))]
    for _ in range(10):
        assert trials.note_death([(one, 0) for one in two], "died", (1, 1)) is None


def test_who_gets_on_in_its_trial_is_cleared_and_the_next_one_is_tried() -> None:
    trials, two = Trials(), [Resumable(request("a", [3])), Resumable(request("b", [3]))]
    for n in range(SUSPECT_ANYWAY_DEATHS):
        trials.note_death([(two[0], 3), (two[1], 0)], "died", (n, n))
    assert not any(trials.may_run(one) for one in two)
    two[0].waits = two[1].waits = True
    assert trials.choose() is two[1], "it had not got on, so it comes first"
    assert [trials.may_run(one) for one in two] == [False, True]
    trials.note_progress(CLEARED_TOKENS, runs=True)
    assert trials.choose() is two[0]
    trials.note_progress(1, runs=False)
    assert [trials.may_run(one) for one in two] == [True, True]


def test_who_got_on_between_two_deaths_is_no_suspect() -> None:
    trials, two = Trials(), [Resumable(request("a", [3])), Resumable(request("b", [3]))]
    for _ in range(2):
        trials.note_death([(two[0], 3), (two[1], 1)], "died", (1, 1))
    assert all(trials.may_run(one) for one in two)
    trials.note_death([(two[0], 0), (two[1], 1)], "died", (1, 1))
    assert [trials.may_run(one) for one in two] == [False, True]


def test_deaths_at_the_same_operator_are_blamed_and_deaths_anywhere_are_not_at_once() -> None:
    for places, blamed in (([(1, 5), (1, 5)], True), ([(1, 5), (1, 6)], False), ([(1, 5), (1, 6), (1, 6)], True)):
        trials, one = Trials(), Resumable(request("a", [3]))
        for _ in range(2):
            trials.note_death([(one, 0)], "died", (0, 0))
        one.waits = True
        trials.choose()
        found = [trials.note_death([(one, 0)], "died", place) for place in places]
        assert (found[-1] is one) == blamed
        assert found[:-1] == [None] * (len(found) - 1)
