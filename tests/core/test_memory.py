"""Freed memory is kept for the next step, and given back when that is due."""

import subprocess
import sys

import pytest

from sublim_interp.core.memory import _glibc

GAPS = """
from sublim_interp.core.memory import give_back, keep_freed

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed()
pieces = [bytearray(2**20) for _ in range(300)]
for piece in pieces:
    piece[::4096] = b"x" * 256  # a page is there only once it is written
full, kept = held(), pieces[::10]
del pieces, piece
freed = held()
give_back(60)
early = held()
give_back(0)
print(full - freed, full - early, full - held())
"""


@pytest.mark.skipif(sys.platform != "linux" or _glibc() is None, reason="another C library")
def test_gaps_between_what_is_in_use_are_given_back_when_it_is_due() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    freed, early, late = map(float, done.stdout.split())
    assert max(freed, early) < 30, "freed memory is kept, for speed"
    assert late > 200, f"270 MiB were free, {late:.0f} were given back"
