"""How many requests a replica is sent at a time: as few as give its full throughput.

Triton queues what it cannot work on yet in the order in which it came, however urgent it is and
however late it will be. So what is beyond use there had better wait here. Three signals, in the
order in which they decide:

- Time. Little's law (L = λW) says how many are in flight while the whole stay at Triton takes no
  longer than `PROMPT_SECONDS`: a queue as short as that harms nobody, and a fast model never waits.
- Latency, at the beginning: as long as it is near the least that was seen, nothing queues at
  Triton, and the limit doubles: the slow start of TCP Vegas (Brakmo and Peterson, 1995), with the
  gradient of Netflix's concurrency-limits.
- Throughput, from then on. Latency alone would take a batch for a queue: a model that batches
  answers later the more are in flight, and more of them. So another limit is tried now and then,
  and kept if the requests per second say so: hill climbing, as .NET's thread pool sizes itself.
"""

import enum
from typing import Final, NamedTuple

FIRST: Final = 4
MOST: Final = 4096
PROMPT_SECONDS: Final = 0.05
INFLATED: Final = 1.5  # times the least latency: then something queues
# The least elasticity of throughput for which more in flight pay: half as many again must give 7 %
# more, twice as many 12 %.
PAYS: Final = 0.17
QUICK_SECONDS: Final = 1.0
SURE: Final = 0.5  # times the noise of a measurement, that more must give besides
KEEPS: Final = 0.95  # of the throughput, when fewer in flight are to do
LEAP_KEEPS: Final = 0.9  # when half as many or fewer are to do
HARMS: Final = 3.0  # times the least latency, where urgent requests wait behind others
FADES: Final = 0.995  # of what counts as the best, with each window
WEIGHT: Final = 0.5  # of the newest in moving averages
FORGETS: Final = 0.9  # of it, when more in flight do not bring it back
SHORTEST_PAUSE: Final = 4  # windows between two rounds of trials
LONGEST_PAUSE: Final = 16


class Trial(enum.IntEnum):
    """What is tried, in this order, again and again. A leap down goes where nothing would queue at
    Triton if it did not batch. A leap up finds out whether it does: that takes many, not one more.
    """

    LEAP_DOWN = 0
    LEAP_UP = 1
    DOWN = 2
    UP = 3


class Limit(NamedTuple):
    """`value`: requests in flight on one replica. `rising`: still in slow start. `held`: on trial
    is `value`, and `held` is what was before; 0 without a trial. `rate`: requests a second, the
    last that were measured without a trial; `best`: the most of late. `noise`: relative, of a
    measured rate. `trial`: the next one, or the one that is on. `vain`: how many of a round were
    in vain. `pause`: windows until the next one, `patience`: how many there will be after this
    round."""

    value: int = FIRST
    rising: bool = True
    held: int = 0
    rate: float = 0.0
    best: float = 0.0
    noise: float = 0.0
    trial: Trial = Trial.LEAP_DOWN
    vain: int = 0
    pause: int = 0
    patience: int = SHORTEST_PAUSE


class Window(NamedTuple):
    """What was measured of one replica while it had as much in flight as it may have. `rate`:
    answers a second; `noise`: its standard error, relative. `latency`, `least`: mean seconds at
    Triton, and the least of late. `floor`: no limit is to be lower. `urgent`: some requests are
    more urgent than others."""

    rate: float
    latency: float
    least: float
    noise: float = 0.0
    floor: int = 1
    urgent: bool = False


def prompt(rate: float) -> int:
    """In flight, at `rate` answers a second, when each takes `PROMPT_SECONDS`."""
    return min(MOST, int(rate * PROMPT_SECONDS))


