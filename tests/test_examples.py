import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_textbook_loop_learns_to_serve_customers():
    command = [sys.executable, str(EXAMPLES / "textbook_qlearning.py"), "--episodes", "3000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    early, late = (float(share) / 100 for share in re.findall(r"conversations: +([0-9.]+)%", done.stdout))
    assert early < 0.05
    assert late > early + 0.1
