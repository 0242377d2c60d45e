"""``chatgym plugins``, ``chatgym scenarios`` and ``chatgym pull``: list what is installed, and fetch models."""

from __future__ import annotations

import textwrap
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from chatgym.cli.options import AsJson, print_json
from chatgym.cli.terminal import console, percent, print_error, progress_bar, table
from chatgym.errors import ChatGymError, InvalidValue, Unavailable, unknown

if TYPE_CHECKING:
    from chatgym.evaluation import References
    from chatgym.scenarios import Scenario


def plugins(as_json: AsJson = False) -> None:
    """List the installed agents, scenarios, engines and reward models, with their plugins.

    What can't be loaded is listed with the reason, and the command then exits with 1. The environment variable
    CHATGYM_LOAD_PLUGINS names the plugins to load, separated by commas; if it is empty, only ChatGym's own are loaded.
    """
    from chatgym import plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # failures are listed below
        registry = plugins.load()
    rows, problems = [], list(registry.failures)
    for (kind, name), plugin in registry.sources.items():
        try:
            if plugin != plugins.BUILT_IN:
                getattr(registry, kind)[name]  # imported now, to see whether it can be
            rows.append((kind[:-1].replace("_", " "), name, plugin, registry.plugins[plugin]))
        except Unavailable as error:
            problems.append((plugin, str(error)))
    columns = ("kind", "name", "plugin", "from")
    if as_json:
        failures = [{"plugin": plugin, "reason": reason} for plugin, reason in problems]
        print_json({"entries": [dict(zip(columns, row, strict=True)) for row in rows], "failures": failures})
    else:
        out = console()
        out.print(table(columns, rows))
        if problems:
            out.print()
            out.print(table(("plugin with a problem", "reason"), problems))
    if problems:
        raise typer.Exit(1)


