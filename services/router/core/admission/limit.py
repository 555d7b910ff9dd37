"""Finds how many requests to send to a replica at a time: as few as give its full throughput.

Triton queues what it cannot process yet in order of arrival, however urgent or late it is. Whatever
does not add to the throughput is therefore better kept here. Three signals decide, in this order:

- Time. Little's law (L = λW) tells how many requests are in flight while the whole stay at Triton
  takes no longer than `PROMPT_SECONDS`. A queue that short harms nobody, and a fast model never
  waits.
- Latency, at the beginning. As long as it is close to the least latency seen, nothing queues at
  Triton, and the limit doubles: the slow start of TCP Vegas (Brakmo and Peterson, 1995), with the
  gradient of Netflix's concurrency-limits.
- Throughput, from then on. Latency alone would mistake a batch for a queue: a model that batches
  answers later the more requests are in flight, and answers more of them. So other limits are tried
  now and then, and kept if the throughput speaks for them: hill climbing, as in .NET's thread
  pool."""

import enum
from typing import Final, NamedTuple

FIRST: Final = 4
MOST: Final = 4096
PROMPT_SECONDS: Final = 0.05
INFLATED: Final = 1.5  # times the least latency, above which requests queue
# The least elasticity of throughput for which more requests in flight pay: half as many again must
# give 7 % more throughput, twice as many 12 %.
PAYS: Final = 0.17
QUICK_SECONDS: Final = 1.0
SURE: Final = 0.5  # times the noise, which a higher limit must gain on top
KEEPS: Final = 0.95  # of the throughput that a lower limit must keep
LEAP_KEEPS: Final = 0.9  # the same, for half the limit or less
HARMS: Final = 3.0  # times the least latency is too much if urgent requests are among others
FADES: Final = 0.995  # of the best rate remains after each window
WEIGHT: Final = 0.5  # of the newest value in moving averages
FORGETS: Final = 0.9  # of the best rate remains when more requests in flight do not reach it
SHORTEST_PAUSE: Final = 4  # windows between two rounds of trials
LONGEST_PAUSE: Final = 16


class Trial(enum.IntEnum):
    """What to try, in this order, again and again.

    A leap down goes to where nothing would queue at Triton if the model did not batch. A leap up
    finds out whether it does, for which one more request is not enough."""

    LEAP_DOWN = 0
    LEAP_UP = 1
    DOWN = 2
    UP = 3


class Limit(NamedTuple):
    """The limit of one replica, and the state of the search for it."""

    #: Requests in flight on one replica.
    value: int = FIRST
    #: Whether it is still in slow start.
    rising: bool = True
    #: The value before the trial that is on; 0 without a trial.
    fallback: int = 0
    #: Requests a second, as last measured without a trial.
    rate: float = 0.0
    #: The highest rate of late.
    best: float = 0.0
    #: The relative error of a measured rate.
    noise: float = 0.0
    #: The trial that is on, or the next one.
    trial: Trial = Trial.LEAP_DOWN
    #: How many trials of this round have failed.
    failed_trials: int = 0
    #: Windows until the next trial.
    pause: int = 0
    #: Windows of pause after this round.
    patience: int = SHORTEST_PAUSE


class Window(NamedTuple):
    """What was measured on one replica while as many requests were in flight as may be."""

    #: Answers a second.
    rate: float
    #: Mean seconds at Triton.
    latency: float
    #: The least latency of late, in seconds.
    least: float
    #: The relative standard error of `rate`.
    noise: float = 0.0
    #: The lowest limit to choose.
    floor: int = 1
    #: Whether some requests are more urgent than others.
    urgent: bool = False


def prompt_limit(rate: float) -> int:
    """Return how many requests are in flight at `rate` answers a second if each takes
    `PROMPT_SECONDS`."""
    return min(MOST, int(rate * PROMPT_SECONDS))