def measured(limit: Limit, window: Window, workers: int = 1) -> Limit:
    """The limit after a window. `workers`: Routers that send to the same replica; a bigger share of
    it, at the others' cost, must not look like more throughput."""
    limit = limit._replace(noise=limit.noise + (window.noise - limit.noise) * WEIGHT)
    if window.floor > limit.value:
        return limit._replace(value=max(window.floor, limit.held), held=0)
    if limit.rising:
        if window.latency <= INFLATED * window.least and limit.value < MOST:
            return limit._replace(value=min(MOST, 2 * limit.value))
        # Whether it batches is to be known first, where it takes little time to find out.
        quick = not window.urgent and 4 * window.latency <= QUICK_SECONDS
        first = Trial.LEAP_UP if quick else Trial.LEAP_DOWN
        limit = limit._replace(rising=False, rate=window.rate, best=window.rate, trial=first)
    elif limit.held:
        if pays(limit, window.rate, workers):
            limit = _accepted(limit, window.rate)
        else:
            limit = _in_vain(back(limit))
            limit = limit._replace(value=max(window.floor, limit.value))
    else:
        rate = limit.rate + (window.rate - limit.rate) * WEIGHT if limit.rate else window.rate
        limit = limit._replace(rate=rate, best=max(FADES * limit.best, rate))
        if rate < KEEPS * limit.best:  # it was lowered too far, or the model has become slower
            limit = limit._replace(pause=0, trial=Trial.UP)
    if limit.pause:
        return limit._replace(pause=limit.pause - 1)
    while True:
        value = _tried(limit, window, workers)
        if value != limit.value:
            return limit._replace(value=value, held=limit.value)
        limit = _in_vain(limit)
        if limit.pause:
            return limit


def back(limit: Limit) -> Limit:
    """Without the trial, if there is one."""
    return limit._replace(value=limit.held, held=0) if limit.held else limit


def pays(limit: Limit, rate: float, workers: int) -> bool:
    """Whether what is on trial is better than what was held."""
    share = 1.0 - (1.0 - PAYS) / workers
    wanted: float = limit.rate * (limit.value / limit.held) ** share
    if limit.value > limit.held:
        return rate >= wanted * (1.0 + SURE * limit.noise)
    if workers > 1:
        return rate >= wanted
    keeps = LEAP_KEEPS if 2 * limit.value <= limit.held else KEEPS
    return rate >= keeps * max(limit.rate, limit.best)


def _accepted(limit: Limit, rate: float) -> Limit:
    """The same is tried again from there; after a leap, as if nothing had been in vain."""
    limit = limit._replace(held=0, rate=rate, best=max(limit.best, rate))
    if limit.trial in (Trial.LEAP_DOWN, Trial.LEAP_UP):
        return limit._replace(vain=0, patience=SHORTEST_PAUSE)
    return limit


def _in_vain(limit: Limit) -> Limit:
    """On to the next trial; when none was any good, after a pause that doubles."""
    if limit.trial is Trial.UP:
        limit = limit._replace(best=max(limit.rate, FORGETS * limit.best))
    limit = limit._replace(trial=Trial((limit.trial + 1) % len(Trial)), vain=limit.vain + 1)
    if limit.vain < len(Trial):
        return limit
    patience = min(LONGEST_PAUSE, 2 * limit.patience)
    return limit._replace(vain=0, pause=limit.patience, patience=patience)


def _tried(limit: Limit, window: Window, workers: int) -> int:
    """The value to try; the present one if there is nothing to try."""
    value = limit.value
    rare = limit.patience in (SHORTEST_PAUSE, LONGEST_PAUSE)
    if limit.trial is Trial.UP:
        higher = max(value + 1, value * 3 // 2)
        # However noisy the measurements are, the urgent are not to pay for what comes of that.
        if window.urgent and window.latency * higher > HARMS * window.least * value:
            return value
        return min(MOST, higher)
    if limit.trial is Trial.LEAP_UP:
        # Dear to those who wait for a model that does not batch: so it is rare, and not at the cost
        # of the urgent. And who has a small share of a replica gains by it in any case, until all
        # have leapt to the top.
        leaps = rare and not window.urgent and workers == 1
        return min(MOST, 4 * value) if leaps else value
    # By Little's law, fewer than this cannot be enough. But the least latency may be too high, when
    # there has been a queue for long.
    busy = round(max(limit.rate, limit.best) * window.least)
    lower = value * 3 // 4
    if limit.trial is Trial.LEAP_DOWN:
        lower = min(lower, busy)
    if limit.trial is Trial.LEAP_DOWN or not rare:
        lower = max(lower, busy)
    return min(value, max(lower, window.floor, 1))
