"""Models behind an OpenAI-compatible server, such as vLLM's, llama.cpp's or TGI's: how one is reached and asked.

The `openai` package is an optional extra, imported when the first request is made. It could try again by itself; here
that is done outside of it, so that each failure is counted by its name and an outage may last longer.
"""

import asyncio
import email.utils
import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from sublim_interp.core.errors import SublimError
from sublim_interp.core.journal import Journal
from sublim_interp.core.keys import canonical_json, sha256_of
from sublim_interp.core.settings import SECRET, Config
from sublim_interp.models.chat import Messages

log = logging.getLogger(__name__)

T = TypeVar("T")

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
"""The environment variables that name a server where no setting does, and hold the key that it asks for."""

FOLDER = ".asked"
"""The folder of a store that keeps what served models answered, a journal a model."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second try, doubled at each further one, and at most."""
_TOLD = ("id", "owned_by", "root", "max_model_len", "meta")
"""What a server's list says of a model that stays the same from request to request."""


PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""What switches off all that vLLM and llama.cpp else do unasked, so that temperature 1 is the model's own."""


class Server(Config):
    """A model on an OpenAI-compatible server: which, and how it is reached."""

    REACHED: ClassVar[frozenset[str]] = frozenset({"url", "timeout", "patience", "in_flight"})
    """How it is reached. That changes no result, so it is part of no key."""

    url: str = ""
    """Where it is, such as http://127.0.0.1:8000/v1; empty: $OPENAI_BASE_URL. A key is taken from $OPENAI_API_KEY."""
    model: str = ""
    """The model's name there."""
    revision: str = ""
    """Its digest or commit, as you declare it: no server tells."""
    extra: dict[str, Any] = Field(default=PLAIN, repr=False)
    """Sent besides. The default switches off what vLLM and llama.cpp else do unasked: top-k, min-p, penalties. {} for a
    server that refuses unknown settings."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds after which a request counts as lost."""
    patience: float = Field(default=600.0, ge=0)
    """Seconds for which one request is tried again before the work stops; what is answered by then is kept."""
    in_flight: int = Field(default=16, ge=1, le=4096)
    """Requests at one time, at most."""

    @field_validator("url")
    @classmethod
    def _names_a_place_and_no_secret(cls, url: str) -> str:
        if not url:
            return url
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            raise ValueError("it is no URL; give one such as http://127.0.0.1:8000/v1") from None
        if parts.username or parts.password or parts.query:
            raise PydanticCustomError(
                SECRET, f"it holds a secret, or may, and would be stored; put the key into ${KEY}"
            )
        if not whole:
            raise ValueError("it is no URL; give one such as http://127.0.0.1:8000/v1")
        return url

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # `extra` has no hash of its own

    def asked(self) -> dict[str, Any]:
        """What decides its answers, plain data."""
        return self.model_dump(mode="json", exclude={*self.REACHED})


class Request(NamedTuple):
    """One thing to ask.

    messages: a chat that ends with the user's turn
    seed: whatever decides the draw, plain data
    """

    messages: Messages
    seed: Any


class Reply(NamedTuple):
    """What came back.

    text: of the answer, without white space around it
    finished: whether it ended by itself
    """

    text: str
    finished: bool


class _Malformed(Exception):
    """A reply of status 200 that is no chat completion."""


