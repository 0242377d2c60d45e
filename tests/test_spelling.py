"""Tokens aren't words: true bytes, all alternatives, true offsets, and the same scores served as in process."""

import codecs
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_serving import Served
from tiny import llama_like, save_model_for, save_tiny_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chatgym.engines.openai import OpenAIEngine
from chatgym.engines.protocol import continues
from chatgym.engines.spelling import Spelling
from chatgym.engines.transformers import TransformersEngine
from chatgym.serving.limits import Limits
from chatgym.storage import model_store

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
ODD = "I feel 😀🎉 great, naïve é\n  你好"


def bytelevel():
    return AutoTokenizer.from_pretrained(model_store.path("smollm2-135m"))


@pytest.fixture(scope="module", params=["byte-level", "first", "always", "normalizer"])
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    if request.param == "byte-level":
        save_tiny_model(folder)
    else:
        save_model_for(llama_like(request.param, TEMPLATE), folder)
    return TransformersEngine(folder, identity="tiny@1", dtype=torch.float64)


@pytest.fixture(scope="module")
def served(engine):
    made = Served(engine, limits=Limits(rows=4, max_tokens=100))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


@pytest.fixture(scope="module")
def asked(served):
    made = OpenAIEngine(f"{served.root}/v1", "tiny")
    yield made
    made.close()


def unescaped(word):
    """Return a token's bytes from its text in a completion."""
    return codecs.escape_decode(word.removeprefix("bytes:"))[0] if word.startswith("bytes:") else word.encode()


def test_the_bytes_of_tokens_are_those_of_the_text(engine):
    tokens = engine.tokens(ODD)
    spelled = b"".join(engine.spelling[token] for token in tokens)
    assert spelled.decode().removeprefix("<s>").removeprefix(" ") == ODD
    begins = engine.spelling.begins(tokens, ODD)
    assert begins == sorted(begins)
    added = len(spelled) - len(ODD.encode())  # what begins the text
    for i, at in enumerate(begins):
        before = b"".join(engine.spelling[token] for token in tokens[:i])[added:]
        assert ODD[:at] == before.decode("utf-8", "ignore")


BYTES = Spelling(bytelevel())


@given(st.lists(st.integers(0, 49151), max_size=12))
def test_the_text_of_byte_level_tokens_is_what_decoding_gives(tokens):
    assert BYTES.text(tokens) == bytelevel_once().decode(tokens)
    whole = BYTES.text(tokens)
    for i, at in enumerate(BYTES.begins(tokens)):
        assert whole[:at] == BYTES.text(tokens[:i])[:at]


_ONCE = []


def bytelevel_once():
    if not _ONCE:
        _ONCE.append(bytelevel())
    return _ONCE[0]


def test_a_continuation_keeps_its_first_space():
    spelling = Spelling(llama_like())
    ids = llama_like()("and you feel great", add_special_tokens=False)["input_ids"]
    assert "".join(spelling.text([token]) for token in ids) == " and you feel great"


SCORED = [
    ("I feel 😀", "🎉 great"), ("I feel 😀", " fine, and 你"), ("The capital of France is", " Paris."), ("Hel", "lo"),
    ("a  ", " b\n"), ("I", ""),
]  # fmt: skip


def test_a_text_scores_the_same_served_as_in_process(asked, engine):
    prompts, texts = zip(*SCORED, strict=True)
    direct, found = engine.score(prompts, texts), asked.score(prompts, texts)
    assert [len(row) for row in found] == [len(row) for row in direct]
    assert np.concatenate(found) == pytest.approx(np.concatenate(direct))
    assert len(direct[0]) >= 4  # the emoji is several tokens
    assert direct[-1] == []


def test_a_score_is_the_sum_over_the_tokens_of_the_whole_text(engine):
    prompt, text = "The capital of France is", " Paris."
    ids = engine.tokens(prompt + text)
    whole = [one.logprob for one in engine.score_tokens([ids])[0]]
    before = len(engine.tokens(prompt))
    assert engine.tokens(prompt) == ids[:before]
    assert engine.score([prompt], [text])[0] == pytest.approx(whole[before - 1 :])


