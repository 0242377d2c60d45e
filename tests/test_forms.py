"""Conversations and pairs in other projects' forms are taken, or the error names the conversion."""

import json

import pytest

from chatgym.errors import InvalidValue
from chatgym.finetuning import dialogues
from chatgym.rewards.pairs import read_pairs


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


HI, ASKED, BYE = said("Hi"), said("Hi", "Hello!"), said("Hi", "Bye.")
PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
TOLD = {"role": "system", "content": "Be kind."}


def human(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


CONVERSATIONS = {
    "ours": ({"messages": ASKED}, ASKED),
    "extra keys": ({"messages": [ASKED[0] | {"name": "Al"}, ASKED[1] | {"weight": 1}], "id": 3}, ASKED),
    "a bare list": (ASKED, ASKED),
    "parts": ({"messages": [HI[0], {"role": "assistant", "content": PARTS}]}, ASKED),
    "developer": ({"messages": [TOLD | {"role": "developer"}, *ASKED]}, [TOLD, *ASKED]),
    "ShareGPT": ({"id": "x_0", "conversations": human("Hi", "Hello!")}, ASKED),
    "ShareGPT, system": ({"conversations": human("Hi", "Hello!"), "system": "Be kind."}, [TOLD, *ASKED]),
    "ShareGPT, told": ({"conversations": [{"from": "system", "value": "Be kind."}, *human("Hi", "Hello!")]},
                       [TOLD, *ASKED]),
    "conversation": ({"conversation": ASKED}, ASKED),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello!"}, ASKED),
    "prompt and completion, messages": ({"prompt": HI, "completion": ASKED[1:]}, ASKED),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "Hello!"}, ASKED),
    "Alpaca, input": ({"instruction": "Say", "input": "Hi", "output": "Hello!"}, said("Say\n\nHi", "Hello!")),
    "transcript": ({"text": "\n\nHuman: Hi\n\nAssistant: Hello!"}, ASKED),
}  # fmt: skip


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_a_conversation_in_a_usual_form_is_taken(form, tmp_path):
    record, expected = CONVERSATIONS[form]
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    assert dialogues.read(tmp_path / "data.jsonl") == [expected]


def test_a_file_may_be_one_json_list(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": human("Hi", "Hello!")}] * 2, indent=2))
    assert dialogues.read(tmp_path / "data.json") == [ASKED] * 2
    (tmp_path / "pairs.json").write_text(json.dumps([{"prompt": "Hi", "chosen": "Hello!", "rejected": "Bye."}]))
    assert [(one.better, one.group) for one in read_pairs(tmp_path / "pairs.json")] == [(ASKED, "record 1")]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "Once upon a time"}, "'text'; rename or join its columns.*to_json"),
        ({"dialog": ["Hi", "Hello!"]}, "'dialog'; rename or join its columns"),
        ({"messages": [*HI, {"role": "tool", "content": "4"}]}, "'tool'; write what a tool answered as a message of"),
        ({"conversations": [{"from": "observation", "value": "4"}]}, "'observation'; write what a tool answered"),
        ({"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": []}]}, "write calls of tools"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "and pictures as text"),
        ({"messages": [{"speaker": "a", "text": "b"}]}, "a message of messages is"),
        ({"messages": HI}, "no message of the assistant"),
        ("Hi", "an object with messages, not a str"),
    ],
)
def test_a_conversation_in_another_form_names_the_conversion(record, words, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": ASKED}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(InvalidValue, match=f"line 2: .*{words}"):
        dialogues.read(tmp_path / "data.jsonl")


def ultrafeedback(**more):
    return {"prompt": "Hi", "prompt_id": "abc", "messages": ASKED, "chosen": ASKED, "rejected": BYE,
            "score_chosen": 8.5, "score_rejected": 2.0, **more}  # fmt: skip


HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Bye."}
PAIRS = {
    "ours": {"prompt": HI, "chosen": ASKED[1:], "rejected": BYE[1:]},
    "whole conversations": {"chosen": ASKED, "rejected": BYE},
    "ultrafeedback": ultrafeedback(),
    "ultrafeedback, cleaned": ultrafeedback(**{"source": "x", "chosen-rating": 5, "chosen-model": "m"}),
    "ultrafeedback, prompt in other words": ultrafeedback(prompt=" Hi\n"),
    "prompt twice": {"prompt": HI, "chosen": ASKED, "rejected": BYE},
    "strings": {"prompt": "Hi", "chosen": "Hello!", "rejected": "Bye."},
    "parts": {"prompt": HI, "chosen": [{"role": "assistant", "content": PARTS}], "rejected": BYE[1:]},
    "HH": HH,
    "HH, prompt apart": {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello!", "rejected": "Bye."},
    "ShareGPT": {"conversations": human("Hi"), "chosen": human("", "Hello!")[1], "rejected": human("", "Bye.")[1]},
    "Orca": {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "Bye."},
    "Alpaca": {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "Bye."},
    "nulls": {
        **dict.fromkeys(("messages", "system", "input", "kind", "group", "prompt_id")),
        "prompt": HI,
        "chosen": ASKED,
        "rejected": BYE,
    },
    "columns of our names": {"prompt": "Hi", "chosen": "Hello!", "rejected": "Bye.", "kind": 3, "group": [1]},
    "message keys": {"prompt": HI, "chosen": [ASKED[1] | {"score": 3}], "rejected": BYE[1:], "margin": 1.5},
}


@pytest.mark.parametrize("form", PAIRS)
def test_a_pair_in_a_usual_form_is_taken(form, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIRS[form]) + "\n")
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert (pair.better, pair.worse) == (ASKED, BYE)
    assert pair.group == ("abc" if form.startswith("ultra") else "line 1")  # pairs of one prompt stay together


def test_an_empty_last_answer_of_a_transcript_is_an_answer(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(HH | {"rejected": "\n\nHuman: Hi\n\nAssistant:"}) + "\n")
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert (pair.better, pair.worse) == (ASKED, said("Hi", ""))


def test_strings_without_a_prompt_are_the_assistants(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"chosen": "The sky is blue.", "rejected": "It is green."}))
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert pair.better == [{"role": "assistant", "content": "The sky is blue."}]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "Hi", "completion": "Hello!", "label": True}, "lacks 'chosen'.*rename the columns of 'prompt'"),
        ({"instruction": "Hi", "completions": [{"response": "Hello!", "score": 3}]}, "of several rated answers choose"),
        ({"prompt": "Hi", "chosen": 1, "rejected": "x"}, "chosen is a list of messages, not a int"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}, "write what a tool answered"),
        ([1], "a pair is an object with prompt, chosen, rejected"),
    ],
)
def test_a_pair_in_another_form_names_the_conversion(record, words, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InvalidValue, match=f"line 1: .*{words}"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_another_kind_of_file_names_what_writes_lines(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1\xff\xfe")
    for read in (dialogues.read, read_pairs):
        with pytest.raises(InvalidValue, match="to_json"):
            read(tmp_path / "data.parquet")
        with pytest.raises(InvalidValue, match="to_json"):
            read(tmp_path)  # a folder


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 200_000 + "]" * 200_000)
    for read in (dialogues.read, read_pairs):
        with pytest.raises(InvalidValue, match="line 1 is not JSON: it is nested too deeply"):
            read(tmp_path / "deep.jsonl")
