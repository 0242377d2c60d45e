"""An engine behind a URL: any OpenAI-compatible server, through the official client library.

Each prompt is one request, and several are sent at once. A request that fails temporarily (429, 5xx, no connection) is
repeated after a growing wait, or after the wait that the server asks for. If a batch is interrupted, its answers so far
are kept, and the same call continues from there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from chatgym.engines.budget import Budget, Limits, Usage, tokens_used
from chatgym.engines.chat import Answered, Message, Reply
from chatgym.engines.dialect import redacted
from chatgym.engines.patience import backoff
from chatgym.engines.protocol import Completion, check_each, check_sampling, continues
from chatgym.engines.server import Server, TryAgain
from chatgym.engines.wire import Job, api_key, completion, echoed, replied, sampled
from chatgym.errors import InvalidValue, Unavailable, Unfinished
from chatgym.storage.utf8 import valid

FEW = 3
"""Attempts when the URL looks wrong: it never answered, or doesn't answer in JSON."""
LONGEST_WAIT = 600.0
"""Seconds; if a server asks to wait longer, the request fails with a message instead of seeming to hang."""
TEMPLATE_TOKENS = 64
"""The most tokens that a server's chat template is assumed to add to a prompt, for the budget."""


@dataclass(frozen=True)
class Settings(Limits):
    """Settings and limits of a server; each can be set as ``CHATGYM_OPENAI_<NAME>`` in the environment.

    Attributes:
        concurrency: Requests at once.
        timeout: Seconds until an unanswered request fails.
        retries: How often a failed request is repeated.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise InvalidValue(
                "a server needs concurrency >= 1, timeout > 0 and retries >= 0, not "
                f"{self.concurrency}, {self.timeout}, {self.retries}"
            )

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the settings from the environment.

        Raises:
            InvalidValue: One is no number, or out of range.
        """
        given: dict[str, Any] = {}
        for field in fields(cls):
            name = f"CHATGYM_OPENAI_{field.name.upper()}"
            if text := os.environ.get(name, "").strip():
                kind = int if "int" in str(field.type) else float
                try:
                    given[field.name] = kind(text)
                except ValueError:
                    raise InvalidValue(f"{name} is {text!r}; set it to a number ({kind.__name__})") from None
        return cls(**given)


def _read(job: Job, answer: Any, read: Callable[[Job, Any], Any]) -> Any:
    """Return `read(job, answer)`; an answer of another form than expected is worth another attempt."""
    try:
        return read(job, answer)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        shown = redacted(json.dumps(answer, ensure_ascii=False), api_key())[:100]
        raise TryAgain(f"its answer is JSON, but no completion: {shown}", mistaken=True) from None


