"""Conformance tests for plugins: each check lists everything that is wrong and how to fix it.

```python
from chatgym.testing import check_agent

def test_my_agent_conforms():
    check_agent(MyAgent)
```

Each check raises `NonConforming`, an AssertionError with all problems it found. None of them needs pytest.
"""

from chatgym.testing.agents import check_agent
from chatgym.testing.engines import check_engine
from chatgym.testing.findings import NonConforming
from chatgym.testing.rewards import check_reward_model
from chatgym.testing.scenarios import check_scenario

__all__ = ["NonConforming", "check_agent", "check_engine", "check_reward_model", "check_scenario"]