def after_window(limit: Limit, window: Window, workers: int = 1) -> Limit:
    """Return the limit after a window.

    `workers` is the number of Routers that send to the same replica. A larger share of it, at the
    expense of the others, must not look like a higher throughput."""
    limit = limit._replace(noise=limit.noise + (window.noise - limit.noise) * WEIGHT)
    if window.floor > limit.value:
        return limit._replace(value=max(window.floor, limit.fallback), fallback=0)
    if limit.rising:
        if window.latency <= INFLATED * window.least and limit.value < MOST:
            return limit._replace(value=min(MOST, 2 * limit.value))
        # First find out whether the model batches, if that takes little time.
        quick = not window.urgent and 4 * window.latency <= QUICK_SECONDS
        first = Trial.LEAP_UP if quick else Trial.LEAP_DOWN
        limit = limit._replace(rising=False, rate=window.rate, best=window.rate, trial=first)
    elif limit.fallback:
        if pays(limit, window.rate, workers):
            limit = _after_success(limit, window.rate)
        else:
            limit = _after_failure(without_trial(limit))
            limit = limit._replace(value=max(window.floor, limit.value))
    else:
        rate = limit.rate + (window.rate - limit.rate) * WEIGHT if limit.rate else window.rate
        limit = limit._replace(rate=rate, best=max(FADES * limit.best, rate))
        if rate < KEEPS * limit.best:  # lowered too far, or the model has become slower
            limit = limit._replace(pause=0, trial=Trial.UP)
    if limit.pause:
        return limit._replace(pause=limit.pause - 1)
    while True:
        value = _value_to_try(limit, window, workers)
        if value != limit.value:
            return limit._replace(value=value, fallback=limit.value)
        limit = _after_failure(limit)
        if limit.pause:
            return limit


def without_trial(limit: Limit) -> Limit:
    """Return the limit without the trial, if there is one."""
    return limit._replace(value=limit.fallback, fallback=0) if limit.fallback else limit


def pays(limit: Limit, rate: float, workers: int) -> bool:
    """Return whether the value on trial is better than the one before."""
    share = 1.0 - (1.0 - PAYS) / workers
    wanted: float = limit.rate * (limit.value / limit.fallback) ** share
    if limit.value > limit.fallback:
        return rate >= wanted * (1.0 + SURE * limit.noise)
    if workers > 1:
        return rate >= wanted
    keeps = LEAP_KEEPS if 2 * limit.value <= limit.fallback else KEEPS
    return rate >= keeps * max(limit.rate, limit.best)


def _after_success(limit: Limit, rate: float) -> Limit:
    """Keep the value on trial. The same trial is made again from there; after a leap, no trial
    counts as failed."""
    limit = limit._replace(fallback=0, rate=rate, best=max(limit.best, rate))
    if limit.trial in (Trial.LEAP_DOWN, Trial.LEAP_UP):
        return limit._replace(failed_trials=0, patience=SHORTEST_PAUSE)
    return limit


def _after_failure(limit: Limit) -> Limit:
    """Go on to the next trial or, if a whole round failed, pause for twice as long as last time."""
    if limit.trial is Trial.UP:
        limit = limit._replace(best=max(limit.rate, FORGETS * limit.best))
    limit = limit._replace(
        trial=Trial((limit.trial + 1) % len(Trial)), failed_trials=limit.failed_trials + 1
    )
    if limit.failed_trials < len(Trial):
        return limit
    patience = min(LONGEST_PAUSE, 2 * limit.patience)
    return limit._replace(failed_trials=0, pause=limit.patience, patience=patience)


def _value_to_try(limit: Limit, window: Window, workers: int) -> int:
    """Return the value to try, or the present one if there is nothing to try."""
    value = limit.value
    rare = limit.patience in (SHORTEST_PAUSE, LONGEST_PAUSE)
    if limit.trial is Trial.UP:
        higher = max(value + 1, value * 3 // 2)
        # Urgent requests must not suffer from noisy measurements.
        if window.urgent and window.latency * higher > HARMS * window.least * value:
            return value
        return min(MOST, higher)
    if limit.trial is Trial.LEAP_UP:
        # A leap up costs those who wait for a model that does not batch, so it is rare, and never
        # at the expense of urgent requests. A Router with a small share of a replica gains by it in
        # any case, until all of them have leapt to the top.
        leaps = rare and not window.urgent and workers == 1
        return min(MOST, 4 * value) if leaps else value
    # By Little's law, fewer than this cannot be enough. But the least latency may be too high if
    # there has been a queue for long.
    busy = round(max(limit.rate, limit.best) * window.least)
    lower = value * 3 // 4
    if limit.trial is Trial.LEAP_DOWN:
        lower = min(lower, busy)
    if limit.trial is Trial.LEAP_DOWN or not rare:
        lower = max(lower, busy)
    return min(value, max(lower, window.floor, 1))
