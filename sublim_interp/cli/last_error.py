"""The last error of the command line: a line of at most 200 characters, and the whole of it for `sublim show error`."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

MOST = 200
"""Characters of an error's line."""

_MORE = " … (all of it: sublim show error)"


def shortened(line: str) -> str:
    """A line as it is printed: cut where it is long, and then kept whole for `last_error`."""
    if len(line) <= MOST:
        return line
    with suppress(OSError):  # where nothing can be kept, the beginning must do
        _place().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _place().write_text(line + "\n", encoding="utf-8")
    return line[: MOST - len(_MORE)].rstrip() + _MORE


def last_error() -> str:
    """The last long error, whole; "" where there was none."""
    try:
        return _place().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _place() -> Path:
    """A file of this user's, outside every store and working directory."""
    cache = os.environ.get("XDG_CACHE_HOME")
    home = Path(cache) if cache else Path(os.path.expanduser("~")) / ".cache"
    return (home if home.is_absolute() else Path(tempfile.gettempdir())) / "sublim" / "error.txt"