@dataclass(frozen=True)
class ServedModel:
    """A model on a server as something to ask.

    server: which and where
    keep: the folder of the journals of what it answered; nothing in them is asked again
    tally: how many requests were answered, found in a journal, or failed, by cause; how answers ended, and the
        fingerprints of those who gave them
    """

    server: Server
    keep: Path
    tally: Counter[str] = field(default_factory=Counter, compare=False)

    def replies(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float,
        keep: Path | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> list[Reply]:
        """The replies, in the requests' order, whichever arrived first; equal requests are made once.

        max_new_tokens: where an answer is cut
        temperature: 1 is the model's own distribution; 0 takes the likeliest token
        keep: the journal to use instead of the folder's
        progress: told the share that is answered

        Raises SublimError where the server refuses a request, or cannot be reached for longer than its patience. All
        that was answered until then is in the journal.
        """
        bodies = [self._body(request, max_new_tokens, temperature) for request in requests]
        keys = [sha256_of([self.server.revision, body]) for body in bodies]
        journal = Journal(keep or self.keep / f"{sha256_of([self.server.asked(), self.told])[:16]}.jsonl")
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in journal}
        self.tally["kept"] += len({*keys}) - len(missing)
        done = len({*keys}) - len(missing)
        if missing:
            whole = len(missing) + done

            def arrived(key: str, value: dict[str, Any]) -> None:
                nonlocal done
                journal.add(key, value)
                done += 1
                progress(done / whole)

            _run(self._ask_all(missing, arrived))
        out = []
        for key in keys:
            value = journal[key]
            out.append(Reply(value["text"], value["end"] == "stop"))
        for value in (journal[key] for key in dict.fromkeys(keys)):
            self.tally[f"ended: {value['end']}"] += 1
            if value["by"]:
                self.tally[f"system_fingerprint: {value['by']}"] += 1
        return out

    @cached_property
    def told(self) -> str:
        """What the server's own list of models says of it, as text; asked once. Raises SublimError as `replies`."""
        listed = _run(self._listed())
        if listed is None:
            return f"{self.server.model}; the server lists no models"
        mine = next((entry for entry in listed if entry.get("id") == self.server.model), None)
        if mine is None:
            names = ", ".join(sorted(str(entry.get("id")) for entry in listed)[:8]) or "none"
            return f"{self.server.model}; the server lists {names}"
        return canonical_json({name: mine[name] for name in _TOLD if mine.get(name) is not None})

    def notes(self) -> dict[str, Any]:
        """What a manifest says of who answered, and of what went wrong on the way."""
        return {"model": self.server.model, "list": self.told, **dict(sorted(self.tally.items()))}

    def _body(self, request: Request, max_new_tokens: int, temperature: float) -> dict[str, Any]:
        seed = int.from_bytes(hashlib.sha256(canonical_json(request.seed).encode()).digest()[:4], "big") >> 1
        return {
            "model": self.server.model,
            "messages": [dict(turn) for turn in request.messages],
            "temperature": temperature,
            "top_p": 1.0,
            "max_tokens": max_new_tokens,
            "seed": seed,
            **self.server.extra,
        }

    async def _ask_all(self, bodies: dict[str, dict[str, Any]], arrived: Callable[[str, dict[str, Any]], None]) -> None:
        waiting = iter(bodies.items())
        async with _client(self.server) as client:

            async def work() -> None:
                for key, body in waiting:  # shared: each request is taken once
                    value = await self._patiently(lambda body=body: _completion(client, body))
                    self.tally["answered"] += 1
                    arrived(key, value)

            await _together(work() for _ in range(min(self.server.in_flight, len(bodies))))

    async def _listed(self) -> list[dict[str, Any]] | None:
        """The server's list of models; None where it has no such list."""
        async with _client(self.server) as client:
            return await self._patiently(lambda: _models(client))

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `ask` gives, tried again after each failure that may pass."""
        wait, until = FIRST_WAIT, math.inf
        while True:
            try:
                return await ask()
            except Exception as error:
                cause, pause = _cause(error)
            self.tally[f"failed: {cause}"] += 1
            now, pause = time.monotonic(), max(wait, pause)
            until = min(until, now + self.server.patience)
            if now + pause > until:
                where = self.server.url or f"${URL}"
                raise SublimError(
                    f"the server at {where} fails ({cause}), and the next try, in {pause:.1f} s, is past a patience of "
                    f"{self.server.patience:g} s. What it answered is kept: run the same command again"
                )
            log.info("%s: %s, tried again in %.1f s", self.server.model, cause, pause)
            await asyncio.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)


def check_client() -> None:
    """Raises SublimError where the `openai` package is not installed."""
    from importlib.util import find_spec

    if find_spec("openai") is None:
        raise SublimError("a served model needs the openai package: pip install 'sublim-interp[served]'")


def _client(server: Server) -> Any:
    check_client()
    import openai

    url = server.url or os.environ.get(URL, "")
    if not url:
        raise SublimError(f"no server is named: set the model's `url`, such as http://127.0.0.1:8000/v1, or ${URL}")
    return openai.AsyncOpenAI(
        base_url=url, api_key=os.environ.get(KEY) or "none", timeout=server.timeout, max_retries=0
    )


async def _completion(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an answer: its text, how it ended, and the fingerprint of who gave it, if it is told."""
    own = ("model", "messages", "temperature", "top_p", "max_tokens", "seed")
    more = {name: value for name, value in body.items() if name not in own}
    raw = await client.chat.completions.with_raw_response.create(
        **{name: body[name] for name in own if name in body}, extra_body=more
    )
    reply = _json(raw)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Malformed
    message, end, by = choices[0].get("message"), choices[0].get("finish_reason"), reply.get("system_fingerprint")
    if not isinstance(message, dict):
        raise _Malformed
    text = message.get("content")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else ""
    return {"text": whole.strip(), "end": str(end), "by": str(by) if by else ""}


async def _models(client: Any) -> list[dict[str, Any]] | None:
    import openai

    try:
        reply = _json(await client.models.with_raw_response.list())
    except openai.APIStatusError as error:
        if error.status_code in (404, 405, 501):
            return None
        raise
    listed = reply.get("data")
    if not isinstance(listed, list):
        raise _Malformed
    return [entry for entry in listed if isinstance(entry, dict)]


def _json(raw: Any) -> dict[str, Any]:
    try:
        reply = json.loads(raw.http_response.content)
    except (ValueError, RecursionError):
        raise _Malformed from None
    if not isinstance(reply, dict):
        raise _Malformed
    return reply


def _cause(error: Exception) -> tuple[str, float]:
    """A failure's name, and for how many seconds the server asks to be left alone. Raises what does not pass."""
    import openai

    if isinstance(error, _Malformed):
        return "malformed", 0.0
    if isinstance(error, openai.APITimeoutError):
        return "time-out", 0.0
    if isinstance(error, openai.APIConnectionError):
        return "connection", 0.0
    if not isinstance(error, openai.APIStatusError):
        raise error
    status = error.status_code
    if status in (408, 409, 425, 429) or status >= 500:
        return f"HTTP {status}", _asked_pause(error.response.headers)
    said = " ".join(str(error.message).split())[:300]
    if key := os.environ.get(KEY):
        said = said.replace(key, f"${KEY}")  # some servers repeat it
    raise SublimError(f"the server refuses with HTTP {status}: {said}") from None


def _asked_pause(headers: Any) -> float:
    """Seconds by the header Retry-After, which holds a number or a date; 0 where it holds neither."""
    told = headers.get("retry-after", "")
    try:
        pause = float(told)
    except ValueError:
        try:
            pause = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(pause, 0.0) if math.isfinite(pause) else 0.0


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Does all of it at once; the first failure ends the rest, and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result of asynchronous work, also in a notebook, whose thread runs such work already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