@pytest.mark.parametrize(
    ("begins", "prompt", "whole", "own"),
    [
        ([0, 2, 4, 4, 4], 4, 5, [2, 3, 4]),  # parts of the character at 4
        ([0, 2, 2, 3], 3, 5, [3]),  # parts of the prompt's last character
        ([0, 2, 6], 3, 7, [1, 2]),  # a token over the border
        ([0, 0, 3, 5], 3, 5, [2]),  # a token that begins the text, and one after it
        ([0, 2], 4, 4, []),
    ],
)
def test_a_continuation_has_the_tokens_that_end_in_it(begins, prompt, whole, own):
    assert continues(begins, prompt, whole) == own


@pytest.mark.parametrize("form", ["text", "texts", "ids"])
def test_a_completion_names_true_tokens_all_alternatives_and_where_they_begin(client, engine, form):
    ids = engine.tokens(ODD)
    prompt = {"text": ODD, "texts": [ODD], "ids": ids}[form]
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=12, seed=1, logprobs=5, echo=True, temperature=1.5
    ).choices[0]
    found, said = answer.logprobs, answer.token_ids
    shown = ODD if form != "ids" else engine.spelling.text(ids)
    assert answer.text == shown + engine.text(said)
    assert [unescaped(word) for word in found.tokens] == [engine.spelling[token] for token in [*ids, *said]]
    assert all(len(one) == 5 for one in found.top_logprobs[1:])
    after = engine.spelling.begins(said)
    assert found.text_offset[len(ids) :] == [min(len(shown) + at, len(answer.text)) for at in after]
    assert found.text_offset[: len(ids)] == engine.spelling.begins(ids, shown)


def test_a_stream_says_the_same_of_its_tokens_as_the_whole(client):
    def ask(**more):
        return client.completions.create(
            model="tiny", prompt="I feel 😀", max_tokens=20, seed=3, logprobs=5, temperature=1.5, stop="~\n~", **more
        )

    whole, pieces = ask().choices[0], [event.choices[0] for event in ask(stream=True)]
    assert "".join(piece.text for piece in pieces) == whole.text
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        assert [one for piece in pieces for one in getattr(piece.logprobs, name)] == getattr(whole.logprobs, name)


def test_the_bytes_of_a_chats_tokens_add_up_to_its_text(client, engine):
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "😀"}], max_tokens=12, seed=seed, logprobs=True,
            top_logprobs=5, temperature=1.5,
        ).choices[0]  # fmt: skip
        content = answer.logprobs.content
        spoken = [one for one in content if one.token not in ("</s>", "<|im_end|>")]
        assert b"".join(bytes(one.bytes) for one in spoken).decode("utf-8", "replace") == answer.message.content
        assert all(len(one.top_logprobs) == 5 for one in content)
        assert all("\\x" in one.token or bytes(one.bytes).decode() == one.token for one in content)
        assert all("�" not in one.token for one in content)


def test_alternatives_of_one_text_are_all_named(engine):
    from chatgym.serving.answers import Answer
    from chatgym.serving.requests import Plan
    from chatgym.serving.scheduler import Ticket

    answer = Answer(engine, "tiny", Plan(False, (), (), 1, (), 2, False, False), Ticket((), lambda: None))
    same = {}
    for token in range(len(engine.tokenizer)):
        same.setdefault(engine.spelling[token], []).append(token)
    twice = next((ids for ids in same.values() if len(ids) > 1), [5, 5])
    named = answer._named([(twice[0], -1.0), (twice[1], -2.0)])
    assert sorted(named.values()) == [-2.0, -1.0]
    assert f"token_id:{twice[1]}" in named


def test_a_stop_string_ends_a_text_that_begins_with_its_space(engine):
    free = engine.generate(["I feel"], max_new_tokens=12, seeds=[2], temperature=1.0)[0]
    stop = free.text[2:4]
    cut = engine.generate(["I feel"], max_new_tokens=12, seeds=[2], temperature=1.0, stop=(stop,))[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert len(cut.tokens) <= len(free.tokens)
    assert np.isfinite(engine.score(["I feel"], [free.text or " x"])[0]).all()


def test_a_word_outside_of_the_byte_alphabet_is_spelled_as_it_is_decoded():
    tokenizer = bytelevel()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["model"]["vocab"]["Ġthe"]
    state["model"]["vocab"]["▁你"] = 260
    state["model"]["merges"] = [one for one in state["model"]["merges"] if "Ġthe" not in "".join(one)]
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert Spelling(odd)[260].decode() == odd.decode([260]) == "▁你"
