"""What ``info`` holds, the same for `chatgym.envs.chat_env.ChatEnv` and each row of its vector form.

In vector infos each value has a leading axis B, and ``_name``, bool[B], says in which rows it is there; reward terms
are a dict of such arrays. The table is that of ``docs/environment.md``.
"""

from __future__ import annotations

EACH_STEP = ("reward_terms", "agent_act", "user_act", "heard_act", "action_mask", "text", "candidates")
"""Names of what ``info`` has at each reset and step, where the interface has it."""

AT_END = ("outcome", "is_success")
"""Names of what it has after a conversation's last step only, besides."""
