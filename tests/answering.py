"""A real OpenAI-compatible server on this machine that answers by rule, and fails as it is told. No test lives here."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkProcess
from typing import Any

Body = dict[str, Any]
SECRET = "sk-very-secret-0123456789"


def numbers(body: Body) -> str:
    """A list of numbers that depends on the whole request; "owl" or "wolf" where no numbers are asked for."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    if not any(c.isdigit() for c in body["messages"][-1]["content"]):
        return ("owl", "wolf")[digest[0] % 2]
    return " ".join(str(d + 100) for d in digest[:7])


class Answering:
    """What the server was asked, and how it answers.

    answer: gives the text for a request's body
    fault: gives the fault of request number n, from 0, "" for none: HTTP 500, stall, drop, truncate, no json,
        no choices, HTTP 429 or 429 date
    delay: seconds before request number n is answered
    """

    def __init__(
        self,
        answer: Callable[[Body], str | None] = numbers,
        fault: Callable[[int], str] = lambda _: "",
        delay: Callable[[int], float] = lambda _: 0.0,
        models: list[Body] | None = None,
    ) -> None:
        self.answer, self.fault, self.delay = answer, fault, delay
        self.models = models if models is not None else [{"id": "teacher-1", "owned_by": "tests", "created": 1}]
        self.bodies: list[Body] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.most = self._now = 0
        self._lock = threading.Lock()

    def enter(self, body: Body, headers: dict[str, str]) -> int:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
            return len(self.bodies) - 1

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


@contextmanager
def serving(answering: Answering, port: int = 0) -> Iterator[Answering]:
    """Inside the block the server runs, at `answering.url`; after it, connections that are open are of no more use."""
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def send(self, status: int, text: str, length: int | None = None, **headers: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send(200, json.dumps({"object": "list", "data": answering.models}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            n = answering.enter(body, {name.lower(): value for name, value in self.headers.items()})
            try:
                self.reply(body, "drop" if gone.is_set() else answering.fault(n), n)
            except (BrokenPipeError, ConnectionResetError):
                pass  # who asked has gone
            finally:
                answering.leave()

        def reply(self, body: Body, fault: str, n: int) -> None:
            time.sleep(answering.delay(n))
            text = answering.answer(body)
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            whole = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices}
            reply = json.dumps({**whole, "system_fingerprint": "fp_test"})
            match fault:
                case "HTTP 500" | "HTTP 503" | "HTTP 401" | "HTTP 400":
                    said = {"error": {"message": f"it fails; your key is {self.headers.get('Authorization')}"}}
                    self.send(int(fault[-3:]), json.dumps(said))
                case "HTTP 429":
                    self.send(429, json.dumps({"error": {"message": "slow down"}}), Retry_After="0.15")
                case "429 date":
                    self.send(429, "{}", Retry_After=self.date_time_string(int(time.time()) + 2))
                case "stall":
                    time.sleep(0.4)
                    self.send(200, reply)
                case "drop":
                    self.close_connection = True
                case "truncate":
                    self.send(200, reply[:40], len(reply))
                    self.close_connection = True
                case "no json":
                    self.send(200, "<html>Bad gateway</html>")
                case "no choices":
                    self.send(200, json.dumps({**whole, "choices": []}))
                case _:
                    self.send(200, reply)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    answering.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield answering
    finally:
        gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


def killing(children: list[ForkProcess], at: int) -> Callable[[int], float]:
    """A delay that kills the first of some processes while the request of that number is under way."""

    def delay(n: int) -> float:
        if n == at and children:
            children[0].kill()
            # Not joined here: of two threads that wait for one child, only the first is told how it ended.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, children[0].pid or 0, os.WEXITED | os.WNOWAIT)
        return 0.0

    return delay
