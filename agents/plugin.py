"""What comes with ChatGym, for `chatgym.plugins`; nothing is imported before it is used."""

from chatgym.hookspecs import Register, hookimpl


@hookimpl
def register_agents(register: Register) -> None:
    """Register the built-in agents."""
    register("random", "chatgym_agents.scripted:Random")
    register("constant", "chatgym_agents.scripted:Constant")
    register("expert", "chatgym_agents.scripted:Expert")
    register("qlearning", "chatgym_agents.qlearning:QLearning")
    register("dqn", "chatgym_agents.dqn:DQN")
    register("ppo", "chatgym_agents.ppo:PPO")
    register("llm", "chatgym_agents.llm:LLM")


@hookimpl
def register_scenarios(register: Register) -> None:
    """Register the built-in scenarios."""
    register("customer_service", "chatgym.scenarios.customer_service:SCENARIO")
    register("education", "chatgym.scenarios.education:SCENARIO")
    register("social", "chatgym.scenarios.social:SCENARIO")
