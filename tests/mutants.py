"""Plants faults, one line each, and looks whether the tests notice: ``make mutants``.

Each fault is planted in a fresh copy of the tree, in which the tests that should notice are run until one fails. A
fault that none notices is a hole in them; the command names it and exits with 1. Words after the command choose the
faults whose name or file contains one of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parent.parent
SURVIVED, UNFIT = "SURVIVED", "UNFIT"


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in the file, becomes `new`; `tests` should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


RNG, ROOM, VECTOR, CODECS = (
    "chatgym/dynamics/rng.py",
    "chatgym/dynamics/room.py",
    "chatgym/envs/vector_env.py",
    "chatgym/envs/codecs.py",
)
CONTENT, HEARING = "chatgym/dynamics/content.py", "chatgym/dynamics/hearing.py"
CUSTOMER = "chatgym/scenarios/customer_service/customer.py"
CUSTOMER_BELIEF = "chatgym/scenarios/customer_service/belief.py"
STUDENT, PERSON = "chatgym/scenarios/education/student.py", "chatgym/scenarios/social/person.py"
PAYMENT = "chatgym/envs/payment.py"
QLEARNING, DQN, SB3 = "agents/qlearning.py", "agents/masked_dqn.py", "chatgym/integrations/sb3.py"

EQUATIONS = "agents/ppo/equations.py"
POLICY, ROLLOUT, TURNS = "agents/ppo/policy.py", "agents/ppo/rollout.py", "agents/ppo/turns.py"

FAULTS = [
    # Draws
    Fault("the turn is no part of a draw", RNG, "np.uint64(turn) * np.uint64(PURPOSES) + np.uint64(purpose)",
          "np.uint64(purpose)", "rng"),
    Fault("a draw never comes near one", RNG, "_UNIT = 2.0**-53", "_UNIT = 2.0**-54", "rng"),
    Fault("a row's conversations are all the same one", RNG, "return bits(root, episode, PURPOSES - 1)",
          "return bits(root, 0, PURPOSES - 1)", "rng room vector"),
    Fault("a seed that may be seen is a draw", RNG, " ^ bits(key, turn, purpose + 1)) >> _S48", ")", "rng"),
    # What was heard, and why conversations failed
    Fault("a cause is judged by the belief after the end", HEARING, "self.believed[over] = self._before[over]",
          "self.believed[over] = room.belief[over]", "hearing"),
    Fault("what is best for both beliefs leads astray", HEARING, "(heard != room.expert_acts(clear))",
          "(heard == room.expert_acts(clear))", "hearing"),
    Fault("the clear belief isn't told what the agent does", HEARING,
          "note(belief[i], acts[i] % ABOUT if acts[i] >= 0 else acts[i], turns[i])", "note(belief[i], 0, turns[i])",
          "hearing"),
    Fault("a partner that leaves is the agent's fault", HEARING, "(*scenario.leaving, scenario.outcomes[-1])",
          "(scenario.outcomes[-1],)", "hearing"),
    Fault("what is right for both beliefs misleads", CUSTOMER_BELIEF, "right_resolution(clear) != chosen",
          "right_resolution(clear) == chosen", "hearing"),
    Fault("an account forgets that an act is misheard", "chatgym/envs/account.py",
          "garbled = bool(apart & self._facts) or heard != self._heard(right, said, final)",
          "garbled = bool(apart & self._facts)", "hearing"),
    Fault("a replay doesn't compare beliefs", "chatgym/envs/replay.py", "(version > 1 or field not in ACCOUNT)",
          "field not in ACCOUNT", "trace"),
    # The words that were heard
    Fault("an agent reads what was said, not what it heard", "chatgym/envs/conversations.py",
          "meanings[place] = self.scenario.heard_meaning(room.said[row], room.belief[row])", "pass", "perceived"),
    Fault("the words don't say what was heard badly", "chatgym/words/nlg.py", "if part in meaning.unsure:", "if False:",
          "perceived"),
    Fault("the channel garbles what was heard once more", CUSTOMER_BELIEF,
          "        heard = UNCLEAR if draw(key, turn, D_ACT_CONFUSED) < 0.5 else CONFUSED[heard]",
          "        heard = CONFUSED[CONFUSED[heard]]", "customer_service perceived"),
    Fault("a value is read as it was said", "chatgym/scenarios/customer_service/words.py",
          "| {SLOTS[slot]: belief[SLOTS[slot]] for slot in slots}", "", "perceived"),
    # What is compiled
    Fault("the values of globals don't count", CONTENT, "found += [\".\".join((name, *attributes)), value]",
          "found += [\".\".join((name, *attributes))]", "content"),
    Fault("compiled code is kept by name", "chatgym/dynamics/nb.py", "return sig, codegen.magic_tuple(), self._digest",
          "return sig, codegen.magic_tuple()", "content"),
    # The room
    Fault("the last turn comes one too late", ROOM, "last = turns[i] >= max_turns", "last = turns[i] > max_turns",
          "room env"),
    Fault("a truncation is a termination", ROOM, "terminations[i] = 0 < outcome < truncated",
          "terminations[i] = 0 < outcome", "room vector"),
    Fault("a reward term is left out", ROOM, "for term in range(weights.shape[0]):\n                reward",
          "for term in range(weights.shape[0] - 1):\n                reward", "room"),
    Fault("terms are not cleared where a conversation begins", ROOM, "terms[i, term] = 0.0", "pass", "vector"),
    Fault("a new conversation goes on counting turns", ROOM,
          "episodes[i] += 1\n                turns[i] = 0", "episodes[i] += 1", "vector"),
    Fault("a fork has the first row's hidden state", ROOM,
          "getattr(self, name)[[index] * copies]", "getattr(self, name)[[0 if name == 'hidden' else index] * copies]",
          "room"),
    # Copies
    Fault("a snapshot leaves the unfinished turn's tokens out", CODECS, 'self.tokens = decode_rows(state["tokens"])',
          'self.tokens = [[] for _ in decode_rows(state["tokens"])]', "state"),
    Fault("a snapshot's error rate isn't restored", PAYMENT, "if not settings:", "if True:", "state"),
    Fault("a fork has no keys of its own", VECTOR, "made.restore(snapshot if keys is None else",
          "made.restore(snapshot if True else", "state"),
    # Reward functions
    Fault("the belief before a turn is the one after it", PAYMENT, "belief_before=self._before",
          "belief_before=room.belief", "rewards_function"),
    Fault("the function may change the conversation", "chatgym/rewards/function.py",
          "array.flags.writeable = False", "pass", "rewards_function"),
    Fault("a row that is not active takes its act", VECTOR, "acts = conversations.step(actions, active, fresh)",
          "acts = conversations.step(actions, None, fresh)", "boundary"),
    # Partners
    Fault("date and amount are swapped", CUSTOMER, "if slot == DATE and hidden.misremembers & (1 << DATE):",
          "if slot == AMOUNT and hidden.misremembers & (1 << DATE):", "customer_service"),
    Fault("the customer accepts what the policy doesn't grant as readily as a right offer", CUSTOMER,
          "p_accepts, mood = 0.15, -2", "p_accepts, mood = 0.95, -2", "customer_service"),
    Fault("granting too much is no violation", CUSTOMER,
          "hidden.verdict = POLICY_VIOLATION if worth > due else WRONG_RESOLUTION", "hidden.verdict = RESOLVED",
          "customer_service"),
    Fault("an order of somebody else's may be granted", CUSTOMER, "elif belief.reference != hidden.reference:",
          "elif False:", "customer_service"),
    Fault("patience costs nothing", CUSTOMER, "- int(turn > hidden.patience)", "- 0", "customer_service"),
    Fault("the mood's term has the wrong sign", CUSTOMER, "terms[2] = hidden.mood - mood",
          "terms[2] = mood - hidden.mood", "customer_service"),
    Fault("a failure may satisfy", CUSTOMER, "hidden.mood / MOOD_MAX if outcome == RESOLVED else 0.0",
          "hidden.mood / MOOD_MAX", "customer_service"),
    Fault("the error channel is off", CUSTOMER_BELIEF, "wrong = draw(key, turn, D_ERROR + slot) < error_rate",
          "wrong = False", "customer_service"),
    Fault("all slots err together", CUSTOMER_BELIEF, "draw(key, turn, D_ERROR + slot)", "draw(key, turn, D_ERROR)",
          "customer_service"),
    Fault("what was not understood is believed all the same", CUSTOMER_BELIEF, "if heard != UNCLEAR:\n        for",
          "if True:\n        for", "customer_service"),
    Fault("an act of the agent's own changes what it believes", CUSTOMER_BELIEF, "    belief.turn = turn\n",
          "    belief.turn = turn\n    belief.amount = belief.proof\n", "customer_service"),
    Fault("a student that knows a skill slips as often as it guesses", STUDENT,
          "p = (1.0 - hidden.slips[skill] * SLIP_OF[difficulty])", "p = (hidden.slips[skill] * SLIP_OF[difficulty])",
          "education"),
    Fault("a skill needs no basis", STUDENT, "p *= WITHOUT_BASIS", "p *= 1.0", "education"),
    Fault("the gain counts whenever the lesson stops", STUDENT, "terms[0] = gain(hidden) if act == END else 0.0",
          "terms[0] = gain(hidden)", "education"),
    Fault("advice never backfires", PERSON, "if hidden.told & UNDERSTOOD != UNDERSTOOD or not hidden.heard:",
          "if False:", "social"),
    Fault("any advice fits", PERSON, "fits = act - SUGGEST_TALK == hidden.cause", "fits = True", "social"),
    Fault("relief has the wrong sign", PERSON, "terms[1] = (intensity - hidden.intensity) / hidden.at_first",
          "terms[1] = (hidden.intensity - intensity) / hidden.at_first", "social"),
    # Interfaces
    Fault("candidates stand in the same order in every turn", CODECS,
          "draws = rng.uniform(self.room.keys[:, None], self.room.turns[:, None], purposes)",
          "draws = rng.uniform(self.room.keys[:, None], 0, purposes)", "interfaces"),
    Fault("padding is an act", CODECS, "np.where(acts == NO_ACT, UNCLEAR_ACT, acts)",
          "np.where(acts == NO_ACT, 0, acts)", "interfaces"),
    Fault("the end token stands in the text", CODECS, "if token != self.tokenizer.end:", "if True:", "interfaces"),
    Fault("a turn of tokens is one too long", CODECS, "len(tokens) >= MAX_TURN_TOKENS", "len(tokens) > MAX_TURN_TOKENS",
          "interfaces"),
    Fault("the final observation is the next conversation's", VECTOR, "        last = self._conversations.observe()\n",
          "        self._conversations.begin(ended)\n        last = self._conversations.observe()\n", "vector"),
    Fault("a disabled autoreset resets", VECTOR,
          "fresh = ended if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any() else None",
          "fresh = ended if ended.any() else None", "vector"),
    Fault("an int seed is every row's", VECTOR, "seeds = range(first, first + self.num_envs)",
          "seeds = [first] * self.num_envs", "vector"),
    # Q-learning
    Fault("a termination has a value", QLEARNING, "if not terminated[i]:", "if True:", "qlearning"),
    Fault("a truncation has none", QLEARNING, "if not terminated[i]:", "if not ended[i]:", "qlearning"),
    Fault("double Q-learning's tables are swapped", QLEARNING, "1 - which if double else 0", "which", "qlearning"),
    Fault("ε falls too far", QLEARNING, "config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)",
          "config.epsilon_start - done * config.epsilon_start", "qlearning"),
    Fault("the maximum is over acts that make no sense, too", QLEARNING, "if mask[action]:", "if True:", "qlearning"),
    Fault("traces outlive an exploring act", QLEARNING, "trace.shape[1] - 1) if greedy[i] else 0",
          "trace.shape[1] - 1)", "qlearning"),
    Fault("what only begins is learnt from", QLEARNING, "if fresh[i]:", "if False:", "qlearning"),
    # Stable-Baselines3
    Fault("every end is a success", VECTOR, "room.outcomes == self._success", "room.outcomes > 0", "sb3 vector"),
    Fault("no done", SB3, "dones: Bools = terminated | truncated", "dones: Bools = terminated", "sb3"),
    Fault("the terminal observation is the next one", SB3, 'finals = now["final_obs"] if self._same_step else',
          "finals = observations if self._same_step else", "sb3"),
    Fault("the truncation flag is the termination's", SB3, "bool(truncated[row] and not terminated[row])",
          "bool(terminated[row])", "sb3"),
    Fault("the masks are those before the step", SB3, 'self._masks = now.get("action_mask")', "pass", "sb3"),
    Fault("a last step's infos are those of the next conversation", SB3, "self._tell(infos, last, ended)",
          "self._tell(infos, now, ended)", "sb3"),
    Fault("double DQN's networks are swapped", DQN, "choosing = self.q_net(next_obs) if self.double else target_values",
          "choosing = target_values", "dqn"),
    Fault("DQN's maximum ignores the masks", DQN, "choosing_values.masked_fill(~next_masks, -torch.inf)",
          "choosing_values", "dqn"),
    Fault("DQN values what comes after the end", DQN, "following.masked_fill(terminated, 0.0)", "following", "dqn"),
    # Token-level PPO
    Fault("GAE forgets λ", EQUATIONS, "last = delta + discount * decay[i] * last", "last = delta + discount * last",
          "ppo_equations"),
    Fault("from a turn to the next λ is as within it", EQUATIONS, "found[list(ends)] = between",
          "found[list(ends)] = within", "ppo"),
    Fault("values of the state do not know what the partner hides", ROLLOUT, "(room.hidden, room.belief)",
          "(room.belief,)", "ppo"),
    Fault("values of the state never forget", EQUATIONS, "FADING * self.gram", "self.gram", "ppo"),
    Fault("the policy moves while values warm up", POLICY, "(0.0 if self.warming else 1.0)", "1.0", "ppo"),
    Fault("GAE does not bootstrap where a conversation was broken off", EQUATIONS,
          "np.empty(len(rewards)), bootstrap, 0.0", "np.empty(len(rewards)), 0.0, 0.0", "ppo_equations"),
    Fault("a broken-off conversation has no value after it", ROLLOUT,
          "bootstraps[now] = turns.peek(np.flatnonzero(now).tolist())", "bootstraps[now] = 0.0", "ppo"),
    Fault("advantages have the wrong sign", EQUATIONS, "advantages[i], after = last, before[i]",
          "advantages[i], after = -last, before[i]", "ppo_equations"),
    Fault("KL is rewarded", EQUATIONS, "rewards = -coefficient * kl", "rewards = coefficient * kl", "ppo_equations"),
    Fault("a turn's reward comes with the token after its last", EQUATIONS, "rewards[list(ends)] +=",
          "rewards[[min(end + 1, len(kl) - 1) for end in ends]] +=", "ppo_equations"),
    Fault("the ratio is upside down", EQUATIONS, "ratio = (logprobs - before).exp()",
          "ratio = (before - logprobs).exp()", "ppo_equations"),
    Fault("the policy loss isn't clipped", EQUATIONS, "ratio.clamp(1 - clip, 1 + clip) * advantages",
          "ratio * advantages", "ppo_equations"),
    Fault("values are clipped to the wrong side", EQUATIONS, "moved = before + (values", "moved = before - (values",
          "ppo_equations"),
    Fault("entropy is punished", POLICY, "loss = loss - config.entropy", "loss = loss + config.entropy", "ppo"),
    Fault("KL is taken against the policy itself", POLICY, "yield getattr(self._copy, self._copy.base_model_prefix)",
          "yield self._policy.trunk", "ppo"),
    Fault("the reference keeps LoRA's adapters", POLICY, "with self._policy.model.disable_adapter():",
          "with contextlib.nullcontext():", "ppo"),
    Fault("a token is learned at the place after it", POLICY, "np.concatenate(places) - 1",
          "np.concatenate(places)", "ppo"),
    Fault("who shares a beginning sees the others, too", POLICY, "sees = (same | (branch[:, None, :] == 0)) &",
          "sees = (same | True) &", "ppo"),
    Fault("a shared beginning is counted for each", POLICY, "shared + np.arange(len(tail)), number",
          "at + np.arange(len(tail)), number", "ppo"),
    Fault("the agent's tokens are taken to begin one too early", ROLLOUT, "turn.start + np.arange(len(turn.tokens))",
          "turn.start - 1 + np.arange(len(turn.tokens))", "ppo"),
    Fault("the partner's tokens are learned, too", ROLLOUT,
          "places=np.concatenate([turn.start + np.arange(len(turn.tokens)) for turn in taken])",
          "places=taken[0].start + np.arange(sum(len(turn.tokens) for turn in taken))", "ppo"),
    Fault("log-probabilities are of what was never left out", EQUATIONS, "if supports is not None:", "if False:",
          "ppo_equations ppo"),
    Fault("keys and values of another conversation are kept", TURNS, "part.mask = part.mask.gather(1, order)",
          "part.mask = part.mask[:, -longest:]", "ppo"),
    Fault("a group's mean includes the conversation itself", EQUATIONS, "centred * (group / (group - 1))",
          "centred * 1", "ppo_equations ppo"),
]  # fmt: skip


def plant(fault: Fault, folder: Path) -> None:
    """Copy the tree into a folder and plant a fault there.

    Raises:
        LookupError: When its line doesn't stand once in the file.
    """
    for name in ("pyproject.toml", "chatgym", "agents", "tests", "examples", "benchmarks", "docs", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)  # with what numba compiled before: that of the other files still fits
    (folder / "chatgym_agents").symlink_to("agents")  # as the installed package maps it
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise LookupError(f"{fault.old!r} stands {text.count(fault.old)} times in {fault.file}")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def noticed_by(fault: Fault) -> str:
    """Return the test that noticed a fault, `SURVIVED`, or `UNFIT` and why."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            plant(fault, folder)
        except LookupError as error:
            return f"{UNFIT}: {error}"
        files = [f"tests/test_{test}.py" for test in fault.tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *files]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return SURVIVED
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" ")[2].partition(" - ")[0] if failed else f"{UNFIT}: {done.stdout[-500:]}"


def main() -> int:
    """Plant the faults, tell of each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults with one of these in their name or file")
    words = parser.parse_args().words
    chosen = [f for f in FAULTS if not words or any(word in f.name or word in f.file for word in words)]
    console, missed = Console(soft_wrap=True), 0
    for number, fault in enumerate(chosen, 1):
        with console.status(f"{number} of {len(chosen)}: {fault.name}"):
            result = noticed_by(fault)
        missed += result.startswith((SURVIVED, UNFIT))
        console.print(f"{number:3} {fault.file}: {fault.name}\n    {result}", highlight=False, markup=False)
    console.print(f"{len(chosen) - missed} of {len(chosen)} faults were noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
