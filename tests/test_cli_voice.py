"""``chatgym voice`` from its first training to the adapter, with a model so small that it learns nothing."""

import itertools
import json

import pytest
from safetensors.torch import load_file
from tiny import save_tiny_model
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.engines.adapter import WEIGHTS
from chatgym.finetuning import voice, voice_practice

pytest.importorskip("peft")
ASKED = ["voice", "--scenario", "education", "--rounds", "1", "--lists", "1"]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "tiny", context=512)
    monkeypatch.setattr(voice, "PLAIN_MODEL", str(tmp_path / "tiny"))
    monkeypatch.setitem(voice_practice.SAMPLING, "max_new_tokens", 4)
    monkeypatch.setattr(voice, "lessons", lambda *told, every=voice.lessons: itertools.islice(every(*told), 25))


def test_a_voice_is_made_and_the_command_goes_on_wherever_it_was_interrupted(tmp_path, monkeypatch):
    def made(name, *more):
        where = ["--run", str(tmp_path / name), "--out", str(tmp_path / f"{name}-adapter")]
        return CliRunner().invoke(app, [*ASKED, *where, *more])

    whole = made("whole")
    assert whole.exit_code == 0, whole.output
    assert "Perplexity on held-out lists" in whole.output
    kept = {path.name for path in (tmp_path / "whole").iterdir()}
    assert kept == {"hand", "practice-1.jsonl", "practised-1", "practice-2.jsonl", "practised-2"}
    assert made("whole").exit_code == 2  # there is a run; it is not replaced unasked

    # Interrupted in the second practice, once half of it was said.
    practise, lists = voice_practice.practise, []

    def interrupted(path, scenarios, engine, number, seed, progress):
        def count(done):
            lists.append(path.name)
            if lists.count("practice-2.jsonl") == 5:
                raise KeyboardInterrupt

        practise(path, scenarios, engine, number, seed, count)

    monkeypatch.setattr(voice_practice, "practise", interrupted)
    cut = made("cut")
    assert (cut.exit_code, "--resume" in cut.output) == (130, True)
    assert not (tmp_path / "cut-adapter").exists()
    again = made("cut", "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["adapter"] == str(tmp_path / "cut-adapter")
    assert lists.count("practice-1.jsonl") == lists.count("practice-2.jsonl")  # nothing was said twice
    one, other = (load_file(tmp_path / f"{name}-adapter" / WEIGHTS) for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)  # it was trained
