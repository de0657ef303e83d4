"""A loopback OpenAI-compatible server whose verdicts and faults are scripted."""

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ivgr.judge import CONSISTENCY_SCORES


def fair_verdict(data: dict) -> dict:
    """A verdict that depends on the content alone, spread over all that are allowed."""
    number = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()[0]
    if "answer" in data:
        return {"agrees": number % 2 == 0}
    return {"score": CONSISTENCY_SCORES[number % 4]}


def no_fault(number: int, data: dict) -> None:
    """Every request is served."""


def lossy(share: float) -> Callable[[int, dict], str | None]:
    """Requests fail in `share` of all cases, in each of several ways in turn."""
    kinds = ("500", "disconnect", "garbage", "html", "prose")

    def fault(number: int, data: dict) -> str | None:
        draw = hashlib.sha256(str(number).encode()).digest()
        return kinds[draw[1] % len(kinds)] if draw[0] < 256 * share else None

    return fault


class JudgeServer:
    """Serves until the `with` ends.

    verdict: data of the user's message → the object replied. fault: (number of the request
    from 0, data) → None or one of "500", "429", "404", "silent" (no reply at all), "drip" (a
    byte now and then), "disconnect" (in mid-reply), "garbage", "html", "prose", "cut", or a function of
    the handler and the completion's JSON, which replies itself.
    `requests` holds every request's body, `most` the largest number under way at once.
    """

    def __init__(self, verdict=fair_verdict, fault=no_fault) -> None:
        self.verdict, self.fault = verdict, fault
        self.requests: list[dict] = []
        self.active = self.most = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                owner.serve(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, *_):
                """The client hung up, as the tests want it to."""

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.active += 1
            self.most = max(self.most, self.active)
        try:
            data = json.loads(body["messages"][-1]["content"])
            reply(handler, self.fault(number, data), json.dumps(self.verdict(data)), self.closing)
        finally:
            with self.lock:
                self.active -= 1


def reply(handler: BaseHTTPRequestHandler, fault: str | None, text: str, closing: threading.Event) -> None:
    """The completion `text`, or what `fault` makes of it."""
    if fault == "silent":
        closing.wait(20)
        handler.close_connection = True
        return
    text = f"Sure! My verdict is {text}." if fault == "prose" else text
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if fault == "cut":
        choice["finish_reason"] = "length"
    content = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}).encode()
    if callable(fault):
        fault(handler, content)
        return
    content = {"garbage": b'{"choices": [{"mess', "html": b"<html>hello</html>"}.get(fault, content)
    handler.send_response(int(fault) if fault in ("500", "429", "404") else 200)
    handler.send_header("Content-Type", "text/html" if fault == "html" else "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if fault == "disconnect":
        handler.wfile.write(content[:10])
        handler.close_connection = True
    elif fault == "drip":
        for byte in content:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if closing.wait(0.05):
                return
    else:
        handler.wfile.write(content)
