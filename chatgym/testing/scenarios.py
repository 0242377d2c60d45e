"""`check_scenario`: check a scenario against its protocol."""

from __future__ import annotations

from types import FunctionType

import numpy as np

from chatgym.scenarios import Scenario, find_scenario
from chatgym.testing.balance import check_balance
from chatgym.testing.bounds import check_bounds
from chatgym.testing.copies import COMPILED
from chatgym.testing.draws import check_draws
from chatgym.testing.dynamics import DYNAMICS
from chatgym.testing.findings import Findings
from chatgym.testing.inversion import check_inversion
from chatgym.testing.leaks import check_leaks
from chatgym.testing.rollouts import Turns, play
from chatgym.testing.words import check_words

MOST_BELIEFS = 20_000


def check_scenario(scenario: str | Scenario) -> None:
    """Check that a scenario conforms to `chatgym.scenarios.Scenario`.

    A hundred thousand turns are taken by random acts, the expert and fixed orders of acts. Checked are: names and
    records; observations, masks and rewards; conversations as functions of their key; beliefs without hidden state;
    words for everything; an expert that is far above random.

    Args:
        scenario: A `Scenario`, or a scenario's name. It is compiled if it wasn't before.

    Raises:
        NonConforming: With all problems found.
    """
    __tracebackhide__ = True
    scenario = find_scenario(scenario)
    findings = Findings(f"the scenario {scenario.name!r}", "chatgym.scenarios.Scenario")
    if _declared(findings, scenario) and check_bounds(findings, scenario):
        turns: Turns | None = None
        with findings.trying("playing the scenario"):
            turns = play(scenario, 2000, 30)
        if turns is not None:
            for what, check in (
                ("looking at what an agent sees", _observed), ("looking at rewards and ends", _ended),
                ("looking at words", check_words),
            ):  # fmt: skip
                with findings.trying(what):
                    check(findings, scenario, turns)
            for what, check_more in (
                *DYNAMICS.items(), ("recording draws", check_draws), ("looking for leaks", check_leaks),
                ("looking for the key", check_inversion), ("looking at the balance", check_balance)
            ):  # fmt: skip
                with findings.trying(what):
                    check_more(findings, scenario)
    findings.conclude()


def _declared(findings: Findings, scenario: Scenario) -> bool:
    """Check the declaration without running the scenario; return whether it can be run."""
    for name in ("agent_acts", "user_acts", "outcomes"):
        names = getattr(scenario, name)
        findings.expect(
            len(names) > 1 and len(set(names)) == len(names) and all(isinstance(n, str) for n in names),
            f"`{name}` are {names}. They are different names, at least two.",
        )
    outcomes = scenario.outcomes
    findings.expect(
        outcomes[:1] == ("",) and outcomes[-1:] == ("truncated",) and scenario.success in outcomes[1:-1],
        f"`outcomes` are {outcomes} and `success` is {scenario.success!r}. The first is '' (it goes on), the last "
        "'truncated', the success one between.",
    )
    findings.expect(
        {*scenario.leaving} <= {*outcomes[1:-1]} - {scenario.success},
        f"`leaving` is {scenario.leaving}. It names outcomes by which the partner leaves: failures other than "
        "'truncated'.",
    )
    for name in ("hidden", "belief", "said"):
        dtype = getattr(scenario, name)
        findings.expect(
            dtype.names is not None and issubclass(dtype.type, np.record) and not dtype.hasobject,
            f"`{name}` is {dtype}. Make it np.dtype((np.record, [...])), of numbers only: it is copied and saved.",
        )
    findings.expect(
        scenario.said.names is not None and "act" in scenario.said.names,
        "`said` has no field 'act'. Every utterance has an act, a number into `user_acts`.",
    )
    interpreted = [name for name in COMPILED if isinstance(getattr(scenario, name), FunctionType)]
    findings.expect(not interpreted, f"`{'`, `'.join(interpreted)}` isn't compiled. Decorate it with numba.njit.")
    findings.expect(
        1 < scenario.n_beliefs <= MOST_BELIEFS,
        f"`n_beliefs` is {scenario.n_beliefs}. A table holds at most {MOST_BELIEFS}: number coarser beliefs.",
    )
    weights = scenario.reward_terms
    findings.expect(
        weights and all(np.isfinite(weight) for weight in weights.values()),
        f"`reward_terms` are {dict(weights)}. Name at least one, with a finite weight.",
    )
    strange = [term for term in weights if term not in scenario.measured]
    findings.expect(
        not strange, f"`measured` lacks the reward terms {', '.join(strange)}. Name all terms that `respond` writes."
    )
    strange = [outcome for outcome in scenario.outcome_values if outcome not in scenario.outcomes[1:-1]]
    findings.expect(
        not strange, f"`outcome_values` has {', '.join(strange)}. Value only outcomes, and not that of truncation."
    )
    findings.expect(
        not scenario.outcome_values or "outcome" in scenario.measured,
        "`outcome_values` are in no reward term. Name a term 'outcome' in `reward_terms`.",
    )
    codes = {part: code for part, code in scenario.agent_codes.items() if code < 0}
    findings.expect(not codes, f"`agent_codes` has codes below 0: {codes}. They are act + ABOUT * (slot + 1).")
    return not findings.problems


