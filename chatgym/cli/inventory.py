"""What there is: ``chatgym plugins``, ``chatgym scenarios`` and ``chatgym pull``."""

from __future__ import annotations

import textwrap
import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from chatgym.cli.terminal import console, print_error, table
from chatgym.errors import ChatGymError, InvalidValue, unknown

if TYPE_CHECKING:
    from chatgym.evaluation import References
    from chatgym.scenarios import Scenario


def plugins() -> None:
    """List agents, scenarios, engines and reward models.

    Each stands with the plugin that it comes from, and a plugin that couldn't be loaded with the reason.
    CHATGYM_LOAD_PLUGINS names the plugins to load, separated by commas; empty, it leaves what comes with ChatGym.
    """
    from chatgym import plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of stands below
        registry = plugins.load()
    rows = [
        (kind[:-1].replace("_", " "), name, plugin, registry.plugins[plugin])
        for kind in plugins.KINDS
        for name, plugin in getattr(registry, kind).sources.items()
    ]
    out = console()
    out.print(table(("kind", "name", "plugin", "from"), rows))
    if registry.failures:
        out.print()
        out.print(table(("plugin with a problem", "reason"), registry.failures))


def scenarios(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, to see it in detail.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure what random and expert get there, and store it.")
    ] = False,
    train_nlu: Annotated[
        bool, typer.Option("--train-nlu", help="Train what understands its sentences, and store it.")
    ] = False,
    train_reward: Annotated[
        bool, typer.Option("--train-reward", help="Train its default reward model, and store it.")
    ] = False,
    fill_banks: Annotated[
        bool, typer.Option("--fill-banks", help="Have the default model word its partner, and store it.")
    ] = False,
) -> None:
    """List what there is to talk about.

    With a NAME, show one in detail: acts, outcomes, reward, and what random and expert get there.
    """
    from chatgym import plugins

    found = plugins.load().scenarios
    if name is not None and name not in found:
        raise unknown("scenario", name, found)
    if measure or train_nlu or train_reward or fill_banks:
        for one in found if name is None else (name,):
            if train_nlu:
                _train_nlu(found[one])
            if train_reward:
                _train_reward(found[one])
            if fill_banks:
                _fill_banks(found[one])
            if measure:
                _measure(one)
        return
    if name is not None:
        _print_scenario(name, found[name], found.sources[name])
        return
    rows = []
    for one, source in found.sources.items():
        try:
            rows.append((one, str(found[one].version), found[one].description, source))
        except ChatGymError as error:
            rows.append((one, "", str(error), source))
    out = console()
    out.print(table(("scenario", "version", "what it is about", "plugin"), rows))
    out.print("\n`chatgym scenarios NAME` shows one in detail")


def _measure(name: str) -> None:
    from chatgym.envs.task import Task
    from chatgym.evaluation import measure
    from chatgym.evaluation.references import store

    task = Task(name)
    found = measure(task)
    path = store(found, task)
    out = console()
    out.print(_reference_table(found))
    out.print(f"\n{found.conversations:,} conversations each; stored in {path}")


def _train_nlu(scenario: Scenario) -> None:
    from chatgym.words import nlu

    heads = nlu.train(scenario)
    path = nlu.save(scenario, heads)
    sizes = ", ".join(f"{name} ({len(head.labels)})" for name, head in heads.items())
    console().print(f"Trained the heads {sizes}; stored in {path}")


def _train_reward(scenario: Scenario) -> None:
    from chatgym.cli.reward import print_report, watched
    from chatgym.evaluation import default_reward

    with watched("reading", "texts") as progress:
        model, report = default_reward.train(scenario, progress)
    path = default_reward.save(scenario, model)
    print_report(report)
    console().print(f"\nStored in {path}")


def _fill_banks(scenario: Scenario) -> None:
    from chatgym import banks
    from chatgym.cli.terminal import progress_bar
    from chatgym.engines import DEFAULT_MODEL, make_engine
    from chatgym.storage.cache import Cache, default_path
    from chatgym.training.bank_audit import misheard_wordings
    from chatgym.words.nlg import Speaker

    speaker = Speaker(scenario, make_engine(DEFAULT_MODEL), cache=Cache(default_path()))
    with progress_bar(scenario.name, len(speaker.askable()), "banks") as progress:
        path, found = banks.write(speaker, None if progress is None else lambda there: progress(there, {}))
    wrong = misheard_wordings(scenario, found)
    count = sum(len(bank.accepted) for bank in found.values())
    out = console()
    out.print(f"{count:,} wordings in {len(found)} banks, {len(wrong)} of them misheard; stored in {path}")
    if wrong:
        out.print(table(("bank", "wording", "misheard"), wrong))


def _print_scenario(name: str, scenario: Scenario, source: str) -> None:
    from chatgym.envs.task import Task
    from chatgym.evaluation.references import references

    out = console()
    out.print(f"{name}, version {scenario.version}, from plugin {source}")
    out.print(scenario.description + "\n")
    acts = f"{len(scenario.agent_acts)} {scenario.agent_role} acts"
    partner = f"{len(scenario.user_acts)} {scenario.partner_role} acts"
    rows = [
        (acts, ", ".join(scenario.agent_acts)),
        (partner, ", ".join(scenario.user_acts)),
        ("outcomes", ", ".join(outcome for outcome in scenario.outcomes if outcome)),
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


def _reference_table(found: References) -> object:
    rows = [
        ("random", f"{found.random_return:.3f}", f"{100 * found.random_success:.1f} %", "0"),
        ("expert", f"{found.expert_return:.3f}", f"{100 * found.expert_success:.1f} %", "100"),
    ]
    return table(("reference", "mean return", "success rate", "score"), rows, (1, 2, 3))


def pull(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Those to fetch; all default models if none.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again if it is here.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; read the files and compare SHA-256.")] = False,
) -> None:
    """Fetch models ahead of time.

    They are checked and unpacked into the cache folder: CHATGYM_CACHE, else the user's. CHATGYM_OFFLINE=1 forbids the
    network.
    """
    from chatgym.storage import model_store

    names, rows, bad = models or list(model_store.MODELS), [], False
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
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append((name, f"{size / 1e6:,.0f} MB", str(folder), *(("as unpacked",) if check else ())))
    if rows:
        console().print(table(("model", "size", "folder", *(("files",) if check else ())), rows, (1,)))
    if bad:
        raise typer.Exit(1)
