"""Draw one conversation of the scripted expert, whole: ``python examples/picture.py docs/conversation.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
from PIL import Image

import chatgym  # noqa: F401  (registers ChatEnv-v0)
from chatgym.envs.picture import draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the PNG file")
    parser.add_argument("--scenario", default="customer_service")
    parser.add_argument("--llm", default="smollm2-135m-partner", help="who words the partner; template: no model")
    parser.add_argument("--seed", type=int, default=49)
    options = parser.parse_args()
    env = gym.make("ChatEnv-v0", scenario=options.scenario, llm=options.llm, render_mode="rgb_array").unwrapped
    env.reset(seed=options.seed)
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(int(env.room.expert_acts()[0]))
        over = terminated or truncated
    Image.fromarray(draw(env.transcript(), env.scenario, env.room.max_turns, height=None, scale=2)).save(options.out)
    env.close()


if __name__ == "__main__":
    main()