def _observed(findings: Findings, scenario: Scenario, turns: Turns) -> None:
    """Check discrete observations, embeddings, masks and the expert's acts."""
    n, going, ended = scenario.n_beliefs, turns.going, turns.terminations
    low, high = int(turns.numbers.min()), int(turns.numbers.max())
    findings.expect(
        low >= 0 and high < n,
        f"`index` gives numbers from {low} to {high}, but `n_beliefs` is {n}. They are 0 to n_beliefs - 1.",
    )
    findings.expect(
        np.array_equal(turns.numbers == 0, ended),
        "`index` isn't 0 exactly where a conversation has terminated. Return 0 there, and nowhere else: a truncated "
        "conversation still has a state with a value.",
    )
    size = np.abs(turns.embeddings)
    findings.expect(
        (size <= 1.0).all(),  # NaN isn't, either
        f"`embed` writes numbers up to {np.nanmax(size):g}{' and NaN' * bool(np.isnan(size).any())}. Scale them into "
        "[-1, 1].",
    )
    vectors = [vector.tobytes() for vector in turns.embeddings[~ended]]
    pairs = set(zip(vectors, turns.numbers[~ended].tolist(), strict=True))
    findings.expect(
        len(pairs) == len(set(vectors)),
        "two beliefs with different numbers have the same embedding. Write all that `index` tells apart into `embed`, "
        "too: a network shouldn't see less than a table.",
    )
    findings.expect(
        turns.masks[going].any(1).all(),
        "`mask` leaves no act at all in a conversation that goes on. Allow at least one.",
    )
    never = [act for act, seen in zip(scenario.agent_acts, turns.masks.any((0, 1)), strict=True) if not seen]
    findings.expect(not never, f"`mask` never allows {', '.join(never)}. Allow it where it makes sense, or drop it.")
    advice = turns.expert[going]
    valid = (advice >= 0) & (advice < len(scenario.agent_acts))
    if findings.expect(
        valid.all(), f"`expert` returns {advice[~valid][:1]}. It returns one of {len(scenario.agent_acts)} agent acts."
    ):
        wrong = np.unique(advice[~np.take_along_axis(turns.masks[going], advice[:, None], 1)[:, 0]])
        findings.expect(
            not len(wrong),
            f"`expert` takes acts that `mask` doesn't allow: {', '.join(scenario.agent_acts[act] for act in wrong)}. "
            "Let them agree.",
        )


def _ended(findings: Findings, scenario: Scenario, turns: Turns) -> None:
    """Check acts, outcomes, reward terms and rewards."""
    acts = np.append(turns.said["act"], turns.opening["act"])
    if findings.expect(
        ((acts >= 0) & (acts < len(scenario.user_acts))).all(),
        f"`said.act` is {acts.min()} to {acts.max()}. It is a number into the {len(scenario.user_acts)} user acts.",
    ):
        never = [name for i, name in enumerate(scenario.user_acts) if not (acts == i).any()]
        findings.expect(not never, f"the partner never says {', '.join(never)}. Let it, or drop the act.")
    findings.expect(
        ((turns.outcomes >= 0) & (turns.outcomes < len(scenario.outcomes))).all(),
        f"`respond` returns outcomes {turns.outcomes.min()} to {turns.outcomes.max()}. It is 0 to "
        f"{len(scenario.outcomes) - 1}.",
    )
    findings.expect(
        np.isfinite(turns.terms).all(), "`respond` leaves reward terms that aren't finite. Fill every one of `terms`."
    )
    total = np.zeros(turns.rewards.shape)
    for weight, term in zip(scenario.reward_terms.values(), np.moveaxis(turns.terms, -1, 0), strict=True):
        total += weight * term
    findings.expect(
        np.array_equal(total, turns.rewards, equal_nan=True),
        "the reward isn't the weighted sum of its terms. Leave it to the room; fill `terms` only.",
    )
    idle = [name for i, name in enumerate(scenario.reward_terms) if not turns.terms[..., i].any()]
    findings.expect(not idle, f"the reward terms {', '.join(idle)} are always 0. Fill them in `respond`, or drop them.")
