"""Allowances and tenants, with a clock that stands still until it is moved."""

from __future__ import annotations

import pytest

from puna.errors import InputError
from puna.server.draining import Draining
from puna.server.errors import RequestError, http_failure
from puna.server.limits import LimitError, Limits, Tenant


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(tenant: Tenant) -> LimitError:
    with pytest.raises(LimitError) as caught:
        tenant.enter()
    return caught.value


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock()
    tenant = Tenant("a", Limits(requests_per_minute=6), clock)
    for _ in range(6):
        tenant.enter()
    assert refusal(tenant).retry_after_s == pytest.approx(10)
    clock.now += 10
    tenant.enter()
    assert refusal(tenant).retry_after_s == pytest.approx(10)
    clock.now += 3600
    for _ in range(6):
        tenant.enter()
    assert http_failure(refusal(tenant)).headers["Retry-After"] == "10"
    assert (tenant.requests, tenant.refused) == (13, 3)


def test_a_request_that_has_left_makes_room() -> None:
    tenant = Tenant("a", Limits(concurrency=2), Clock())
    tenant.enter()
    tenant.enter()
    assert "2 requests of yours run" in str(refusal(tenant))
    tenant.leave()
    tenant.enter()


def test_tokens_that_were_drawn_are_paid_back_by_waiting() -> None:
    clock = Clock()
    tenant = Tenant("a", Limits(tokens_per_minute=60), clock)
    tenant.admit(50)
    tenant.spend(40)  # an answer is not cut: the allowance is overdrawn by 30
    with pytest.raises(LimitError) as caught:
        tenant.admit(10)
    assert caught.value.retry_after_s == pytest.approx(40)
    clock.now += 40
    tenant.admit(10)
    assert tenant.tokens == 100


def test_a_prompt_above_a_minutes_tokens_is_not_asked_to_come_again() -> None:
    tenant = Tenant("a", Limits(tokens_per_minute=60), Clock())
    with pytest.raises(RequestError) as caught:
        tenant.admit(61)
    failure = http_failure(caught.value)
    assert (failure.status, failure.code) == (400, "prompt_above_token_limit")
    assert "Retry-After" not in failure.headers


def test_headers_say_what_is_left_and_only_of_what_is_limited() -> None:
    assert Tenant("a", Limits(concurrency=3), Clock()).headers() == []
    tenant = Tenant("a", Limits(requests_per_minute=60, tokens_per_minute=600), Clock())
    tenant.enter()
    tenant.admit(700 - 200)
    assert dict(tenant.headers()) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1.000s",
        b"x-ratelimit-limit-tokens": b"600",
        b"x-ratelimit-remaining-tokens": b"100",
        b"x-ratelimit-reset-tokens": b"50.000s",
    }


def test_new_limits_do_not_forget_what_the_old_ones_counted() -> None:
    tenant = Tenant("a", Limits(requests_per_minute=1, concurrency=5), Clock())
    tenant.enter()
    tenant.set_limits(Limits(requests_per_minute=1, concurrency=9))
    refusal(tenant)
    tenant.set_limits(Limits(requests_per_minute=2))
    tenant.enter()


def test_limits_below_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="concurrency is -1"):
        Limits(concurrency=-1)


def test_a_drain_is_over_when_nothing_runs_or_its_time_is_up_or_it_is_asked_for_again() -> None:
    clock = Clock()
    draining = Draining(10, clock)
    draining.check()
    draining.running = 1
    assert not draining.is_over
    draining.begin()
    with pytest.raises(RequestError) as caught:
        draining.check()
    assert http_failure(caught.value).headers["Retry-After"] == "11"
    assert not draining.is_over
    draining.running = 0
    assert draining.is_over
    draining.running = 1
    clock.now += 10
    assert draining.is_over
    clock.now -= 5
    assert not draining.is_over
    draining.begin()
    assert draining.is_over
