"""What the C library keeps for threads."""

import subprocess
import sys

import pytest


_PROGRAM = """
import ctypes, sys, threading
from launcher.memory import share

if sys.argv[1:]:
    share(int(sys.argv[1]))
together, kept = threading.Barrier(12), []

def work():
    together.wait()
    kept.extend(bytearray(10_000) for _ in range(50))
    together.wait()

threads = [threading.Thread(target=work) for _ in range(12)]
for each in threads:
    each.start()
for each in threads:
    each.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.processes
def test_threads_share_reserves():
    """Many threads have as many reserves as was said, and more if nothing was."""

    def reserves(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stderr.count("Arena ")

    assert 1 <= reserves("2") <= 2
    assert reserves() > 2


_LASTING = """
import gc
from launcher.memory import lasting

class Node:
    def __init__(self):
        self.me = self

with lasting():
    assert not gc.isenabled()
    made = [Node() for _ in range(1000)]
    known = id(made[0])
assert gc.isenabled()
assert not any(id(each) == known for each in gc.get_objects())
gc.disable()
for _ in range(1000):
    Node()
assert gc.collect() >= 1000
"""


@pytest.mark.processes
def test_what_lasts_is_not_looked_at():
    """What is made at the start is left alone by the collector; what comes later is not."""
    subprocess.run([sys.executable, "-c", _LASTING], check=True)
