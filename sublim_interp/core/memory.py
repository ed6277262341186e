"""What becomes of memory that this process has freed: it is kept for the next update, and given back once a minute."""

import ctypes
import time

_SECONDS = 60.0
"""Between two times that freed memory is given back: of a model of 135 million parameters that takes half a second."""
_last = time.monotonic()


def keep_freed() -> None:
    """From now on freed memory stays with this process: glibc else gives large tensors back at each training step."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    if libc := _glibc():
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def give_back(seconds: float = _SECONDS) -> None:
    """Gives freed memory back to the system, if that was last done so many seconds ago.

    Batches of many shapes leave gaps that no later one fits. Without this a student of 135 million parameters grew from
    6 to 15 GB in half an hour.
    """
    global _last  # of the whole process, as its memory is
    if time.monotonic() - _last >= seconds:
        if libc := _glibc():
            libc.malloc_trim(0)
        _last = time.monotonic()


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc. With another one everything is slower, not wrong."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None