class OpenAIEngine:
    """A model of an OpenAI-compatible server.

    Prompts are sent to ``/completions`` as they are, or, if a server has only ``/chat/completions``, as a user's
    message to that; the first request finds out. Seeds are sent modulo 2**63; a server may ignore them.
    Log-probabilities are the server's (some report those before temperature and top-p), or None if it reports none.
    Token ids are `chatgym.engines.UNKNOWN_TOKEN` unless the server reports ``token_ids``.

    The key is ``OPENAI_API_KEY`` of the environment, if set. It appears in no error message and no identity.

    Attributes:
        url: URL of the API, such as ``http://127.0.0.1:8000/v1``.
        model: The model's name on the server.
        settings: Settings; replace them at any time to raise a limit.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        settings: Settings | None = None,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make an engine; the server is connected to at the first use.

        Args:
            url: URL of the API; without a path, ``/v1`` is added.
            model: The model's name on the server.
            settings: Settings; read from the environment when None.
            sleep: Function that waits some seconds; when None, a wait that ends early if the batch is interrupted.
            clock: Function that returns seconds since the epoch, for ``Retry-After`` with a date.

        Raises:
            InvalidValue: The URL is malformed or holds credentials, or a setting is out of range.
            Unavailable: The client library isn't installed.
        """
        if importlib.util.find_spec("openai") is None:
            raise Unavailable("llm 'openai:...' needs the openai library: pip install 'chatgym[openai]'")
        self._server = Server(valid(url), valid(model), clock)
        self.url, self.model = self._server.url, self._server.model
        if not model:
            raise InvalidValue(f"llm 'openai:{self.url}' names no model; write 'openai:{self.url}#MODEL'")
        self.settings = Settings.from_environment() if settings is None else settings
        self._sleep = sleep
        self._budget = Budget()
        self._random = random.Random()  # for jitter: of its own, so that no global state is read or changed
        self._kept: dict[tuple[Job, int], Any] = {}

    @property
    def identity(self) -> str:
        """URL and model; a server doesn't report a revision."""
        return f"{self.url}#{self.model}"

    @property
    def usage(self) -> Usage:
        """Requests, retries, tokens and cost so far."""
        return self._budget.usage

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue prompts, see `chatgym.engines.Engine.generate`.

        Raises:
            InvalidValue: A number is out of range.
            BudgetSpent: A limit is reached. The answers so far are kept: raise the limit and call again.
            Unfinished: The server refuses, or doesn't answer. The answers so far are kept.
            Unavailable: ``CHATGYM_OFFLINE`` forbids the server.
        """
        check_sampling(prompts, max_new_tokens, temperature, top_p, seeds)
        ends = tuple(map(valid, filter(None, stop)))
        jobs = [
            Job(valid(prompt), max_new_tokens, temperature, top_p, int(seed) % 2**63, logprobs, ends)
            for prompt, seed in zip(prompts, range(len(prompts)) if seeds is None else seeds, strict=True)
        ]
        return self._answers(jobs, completion)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Continue prompts given as token ids by token ids, without converting to text and back.

        Args:
            prompts: B lists of token ids.
            max_new_tokens, temperature, seeds: See `generate`.

        Returns:
            B pairs: token ids, with the end-of-text token, and their log-probabilities as the server reports them.

        Raises:
            Unfinished: The server doesn't report token ids; see also `generate`.
        """
        check_sampling([""] * len(prompts), max_new_tokens, temperature, 1.0, seeds)
        jobs = [
            Job("", max_new_tokens, temperature, seed=int(seed) % 2**63, logprobs=True, ids=tuple(ids))
            for ids, seed in zip(prompts, seeds, strict=True)
        ]
        return self._answers(jobs, sampled)

    def take_adapter(self, folder: Path) -> None:
        """Have the server load a LoRA adapter under the model's name, in place of the one before.

        Raises:
            Unfinished: The server refuses, or can't be reached.
        """
        self._server.connect(self.settings.timeout)
        failed = 0
        while True:
            try:
                return self._server.take_adapter(folder)
            except TryAgain as error:
                failed += 1
                self._wait(error, failed, self.settings, self._sleep or time.sleep)

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Score continuations, see `chatgym.engines.Engine.score`.

        Raises:
            InvalidValue: There aren't as many continuations as prompts, or a prompt is empty.
            Unfinished: The server reports no log-probabilities of a prompt; see also `generate`.
        """
        check_each("continuations", continuations, prompts)
        prompts, continuations = list(map(valid, prompts)), list(map(valid, continuations))
        if not all(prompts):
            raise InvalidValue("a server can't score a text after an empty prompt; give a prompt of at least one token")
        # One new token, which isn't needed: some servers refuse to generate none.
        jobs = [Job(p + c, 1, logprobs=True, echo=True) for p, c in zip(prompts, continuations, strict=True)]
        scored = self._answers(jobs, echoed)
        return [
            [value for at in continues(begins, len(p), len(p + c)) if (value := values[at]) is not None]
            for (begins, values), p, c in zip(scored, prompts, continuations, strict=True)
        ]

    def chat(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        answered: Answered | None = None,
    ) -> list[Reply]:
        """Answer chats by requests to ``/chat/completions``, see `chatgym.engines.chat.chat`.

        Raises:
            InvalidValue, BudgetSpent, Unfinished, Unavailable: See `generate`.
        """
        check_sampling([""] * len(chats), max_new_tokens, temperature, top_p, seeds)
        more = {"tools": list(tools), "tool_choice": "required"} if tools else {}
        asked = [valid(json.dumps({"messages": list(messages), **more}, ensure_ascii=False)) for messages in chats]
        jobs = [
            Job("", max_new_tokens, temperature, top_p, int(seed) % 2**63, chat=text)
            for text, seed in zip(asked, range(len(chats)) if seeds is None else seeds, strict=True)
        ]
        return self._answers(jobs, replied, answered)

    def close(self) -> None:
        """Close the connections; the next use opens them again."""
        self._server.close()

    def _answers(
        self, jobs: list[Job], read: Callable[[Job, Any], Any], answered: Callable[[int, Any], None] | None = None
    ) -> list[Any]:
        """Return `read(job, answer)` for each job; `answered` is called with each result as it comes."""
        seen: Counter[Job] = Counter()
        keys = []
        for job in jobs:  # equal jobs are separate requests: the server may ignore the seed
            keys.append((job, seen[job]))
            seen[job] += 1
        rows = {key: row for row, key in enumerate(keys)}
        waiting = [key for key in keys if key not in self._kept]
        if waiting:
            self._server.connect(self.settings.timeout)
        failures: list[BaseException] = []
        halt = threading.Event()

        def answer(key: tuple[Job, int]) -> None:
            try:
                if not halt.is_set():
                    self._kept[key] = self._patiently(key[0], read, halt)
                    if answered is not None:
                        answered(rows[key], self._kept[key])
            except BaseException as error:
                failures.append(error)
                halt.set()

        if waiting and not (self._server.chatted if waiting[0][0].chat else self._server.endpoint):
            answer(waiting.pop(0))  # alone: it finds out which endpoints and parameters the server supports
        pool = ThreadPoolExecutor(self.settings.concurrency, "chatgym-openai")
        try:
            wait([pool.submit(answer, key) for key in waiting])
        except BaseException:  # Ctrl-C: end the requests under way
            halt.set()
            self.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if failures:
            if isinstance(failures[0], Unfinished):
                failures[0].answered = {row: self._kept[key] for row, key in enumerate(keys) if key in self._kept}
            raise failures[0]
        return [self._kept.pop(key) for key in keys]

    def _patiently(self, job: Job, read: Callable[[Job, Any], Any], halt: threading.Event) -> Any:
        """Send a job until it is answered, and return what `read` makes of the answer."""
        failed, most = 0, (job.most_prompt + TEMPLATE_TOKENS, job.most)
        while True:
            limits, used = self.settings, (0, 0)
            self._budget.reserve(limits, *most, again=failed > 0)
            try:
                answer = self._server.ask(job)
                used = tokens_used(answer, most)
                return _read(job, answer, read)
            except TryAgain as error:
                again = error
            finally:
                self._budget.settle(limits, *most, used)
            failed += 1
            self._wait(again, failed, limits, self._sleep or halt.wait)
            if halt.is_set():
                raise Unfinished("another request of the batch failed")

    def _wait(self, again: TryAgain, failed: int, limits: Settings, sleep: Callable[[float], object]) -> None:
        """Wait for the next attempt, or raise `Unfinished` after the last one."""
        retries = limits.retries
        if again.mistaken or again.unclear or not self._server.reached:
            retries = min(retries, FEW - 1)
        if failed > retries or (again.after or 0.0) > LONGEST_WAIT:
            self._give_up(again, failed)
        jitter = self._random.random()
        sleep(backoff(failed, jitter) if again.after is None else again.after + jitter / 2)

    def _give_up(self, again: TryAgain, failed: int) -> NoReturn:
        """Raise `Unfinished` after a number of failed attempts."""
        times = "once" if failed == 1 else f"{failed} times"
        remedy = "mend what it names, or run it again later" if again.unclear else "run it again later"
        if again.mistaken or not self._server.reached:
            remedy = "start the server, or check the URL"
        if again.after is not None and again.after > LONGEST_WAIT:
            remedy = f"it asks to wait {again.after:.0f} s; run it again then"
        raise Unfinished(f"the server at {self.url} was asked {times}: {again}; {remedy}")
