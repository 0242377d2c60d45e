import random

import numpy as np
import pytest
from test_rewards_other import save_classifier
from tiny import save_tiny_model

from chatgym.engines import make_engine
from chatgym.errors import InvalidValue
from chatgym.scenarios import find_scenario
from chatgym.storage import model_store

torch = pytest.importorskip("torch")

PROMPTS = [
    "Ways to say hello:\n- Hello.\n- Hi there.\n-",
    "The capital of France is",
    "One, two, three, four, five, six,",
]


@pytest.fixture(scope="module")
def engine():
    from chatgym.engines.transformers import TransformersEngine

    made = TransformersEngine(model_store.path("smollm2-135m"), identity="test", dtype=torch.float32)
    yield made
    made.close()


def test_a_rows_text_does_not_depend_on_the_rows_beside_it(engine):
    prompts, seeds = [*PROMPTS, PROMPTS[0]], [5, 6, 7, 8]
    together = engine.generate(prompts, max_new_tokens=8, temperature=0.9, top_p=0.9, seeds=seeds)
    alone = [
        engine.generate([prompt], max_new_tokens=8, temperature=0.9, top_p=0.9, seeds=[seed])[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert together[0].tokens != together[3].tokens  # another seed, another text


def test_the_likeliest_tokens_are_those_of_transformers_own_generation(engine):
    mine = engine.generate(PROMPTS, max_new_tokens=10, temperature=0.0)
    for prompt, completion in zip(PROMPTS, mine, strict=True):
        ids = engine.tokenizer(prompt, return_tensors="pt")["input_ids"]
        theirs = engine.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
        assert list(completion.tokens) == theirs.tolist()[: len(completion.tokens)]


def test_a_tiny_nucleus_leaves_only_the_likeliest_token(engine):
    greedy = engine.generate(PROMPTS, max_new_tokens=5, temperature=0.0)
    nucleus = engine.generate(PROMPTS, max_new_tokens=5, temperature=1.0, top_p=1e-6)
    assert [c.tokens for c in nucleus] == [c.tokens for c in greedy]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_first_tokens_are_drawn_with_the_models_probabilities(engine, temperature, top_p):
    n = 4096
    completions = engine.generate(
        PROMPTS[:1] * n, max_new_tokens=1, temperature=temperature, top_p=top_p, seeds=range(n)
    )
    drawn = [completion.tokens[0] for completion in completions]
    with torch.inference_mode():
        ids = engine.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        probabilities = (engine.model(ids).logits[0, -1] / temperature).double().softmax(-1).numpy()
    order = np.argsort(-probabilities)
    kept = order[: int((probabilities[order].cumsum() < top_p).sum()) + 1]
    assert set(drawn) <= set(kept.tolist())
    expected = probabilities[kept] / probabilities[kept].sum()
    for token, p in list(zip(kept.tolist(), expected.tolist(), strict=True))[:5]:
        assert abs(drawn.count(token) / n - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_logprobs_are_those_that_scoring_gives(engine):
    completion = engine.generate(PROMPTS[1:2], max_new_tokens=6, seeds=[3], logprobs=True)[0]
    assert engine.tokenizer(completion.text, add_special_tokens=False)["input_ids"] == list(completion.tokens)
    (scored,) = engine.score(PROMPTS[1:2], [completion.text])
    np.testing.assert_allclose(completion.logprobs, scored, atol=1e-4)


def test_scores_do_not_depend_on_the_batch(engine):
    continuations = [" Good morning.", " Paris, of course.", " seven"]
    together = engine.score(PROMPTS, continuations)
    for prompt, text, row in zip(PROMPTS, continuations, together, strict=True):
        np.testing.assert_allclose(row, engine.score([prompt], [text])[0], atol=1e-4)


def test_a_stop_string_ends_the_text_before_it(engine):
    completions = engine.generate(
        [PROMPTS[0]] * 4, max_new_tokens=20, temperature=0.7, seeds=range(4), stop=("\n", "zzz")
    )
    assert all("\n" not in c.text for c in completions)
    assert any(c.finish_reason == "stop" for c in completions)
    assert engine.generate(PROMPTS[1:2], max_new_tokens=2)[0].finish_reason == "length"


def test_the_environment_decides_the_dtype(monkeypatch):
    import torch

    from chatgym.engines.transformers import pick_dtype

    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        monkeypatch.setenv("CHATGYM_DTYPE", name)
        assert pick_dtype(torch.device("cpu")) is dtype
    monkeypatch.setenv("CHATGYM_DTYPE", "float16")
    with pytest.raises(InvalidValue, match="CHATGYM_DTYPE 'float16'; known: 'bfloat16', 'float32', 'float64'"):
        pick_dtype(torch.device("cpu"))


def test_no_global_random_state_is_read_or_changed(engine):
    def drawn():
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        texts = engine.generate(PROMPTS[:1], max_new_tokens=4, seeds=[1])
        return texts[0].tokens, torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    first = drawn()
    assert first[1:] == expected
    torch.manual_seed(99)
    assert drawn()[0] == first[0] == engine.generate(PROMPTS[:1], max_new_tokens=4, seeds=[1])[0].tokens


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature >= 0"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 1, "seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"max_new_tokens": 100_000}, "leaves no room"),
    ],
)
def test_values_out_of_range_are_refused(engine, arguments, words):
    with pytest.raises(InvalidValue, match=words):
        engine.generate(PROMPTS[:1], **arguments)


def test_a_folder_of_pickled_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidValue, match="pickled weights are never loaded"):
        make_engine(f"hf:{tmp_path}")


def lost(folder):
    for file in [*folder.glob("token*"), *folder.glob("*.jinja")]:
        file.unlink()


def damaged(folder):
    (folder / "tokenizer.json").write_text("{")


def grown(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lost, "without a tokenizer; copy its tokenizer.json.*tokenizer.save_pretrained"),
        (damaged, "no tokenizer that can be read.*tokenizer.save_pretrained"),
        (grown, "the token '<mine>' with id 49152.*only the ids 0 to 49151.*resize_token_embeddings"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_told_when_the_model_is_opened(change, words, tmp_path):
    from chatgym.finetuning import models
    from chatgym.rewards import make_reward_model

    folder, judge = save_tiny_model(tmp_path / "tiny"), save_classifier(tmp_path / "judge", labels=1)
    change(folder)
    change(judge)
    with pytest.raises(InvalidValue, match=words):
        make_engine(f"hf:{folder}").opened()
    with pytest.raises(InvalidValue, match=words):
        make_reward_model(f"hf:{judge}", find_scenario("social"))
    with pytest.raises(InvalidValue, match=r"tokenizer.save_pretrained|resize_token_embeddings"):
        models.load(folder)


def test_a_model_of_ones_own_words_the_partner_from_its_folder():
    folder = model_store.path("smollm2-135m")
    engine = make_engine(f"hf:{folder}")
    assert engine.identity.startswith("smollm2-135m@")
    assert not engine.loaded  # before it is needed
    assert engine.generate(["Hello"], max_new_tokens=1, seeds=[0])[0].tokens
    engine.close()
    assert not engine.loaded
