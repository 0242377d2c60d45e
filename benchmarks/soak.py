"""Load a server with many clients and check every answer: ``python benchmarks/soak.py --seconds 120``.

Each client sends one request after another, with its own prompts, lengths, temperatures and seeds, one in four as a
stream. Afterwards a model in this process answers the same requests with the same seeds. A different answer counts as
*mixed up* if it belongs to another client's request. Runs in float32 unless ``CHATGYM_DTYPE`` is set: in bfloat16 the
batch changes some draws by rounding.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import openai
from serving import serve

from chatgym.engines import make_engine
from chatgym.storage import model_store

LENGTHS, TEMPERATURES, TOP_PS = (4, 8, 16, 24), (0.0, 0.7, 1.0), (0.9, 1.0)


@dataclass(frozen=True)
class Asked:
    """A request; its `number` is its seed."""

    number: int

    @property
    def prompt(self) -> str:
        return f"{'The weather was fine. ' * (self.number % 6)}Customer {self.number} writes: Hello, I"

    @property
    def sampling(self) -> tuple[int, float, float]:
        """New tokens, temperature and top-p."""
        n = self.number
        return LENGTHS[n % 4], TEMPERATURES[n // 4 % 3], TOP_PS[n // 12 % 2]


def hold(client: openai.OpenAI, model: str, numbers: range, end: float) -> dict[int, str | Exception]:
    """Ask until the time is over; return answers by number."""
    found: dict[int, str | Exception] = {}
    for number in numbers:
        if time.monotonic() > end:
            break
        one = Asked(number)
        most, temperature, top_p = one.sampling
        asked = {"model": model, "prompt": one.prompt, "seed": number, "max_tokens": most, "temperature": temperature}
        try:
            if number % 4 == 3:
                events = client.completions.create(**asked, top_p=top_p, stream=True)
                found[number] = "".join(event.choices[0].text for event in events)
            else:
                found[number] = client.completions.create(**asked, top_p=top_p).choices[0].text
        except openai.OpenAIError as error:
            found[number] = error
    return found


def direct(llm: str, numbers: list[int]) -> dict[int, str]:
    """Answer the same by a model in this process."""
    engine, found = make_engine(llm), {}
    assert engine is not None
    by_sampling = sorted(map(Asked, numbers), key=lambda one: one.sampling)
    for (most, temperature, top_p), group in groupby(by_sampling, key=lambda one: one.sampling):
        same = list(group)
        for begin in range(0, len(same), 64):
            some = same[begin : begin + 64]
            completions = engine.generate(
                [one.prompt for one in some], seeds=[one.number for one in some], max_new_tokens=most,
                temperature=temperature, top_p=top_p,
            )  # fmt: skip
            found |= {one.number: completion.text for one, completion in zip(some, completions, strict=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    if options.llm in model_store.MODELS:
        model_store.path(options.llm)
    os.environ.setdefault("CHATGYM_DTYPE", "float32")
    server, url, model = serve(options.llm)
    try:
        client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "x"), max_retries=0)
        end = time.monotonic() + options.seconds
        with ThreadPoolExecutor(options.clients) as pool:
            parts = [
                pool.submit(hold, client, model, range(i, 10**9, options.clients), end) for i in range(options.clients)
            ]
        answers = {number: answer for part in parts for number, answer in part.result().items()}
    finally:
        server.terminate()
        server.wait()
    lost = [answer for answer in answers.values() if isinstance(answer, Exception)]
    given = {number: answer for number, answer in answers.items() if isinstance(answer, str)}
    expected = direct(options.llm, sorted(given))
    other = [number for number in given if given[number] != expected[number]]
    elsewhere = {text: number for number, text in expected.items()}
    mixed = [number for number in other if elsewhere.get(given[number], number) != number]
    print(f"{options.clients} clients, {options.seconds:.0f} s, {options.llm}: {len(answers):,} requests")
    print(f"lost {len(lost)}, the same text {len(given) - len(other):,}, another {len(other)}, mixed up {len(mixed)}")
    for answer in lost[:3]:
        print(answer)
    for number in other[:5]:
        print(number, Asked(number).sampling, repr(given[number]), repr(expected[number]))


if __name__ == "__main__":
    main()
