"""Conformance: one call in a plugin's own test says in words what is wrong with it, and what to do.

```python
from chatgym.testing import check_agent

def test_my_agent_keeps_to_the_protocol():
    check_agent(MyAgent)
```

Each check raises `NonConforming`, an AssertionError that lists all the problems it found. None of them needs pytest.
"""

from chatgym.testing.agents import check_agent
from chatgym.testing.engines import check_engine
from chatgym.testing.findings import NonConforming
from chatgym.testing.rewards import check_reward_model
from chatgym.testing.scenarios import check_scenario

__all__ = ["NonConforming", "check_agent", "check_engine", "check_reward_model", "check_scenario"]
