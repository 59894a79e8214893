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
