"""Single requests to an OpenAI-compatible server: its endpoints, the key, and what its errors mean."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from chatgym.engines.dialect import LIMITS, OPTIONAL, Dialect, ServerError, error_within, redacted, refusal, told_in
from chatgym.engines.patience import retry_after
from chatgym.engines.wire import Job, api_key, checked_url
from chatgym.errors import Unavailable, Unfinished
from chatgym.storage import model_store
from chatgym.storage.utf8 import parsed

REFUSALS = ("content_filter", "context_length_exceeded")
"""Error codes that concern one chat: it gets an empty reply, and the others go on."""


class TryAgain(Exception):
    """A request failed temporarily.

    Attributes:
        after: Seconds that the server asks to wait, or None.
        mistaken: Whether the URL looks wrong, rather than the server busy.
        unclear: Whether the server doesn't say if it is worth another attempt.
    """

    def __init__(
        self, message: str, *, after: float | None = None, mistaken: bool = False, unclear: bool = False
    ) -> None:
        super().__init__(message)
        self.after, self.mistaken, self.unclear = after, mistaken, unclear


class Server:
    """A model behind a URL, through the official client library.

    Attributes:
        url: URL of the API.
        model: The model's name on the server.
        endpoint: Endpoint for prompts, ``"completions"`` or ``"chat"``; empty until one of them has answered.
        chatted: Whether a chat was ever answered.
        reached: Whether the server ever answered.
    """

    def __init__(self, url: str, model: str, clock: Callable[[], float]) -> None:
        """See `chatgym.engines.openai.OpenAIEngine`."""
        self.url, self._loopback = checked_url(url)
        self.model, self._clock = model, clock
        self.endpoint = ""
        self.chatted = False
        self.reached = False
        self._dialects = {"completions": Dialect(), "chat": Dialect()}  # of each endpoint
        self._learning = threading.Lock()
        self._client: Any = None
        self._headers: dict[str, Any] = {}
        self._made_for: tuple[int, float] = (0, 0.0)  # process and timeout

    def ask(self, job: Job) -> Any:
        """Send one request, and return its answer, from JSON.

        Raises:
            TryAgain: It failed temporarily.
            Unfinished: The server refuses it.
        """
        endpoint = "chat" if job.chat else "completions" if job.ids else self.endpoint or "completions"
        dialect = self._dialects[endpoint]
        while True:
            body = dialect.speak(job.body(endpoint), job.most)
            try:
                answer = self._post(endpoint, body)
            except ServerError as error:
                missing = error.status in (404, 405) and not self.endpoint and not job.echo and not job.ids
                if job.chat and error.code in REFUSALS:
                    return {
                        "choices": [{"message": {}, "finish_reason": error.code}],
                        "usage": {"prompt_tokens": 0, "completion_tokens": 0},
                    }
                if missing and endpoint == "completions" and self.model in (self._models() or [self.model]):
                    endpoint = "chat"  # most of OpenAI's own models have only this one
                    dialect = self._dialects[endpoint]
                elif learned := dialect.after(error, body, ("logprobs",) if job.ids or job.echo else ()):
                    dialect = learned
                else:
                    self._refused(error)
            else:
                self._keep(endpoint, dialect)
                if job.chat:
                    self.chatted = True
                else:
                    self.endpoint = endpoint
                return answer

    def _keep(self, endpoint: str, dialect: Dialect) -> None:
        """Use a dialect from now on, in which a request was answered; warn of the fields that it leaves out."""
        with self._learning:
            known = self._dialects[endpoint]
            without = {**dialect.without, **known.without}
            self._dialects[endpoint] = Dialect(max(known.limit, dialect.limit, key=LIMITS.index), without)
        for name in without.keys() - known.without.keys():
            warnings.warn(
                f"the server at {self.url} refuses the field {name!r} ({self._clean(without[name])}); it is left out "
                f"from now on: {OPTIONAL[name]}", RuntimeWarning, stacklevel=2,
            )  # fmt: skip

    def _post(self, endpoint: str, body: dict[str, Any]) -> Any:
        """Send a request to an endpoint, and return its answer, from JSON; raises `TryAgain` or `ServerError`."""
        import openai

        if endpoint != "chat" and LIMITS[1] in body:  # which the library doesn't know there
            body = {**body, "extra_body": {**body.get("extra_body", {}), LIMITS[1]: body[LIMITS[1]]}}
            del body[LIMITS[1]]
        resource = self._client.chat.completions if endpoint == "chat" else self._client.completions
        try:
            raw = resource.with_raw_response.create(**body, model=self.model, extra_headers=self._headers).text
        except openai.APITimeoutError:
            raise TryAgain(f"no answer within {self._made_for[1]:g} s") from None
        except openai.APIConnectionError as error:
            raise TryAgain(self._clean(f"it can't be reached ({error.__cause__ or error})")) from None
        except openai.APIStatusError as error:
            self.reached = True
            after = retry_after(error.response.headers.get("retry-after"), self._clock())
            raise refusal(error.status_code, error.response.text, after) from None
        try:
            answer = told_in(raw)
        except ValueError:
            raise TryAgain(self._clean(f"its answer is no JSON: {raw[:60]!r}"), mistaken=True) from None
        self.reached = True
        if within := error_within(answer):
            raise within
        return answer

    def _refused(self, error: ServerError) -> NoReturn:
        """Raise `Unfinished` with the remedy for an error that repeating doesn't change, else `TryAgain`."""
        status, reason = error.status, self._clean(error.reason)
        if error.temporary:
            raise TryAgain(f"it answered {status}: {reason}", after=error.after) from None
        if status == 200:
            raise TryAgain(f"it answered with an error: {reason}", unclear=True) from None
        if status in (401, 403):
            key = "refuses the key in OPENAI_API_KEY" if api_key() else "wants a key, and OPENAI_API_KEY is not set"
            raise Unfinished(
                f"the server at {self.url} {key} ({status}: {reason}); set it to one that may use {self.model!r}"
            ) from None
        if status in (404, 405):
            known = self._models()
            if known and self.model not in known:
                raise Unfinished(
                    f"the server at {self.url} has no model {self.model!r}; it has {', '.join(map(repr, known))}; it "
                    f"says: {reason}"
                ) from None
            raise Unfinished(
                f"there is no such endpoint below {self.url} ({status}); check the URL's path, which most often "
                f"ends in /v1; the server says: {reason}"
            ) from None
        raise Unfinished(f"the server at {self.url} refuses the request ({status}): {reason}") from None

    def _models(self) -> list[str]:
        """Return the names of the server's models; empty if it doesn't list them."""
        import openai

        try:
            answer = parsed(self._client.models.with_raw_response.list(extra_headers=self._headers).text)
            return sorted(str(model["id"]) for model in answer["data"])
        except (openai.APIError, KeyError, TypeError, ValueError):
            return []

    def connect(self, timeout: float) -> None:
        """Open a client, unless one is open; a forked child opens its own, since processes can't share connections.

        Args:
            timeout: Seconds.

        Raises:
            Unavailable: ``CHATGYM_OFFLINE`` forbids it.
        """
        if model_store.offline() and not self._loopback:
            raise Unavailable(
                f"CHATGYM_OFFLINE forbids the server at {self.url}, which is not on this machine; unset it, or answer "
                "from a record: llm='recorded:FILE'"
            )
        if self._client is not None and self._made_for == (os.getpid(), timeout):
            return
        state = random.getstate()  # older releases of the library change it while they are imported
        import openai

        random.setstate(state)
        key = api_key()
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            timeout=timeout,
            max_retries=0,  # the engine repeats requests itself, and counts them
            # A proxy of the environment can't reach servers on this machine.
            http_client=openai.DefaultHttpxClient(trust_env=not self._loopback),
        )
        self._made_for = (os.getpid(), timeout)

    def take_adapter(self, folder: Path) -> None:
        """Have the server load a LoRA adapter under the model's name, in place of the one before.

        Raises:
            TryAgain, Unfinished: See `ask`.
        """
        import httpx
        import openai

        body = {"lora_name": self.model, "lora_path": str(folder.resolve()), "load_inplace": True}
        try:
            self._client.post(
                "/load_lora_adapter", body=body, cast_to=httpx.Response, options={"headers": self._headers}
            )
        except openai.APIConnectionError as error:
            raise TryAgain(self._clean(f"it can't be reached ({error.__cause__ or error})")) from None
        except openai.APIStatusError as error:
            reason = self._clean(refusal(error.status_code, error.response.text).reason)
            raise Unfinished(
                f"the server at {self.url} doesn't take the adapter in {folder} ({error.status_code}): {reason}"
                + "; start it with `chatgym serve --adapters FOLDER`, or with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
                "`vllm serve --enable-lora`, where that folder can be read"
            ) from None

    def close(self) -> None:
        """Close the connections; `connect` opens them again."""
        if self._client is not None and self._made_for[0] == os.getpid():
            self._client.close()
        self._client = None

    def _clean(self, message: str) -> str:
        """Return a server's message on one line, without the key."""
        return redacted(message, api_key())