def scenarios(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Scenario to show in detail.")] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure what random, each constant act and the expert reach, and store it."),
    ] = False,
    train_nlu: Annotated[
        bool, typer.Option("--train-nlu", help="Train the NLU of its sentences, and store it.")
    ] = False,
    train_reward: Annotated[
        bool, typer.Option("--train-reward", help="Train its default reward model, and store it.")
    ] = False,
    fill_banks: Annotated[
        bool, typer.Option("--fill-banks", help="Make the default model's wordings of its partner, and store them.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile its dynamics ahead of their first use; about 20 s each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the scenarios, or show one in detail.

    With a NAME it shows acts, outcomes and reward terms, and what the references of the score reach: the best agent
    that doesn't listen (0) and the expert (100). NAME-v1 is version 1 of a scenario.
    The options that train or measure write into the scenario's folder; without a NAME they do so for every scenario.

    \b
    Examples:
      chatgym scenarios
      chatgym scenarios customer_service
    """
    from chatgym import plugins
    from chatgym.scenarios import find_scenario

    found = plugins.load().scenarios
    if name is not None:
        find_scenario(name)
    if name is not None and name not in found and (measure or train_nlu or train_reward or fill_banks or compile_):
        raise InvalidValue(f"{name} is an earlier version: files are written for the newest one only; leave out -v")
    if measure or train_nlu or train_reward or fill_banks or compile_:
        made: dict[str, dict[str, Any]] = {}
        for one in found.usable() if name is None else (name,):
            made[one] = {}
            if compile_:
                made[one]["seconds"] = _compile(one, as_json)
            if train_nlu:
                made[one]["nlu"] = _train_nlu(found[one], as_json)
            if train_reward:
                made[one]["reward"] = _train_reward(found[one], as_json)
            if fill_banks:
                made[one]["banks"] = _fill_banks(found[one], as_json)
            if measure:
                made[one]["references"] = _measure(one, as_json)
        if as_json:
            print_json(made)
        return
    if name is not None:
        scenario = find_scenario(name)
        _print_scenario(name, scenario, found.sources.get(name) or found.sources[scenario.name], as_json)
        return
    rows: list[tuple[Any, ...]] = []
    for one, source in found.sources.items():
        try:
            rows.append((one, found[one].version, found[one].description, source))
        except ChatGymError as error:
            rows.append((one, None, str(error), source))
    if as_json:
        print_json([dict(zip(("name", "version", "description", "plugin"), row, strict=True)) for row in rows])
        return
    out = console()
    out.print(
        table(("scenario", "version", "description", "plugin"), ((str(cell or "") for cell in row) for row in rows))
    )
    out.print("\n`chatgym scenarios NAME` shows one in detail")


def _measure(name: str, as_json: bool) -> dict[str, Any]:
    """Measure and store the references of a scenario."""
    from chatgym.envs.task import Task
    from chatgym.evaluation import measure
    from chatgym.evaluation.references import store

    task = Task(name)
    found = measure(task)
    path = store(found, task)
    if not as_json:
        out = console()
        out.print(_reference_table(found))
        out.print(f"\n{found.conversations:,} conversations each; stored in {path}")
    return {"stored": path, "measured": found}


def _compile(name: str, as_json: bool) -> float:
    """Compile the dynamics of a scenario into numba's cache, by a few steps of both environments; returns seconds."""
    from chatgym.envs.chat_env import ChatEnv
    from chatgym.envs.vector_env import ChatVectorEnv

    start = time.monotonic()
    for observation in ("embedding", "discrete"):
        env = ChatEnv(scenario=name, observation=observation, llm="template")
        env.reset(seed=0)
        env.step(0)
        envs = ChatVectorEnv(2, scenario=name, observation=observation, llm="template")
        envs.reset(seed=0)
        envs.step([0, 0], active=np.array([True, False]))
        envs.step(envs.expert_acts())
    seconds = time.monotonic() - start
    if not as_json:
        console().print(f"Compiled {name} in {seconds:.1f} s")
    return round(seconds, 1)


def _train_nlu(scenario: Scenario, as_json: bool) -> dict[str, Any]:
    """Train and store the NLU of a scenario."""
    from chatgym.words import nlu

    heads = nlu.train(scenario)
    path = nlu.save(scenario, heads)
    labels = {name: len(head.labels) for name, head in heads.items()}
    if not as_json:
        sizes = ", ".join(f"{name} ({count})" for name, count in labels.items())
        console().print(f"Trained the heads {sizes}; stored in {path}")
    return {"stored": path, "labels": labels}


def _train_reward(scenario: Scenario, as_json: bool) -> dict[str, Any]:
    """Train and store the default reward model of a scenario."""
    from chatgym.cli.reward import print_report, progress_callback
    from chatgym.evaluation import default_reward

    with progress_callback("reading", "texts") as progress:
        model, report = default_reward.train(scenario, progress)
    path = default_reward.save(scenario, model)
    if not as_json:
        print_report(report)
        console().print(f"\nStored in {path}")
    return {"stored": path, "report": report}


def _fill_banks(scenario: Scenario, as_json: bool) -> dict[str, Any]:
    """Write the banks of wordings that ship with a scenario, and audit them."""
    from chatgym.engines import DEFAULT_MODEL, make_engine
    from chatgym.evaluation.bank_audit import misheard_wordings
    from chatgym.storage.cache import Cache, default_path
    from chatgym.words import shipping
    from chatgym.words.nlg import Speaker

    speaker = Speaker(scenario, make_engine(DEFAULT_MODEL), cache=Cache(default_path(), lasting=False))
    with progress_bar(scenario.name, len(speaker.askable()), "banks") as progress:
        path, found = shipping.write(speaker, lambda there: progress(there, {}))
    wrong = misheard_wordings(scenario, found)
    count = sum(len(bank.accepted) for bank in found.values())
    if not as_json:
        out = console()
        out.print(f"{count:,} wordings in {len(found)} banks, {len(wrong)} of them misheard; stored in {path}")
        if wrong:
            out.print(table(("bank", "wording", "misheard"), wrong))
    return {"stored": path, "wordings": count, "banks": len(found), "misheard": wrong}


def _print_scenario(name: str, scenario: Scenario, source: str, as_json: bool) -> None:
    """Print one scenario in detail."""
    from chatgym.envs.task import Task
    from chatgym.evaluation.references import references

    if as_json:
        print_json({
            "name": name, "version": scenario.version, "plugin": source, "description": scenario.description,
            "agent_acts": scenario.agent_acts, "partner_acts": scenario.user_acts,
            "outcomes": [outcome for outcome in scenario.outcomes if outcome], "success": scenario.success,
            "reward_terms": scenario.reward_terms, "outcome_values": scenario.outcome_values,
            "earlier_versions": [one.version for one in scenario.earlier], "max_turns": scenario.max_turns,
            "sha256": scenario.digest,
            "references": references(Task(name)),
        })  # fmt: skip
        return
    out = console()
    earlier = "".join(f"; {scenario.name}-v{one.version} is version {one.version}" for one in scenario.earlier)
    out.print(f"{name}, version {scenario.version}, from plugin {source}{earlier}")
    out.print(scenario.description + "\n")
    acts = f"{len(scenario.agent_acts)} {scenario.agent_role} acts"
    partner = f"{len(scenario.user_acts)} {scenario.partner_role} acts"
    rows = [
        (acts, ", ".join(scenario.agent_acts)),
        (partner, ", ".join(scenario.user_acts)),
        ("outcomes", ", ".join(_worth(outcome, scenario) for outcome in scenario.outcomes if outcome)),
        ("success", scenario.success),
        ("reward terms", ", ".join(f"{term} x {weight:g}" for term, weight in scenario.reward_terms.items())),
        ("most turns", str(scenario.max_turns)),
        ("observations", f"{scenario.n_beliefs:,} discrete, {scenario.embedding_size} numbers in an embedding"),
        ("SHA-256", scenario.digest),
    ]
    for label, text in rows:
        out.print(textwrap.fill(f"{label:<17}{text}", width=100, subsequent_indent=" " * 17), soft_wrap=True)
    out.print()
    out.print(_reference_table(references(Task(name))))


def _worth(outcome: str, scenario: Scenario) -> str:
    """Return an outcome with its value, if it has one."""
    value = scenario.outcome_values.get(outcome)
    return outcome if value is None else f"{outcome} {value:g}"


def _reference_table(found: References) -> object:
    """Return the table of success rates and mean returns of the references."""
    unit = (found.expert_scored - found.ignorant_scored) / 100
    rows = {
        found.zero: (found.ignorant_success, found.ignorant_return, found.ignorant_scored),
        "random": (found.random_success, found.random_return, found.random_scored),
        "expert": (found.expert_success, found.expert_return, found.expert_scored),
    }
    cells = [
        (name, percent(success), f"{mean:.3f}", f"{(scored - found.ignorant_scored) / unit:.1f}")
        for name, (success, mean, scored) in rows.items()
    ]
    return table(("reference", "success rate", "mean return", "score"), cells, (1, 2, 3))


def pull(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Models to fetch.", show_default="all default models")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch models again that are here.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; read the files and compare SHA-256.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch models before they are needed.

    The command checks them and unpacks them into the cache folder: CHATGYM_CACHE, else the user's cache.
    CHATGYM_OFFLINE=1 forbids the network.

    \b
    Examples:
      chatgym pull
      chatgym pull --check all-minilm-l6-v2
    """
    from chatgym.storage import model_store

    names, found, bad = models or list(model_store.MODELS), [], False
    for name in names:
        if name not in model_store.MODELS:
            raise unknown("model", name, model_store.MODELS)
    if check and force:
        raise InvalidValue("--check fetches nothing and --force fetches: choose one")
    for name in names:
        try:
            if check:
                model_store.verify(name, full=True)
            folder = model_store.path(name) if check else model_store.pull(name, force=force)
        except ChatGymError as error:
            print_error(str(error))
            bad = True
            continue
        found.append((name, sum(file.stat().st_size for file in folder.iterdir()), folder))
    checked = ("as unpacked",) if check else ()
    rows = [(name, f"{size / 1e6:,.0f} MB", str(folder), *checked) for name, size, folder in found]
    if as_json:
        print_json([dict(zip(("model", "bytes", "folder"), one, strict=True)) for one in found])
    elif rows:
        console().print(table(("model", "size", "folder", *(("files",) if check else ())), rows, (1,)))
    if bad:
        raise typer.Exit(1)
