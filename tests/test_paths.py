"""Paths that users give: with ``~``, and with characters that mean something in URLs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import chatgym
from chatgym.cli.app import app
from chatgym.engines import make_engine
from chatgym.engines.recorded import RecordedEngine
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.replay import record
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.finetuning import dialogues
from chatgym.rewards import choose
from chatgym.rewards.pairs import read_pairs, write_pairs
from chatgym.scenarios import find_scenario
from chatgym.storage import model_store
from chatgym.storage.paths import given
from chatgym.training import Run, prepare, study_storage
from chatgym.training.study import best_settings


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home, and beside it the working directory, in which no ``~`` may be made."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert [path.name for path in Path().iterdir() if path.name.startswith("~")] == []


def run(*args):
    """Run a command; returns its exit code and what it printed."""
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.output


TUNE = ("tune", "qlearning", "--trials", "1", "--steps", "300", "--conversations", "4", "--param", "learning_rate")
NAMES = ["a?b", "50%25off", "x#y", "two words é 你", "br{a}ce", "q'uo\"te;&x=1", "a?mode=ro"]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_lies_in_its_folder_whatever_its_name(name, tmp_path):
    folder = tmp_path / "studies" / name
    first, again = (run(*TUNE, "--folder", str(folder)) for _ in range(2))
    assert first[0] == again[0] == 0, first[1] + again[1]
    assert [path.name for path in folder.parent.iterdir()] == [name]
    assert (folder / "study.db").read_bytes()[:6] == b"SQLite"
    assert "1 trials" in again[1]


@pytest.mark.parametrize(
    ("args", "made"),
    [
        ((*TUNE, "--folder=~/s"), "s/study.db"),
        ((*TUNE, "--storage=sqlite:///~/kept.db", "--folder", "s"), "kept.db"),
        (("train", "qlearning", "--steps", "300", "--conversations", "4", "--run=~/r"), "r/config.json"),
        (("evaluate", "expert", "--conversations", "2", "--trace=~/t.jsonl"), "t.jsonl"),
        (("evaluate", "expert", "--conversations", "2", "--trace", "~/t.jsonl"), "t.jsonl"),
    ],
)
def test_a_command_replaces_the_home_in_every_path(home, args, made):
    code, printed = run(*args)
    assert code == 0, printed
    assert (home / made).is_file()


def test_run_folders_and_options_that_must_exist_are_found_below_the_home(home):
    assert run("train", "qlearning", "--steps", "300", "--conversations", "4", "--run", str(home / "r"))[0] == 0
    assert run("evaluate", "~/r", "--conversations", "2", "--trace=~/t.jsonl")[0] == 0
    assert run("replay", "~/t.jsonl")[0] == 0
    (home / "ds.json").write_text("[]")
    assert "holds no JSON object" in run("sft", "--run=~/s", "--conversations", "4", "--deepspeed=~/ds.json")[1]


def test_python_functions_replace_the_home(home):
    env = ChatEnv(llm="template")
    record(env, lambda observation, info: 1, "~/t.jsonl", keys=[1])
    assert chatgym.replay(b"~/t.jsonl").conversations == 1
    made = prepare("qlearning", "~/r", total_steps=100)
    made.new_agent().save(Path("~"))
    assert type(made.new_agent()).load(Path("~")).turns == 0
    write_pairs("~/p.jsonl", [])
    dialogue = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    dialogues.write(home / "d.jsonl", [dialogue])
    assert dialogues.read(Path("~/d.jsonl")) == [dialogue]
    assert {path.name for path in home.iterdir()} >= {"t.jsonl", "r", "p.jsonl", "agent.json"}
    assert Run.open("~/r").folder == home / "r"


@pytest.mark.parametrize(
    "use",
    [
        best_settings, read_pairs, RecordedEngine, ChatTokenizer,
        lambda path: choose.make_reward_model(path, find_scenario("social")),
    ],
)  # fmt: skip
def test_a_path_below_the_home_that_is_missing_is_named_as_it_was_looked_for(home, use):
    with pytest.raises(ChatGymError, match=str(home)):
        use(*(("~/none", "qlearning") if use is best_settings else ("~/none",)))


def test_the_cache_of_the_environment_is_below_the_home(home, monkeypatch):
    monkeypatch.setenv("CHATGYM_CACHE", "~/cache")
    assert model_store.cache_root() == home / "cache"


def test_what_only_looks_like_a_home_is_left_as_it_is(monkeypatch):
    assert given("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert given("./~/x") == Path("~/x")
    assert given("a/~/b") == Path("a/~/b")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InvalidValue, match="this user has none; write the whole path"):
        given("~/x")
    code, printed = run("train", "qlearning", "--run=~/x")
    assert code == 2
    assert "write the whole path" in printed.replace("\n", " ")


@pytest.mark.parametrize("name", ["a,b.sqlite", "~/a, b.sqlite", "plain.sqlite", "a?b#c.sqlite", "template,x.sqlite"])
def test_a_record_may_have_any_name(name):
    make_engine(f"record:{name},openai:http://127.0.0.1:9/v1#m,n").close()
    assert make_engine(f"recorded:{name}").identity == "http://127.0.0.1:9/v1#m,n"
    assert given(name).is_file()


def test_a_url_of_a_server_is_used_as_it_is():
    url = "postgresql+psycopg://me:pw@host/a?sslmode=require"
    assert study_storage._engine(url) == (url, {"pool_pre_ping": True})


def test_the_package_can_be_run(home):
    said = subprocess.run([sys.executable, "-m", "chatgym", "scenarios", "--json"], capture_output=True, text=True)
    assert {one["name"] for one in json.loads(said.stdout)} >= {"social"}, said.stderr
    said = subprocess.run([sys.executable, "-m", "chatgym", "--help"], capture_output=True, text=True)
    assert "Usage: chatgym " in said.stdout
