"""A small OpenAI-compatible server over an engine of this process, with faults on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DROP, GARBAGE, SILENCE, TRUNCATED, NO_COMPLETION = "drop", "garbage", "silence", "truncated", "no completion"
"""Faults beside a status: close the connection, no JSON, no answer, half of it, JSON of something else."""


class LocalServer:
    """Serves an engine on a free port of the loopback until `stop`.

    Attributes:
        faults: What befalls the next requests in turn: None, one of the above, or (status, headers, message).
        requests: (path, body, headers) of every POST, in order of arrival.
    """

    def __init__(self, engine, *, model="tiny", paths=("completions", "chat/completions"), key=None, port=0):
        self.engine, self.model, self.paths, self.key = engine, model, paths, key
        self.faults, self.requests = deque(), []
        self.echoes = self.counts = self.lists = True
        self.wants = ""  # a parameter's name, where another is refused
        self.running = self.most_running = 0
        self.together = None  # a barrier that as many requests have to reach
        self.lock, self.released = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"server_of": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def port(self):
        return self.http.server_address[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def answer(self, path, body):
        """Return the JSON that answers a request."""
        chat = path == "chat/completions"
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        with self.lock:
            (made,) = self.engine.generate(
                [prompt], max_new_tokens=body.get("max_tokens") or body["max_completion_tokens"],
                temperature=body["temperature"], top_p=body.get("top_p", 1.0), seeds=[body.get("seed", 0)],
                logprobs=True, stop=body.get("stop", ()),
            )  # fmt: skip
            echoed = self.echo(prompt) if body.get("echo") and self.echoes else ([], [])
        choice = {"index": 0, "finish_reason": made.finish_reason}
        offsets = [*echoed[0], *(len(prompt) + i for i in range(len(made.tokens)))]
        if chat:
            choice["message"] = {"role": "assistant", "content": made.text}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": "?", "logprob": value} for value in made.logprobs]}
        else:
            choice["text"] = (prompt if echoed[0] else "") + made.text
            if body.get("logprobs") is not None:
                choice["logprobs"] = {"token_logprobs": [*echoed[1], *made.logprobs], "text_offset": offsets}
        answer = {"object": "text_completion", "model": self.model, "choices": [choice]}
        if self.counts:
            words = len(self.engine.tokenizer(prompt)["input_ids"])
            answer["usage"] = {"prompt_tokens": words, "completion_tokens": len(made.tokens)}
        return answer

    def echo(self, text):
        """Return where each token of a text begins, and its log-probability."""
        import torch

        read = self.engine.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([read["input_ids"]])
        with torch.inference_mode():
            scores = self.engine.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return [begin for begin, _ in read["offset_mapping"]], [None, *scores.tolist()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: LocalServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server_of
        if self.path == "/v1/models" and server.lists:
            self.reply(200, {"object": "list", "data": [{"id": server.model}, {"id": "another"}]})
        else:
            self.fail(404, "no such path")

    def do_POST(self):
        server = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v1/")
        with server.lock:
            server.requests.append((path, body, dict(self.headers)))
            fault = server.faults.popleft() if server.faults else None
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            if server.together is not None:
                server.together.wait(60)
            self.respond(server, path, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away
        finally:
            with server.lock:
                server.running -= 1

    def respond(self, server, path, body, fault):
        if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
            self.fail(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif path not in server.paths:
            self.fail(404, "This is a chat model" if path == "completions" else "no such path")
        elif body["model"] != server.model:
            self.fail(404, f"The model {body['model']} does not exist", code="model_not_found")
        elif server.wants and server.wants not in body:
            self.fail(400, f"Unsupported parameter. Use '{server.wants}' instead.")
        elif fault == DROP:
            self.close_connection = True
        elif fault == GARBAGE:
            self.send(200, b"<html>Welcome to nginx!</html>", {})
        elif fault == NO_COMPLETION:
            self.reply(200, {"choices": []})
        elif fault == SILENCE:
            server.released.wait(60)
            self.close_connection = True
        elif fault == TRUNCATED:
            data = json.dumps(server.answer(path, body)).encode()
            self.send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self.close_connection = True
        elif fault is not None:
            status, headers, message = fault
            self.fail(status, message, code=message, headers=headers)
        else:
            self.reply(200, server.answer(path, body))

    def fail(self, status, message, code=None, headers=None):
        self.reply(status, {"error": {"message": message, "code": code}}, headers)

    def reply(self, status, value, headers=None):
        self.send(status, json.dumps(value).encode(), headers or {})

    def send(self, status, data, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
