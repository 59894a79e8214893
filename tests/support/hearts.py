"""A heart whose time the test makes."""

import collections

from given import eventually
from launcher.heartbeat import Heart


class Watching(Heart):
    """Counts what its threads do; its time stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0
        self.beats = collections.Counter()
        super().__init__(lambda: self.now)

    def beat(self, pulse):
        super().beat(pulse)
        self.beats[pulse.name] += 1

    def begin(self, name, seconds):
        pulse = super().begin(name, seconds)
        self.beats[name] += 1
        return pulse

    def endures(self, name, *, hours=2.0, step=200.0):
        """Whether a thread that waits shows it every *step* seconds, for so long."""
        until = self.now + hours * 3600
        while self.now < until:
            before = self.beats[name]
            self.now += step
            eventually(
                lambda before=before: self.beats[name] > before, f"{name} sleeps"
            )
            if name in self.late():
                return False
        return True

    def misses(self, minutes=8.0):
        """Who is missed after so long, in which nobody has done anything."""
        self.now += minutes * 60
        return set(self.late())
