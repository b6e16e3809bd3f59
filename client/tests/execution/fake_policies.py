"""Policies and executors that say what was done with them."""

import concurrent.futures
from collections import deque

import numpy as np


class Telling:
    """Answers the observation of step t with actions t + i / 100, which tell where they are from."""

    def __init__(self, horizon, width=2):
        self.horizon, self.width = horizon, width
        self.asked, self.continued, self.options, self.resets = [], [], [], 0

    def infer(self, observation, *, continuing=None, **options):
        self.asked.append(observation["t"])
        self.continued.append(continuing)
        self.options.append(options)
        actions = observation["t"] + np.arange(self.horizon)[:, None] / 100
        return {"actions": np.repeat(actions, self.width, axis=1), "seen": observation["t"]}

    def reset(self):
        self.resets += 1


class Watching(Telling):
    """One with a past: it notes every frame that it is shown or asked about."""

    def __init__(self, horizon):
        super().__init__(horizon)
        self.frames = []

    def infer(self, observation, **options):
        self.frames.append(observation["t"])
        return super().infer(observation, **options)

    def observe(self, observation):
        self.frames.append(observation["t"])


class Manual(concurrent.futures.Executor):
    """Runs a call when it is told to."""

    def __init__(self):
        self.calls = deque()

    def submit(self, function, /, *arguments, **options):
        future = concurrent.futures.Future()
        self.calls.append((future, function, arguments, options))
        return future

    def run(self, count=None):
        for _ in range(len(self.calls) if count is None else count):
            future, function, arguments, options = self.calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments, **options))
            except ArithmeticError as error:
                future.set_exception(error)


def told(action):
    """The step of the chunk and the place in it that an action tells."""
    origin, place = divmod(round(float(action[0]) * 100), 100)
    return origin, place


def steps(strategy, count, start=0):
    """Actions of so many steps, as they tell where they are from."""
    return [told(strategy.act({"t": start + t})) for t in range(count)]
