"""Measure a language model as the partner, `simulator="llm"`: ``python benchmarks/llm_partner.py --llm LLM``.

The expert holds conversations with it and with the default simulator. Prints a table of the model's replies by how NLU
understood them, and of the outcomes with both; writes the first conversations to a file.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.engines import make_engine
from chatgym.envs.codecs import Spoken
from chatgym.envs.vector_env import ChatVectorEnv

SCENARIOS = ("customer_service", "education", "social")
SHOWN = 2
SEED = 5_000_000


def held(scenario: str, conversations: int, **how: Any) -> tuple[ChatVectorEnv, list[list[str]]]:
    """Hold conversations as the expert; return the environment in the end, and what was said in each."""
    envs = ChatVectorEnv(
        conversations, scenario=scenario, action="text", observation="text", reward_model=None, error_rate=0.0, **how
    )
    envs.reset(seed=SEED)
    room, going = envs.room, np.ones(conversations, bool)
    said = [[text] for text in envs.texts]
    while going.any():
        acts, meanings = room.expert_acts(), []
        for row in range(conversations):
            meanings.append(room.scenario.agent_meaning(int(acts[row]), room.belief[row]))
        words = envs.speaker.say(meanings, room.keys, room.turns.astype(np.int64), role="agent")
        envs.step([Spoken(text, int(act)) for text, act in zip(words, acts, strict=True)], active=going)
        for row in np.flatnonzero(going):
            said[row] += [words[row], envs.texts[row]]
        going &= room.outcomes == 0
    return envs, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--out", type=Path, default=Path("llm_partner.jsonl"), help="where conversations go")
    options = parser.parse_args()
    engine = make_engine(options.llm)
    with options.out.open("w", encoding="utf-8") as out:
        print(
            "| scenario | replies | understood | untrue facts | empty | left by itself | outcomes | of the simulator |"
        )
        print("|---|---:|---:|---:|---:|---:|---|---|")
        for scenario in options.scenario or SCENARIOS:
            envs, said = held(scenario, options.conversations, llm=engine, simulator="llm")
            usual, _ = held(scenario, options.conversations, llm="template")
            counts = envs.llm_simulator.counts
            shares = [f"{counts[name] / max(counts['replies'], 1):.0%}" for name in ("understood", "untrue", "empty")]
            ends = [
                ", ".join(
                    f"{n} {one.room.scenario.outcomes[i]}" for i, n in Counter(one.room.outcomes.tolist()).most_common()
                )
                for one in (envs, usual)
            ]
            print(f"| {scenario} | {counts['replies']} | {' | '.join(shares)} "
                  f"| {counts['stopped'] / options.conversations:.0%} | {' | '.join(ends)} |", flush=True)  # fmt: skip
            for row in said[:SHOWN]:
                out.write(json.dumps({"scenario": scenario, "said": row}) + "\n")


if __name__ == "__main__":
    main()
