"""Textbook Q-learning, in the loop that every introduction to reinforcement learning shows.

The environment is a conversation: a customer has a problem and reveals it step by step, the agent chooses what to do
next (ask for the date, confirm, offer a refund, ...). `LegacyAPI` gives it the interface of Gym in 2016: states and
actions are numbers, `reset()` returns a state, and `step()` returns state, reward, done and info.

    python examples/textbook_qlearning.py --episodes 10000
"""

import argparse

import gymnasium as gym
from chatgym_agents.qlearning import QLearningAgent

import chatgym  # noqa: F401  registers ChatEnv-v0
from chatgym.wrappers import LegacyAPI


def main() -> None:
    """Train, and print the success rates of the first and the last tenth of the episodes."""
    parser = argparse.ArgumentParser(description="Textbook Q-learning in ChatEnv-v0.")
    parser.add_argument("--episodes", type=int, default=10_000, help="conversations to learn from")
    parser.add_argument("--epsilon", type=float, default=0.1, help="share of random actions")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    options = parser.parse_args()

    # llm="template": customers speak in fixed sentences, which nobody reads here.
    env = LegacyAPI(gym.make("ChatEnv-v0", observation="discrete", llm="template"))
    agent = QLearningAgent(
        env.state_space, env.action_space, learning_rate=0.1, discount_factor=0.99, seed=options.seed
    )
    env.reset(seed=options.seed)

    successes = []
    for _ in range(options.episodes):
        state = env.reset()
        done = False
        while not done:
            action = agent.choose_action(state, options.epsilon)
            next_state, reward, done, info = env.step(action)
            agent.learn(state, action, reward, next_state)
            state = next_state
        successes.append(info["outcome"] == "resolved")

    tenth = max(options.episodes // 10, 1)
    early, late = successes[:tenth], successes[-tenth:]
    print(f"resolved in the first {tenth:,} conversations: {sum(early) / tenth:6.1%}")
    print(f"resolved in the last {tenth:,} conversations:  {sum(late) / tenth:6.1%}")
    env.close()


if __name__ == "__main__":
    main()
