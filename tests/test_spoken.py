"""What a model writes isn't what it says: thoughts, parts, signals and grades, of agent, partner and judge."""

import json
import time
import warnings

import gymnasium as gym
import pytest
from chatgym_agents.llm import LLM
from openai_server import LocalServer
from tiny import save_tiny_model, tiny_engine
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.engines import Completion, make_engine
from chatgym.engines.chat import chat
from chatgym.engines.spoken import opened_thought, text_of, without_thoughts
from chatgym.envs import llm_simulator
from chatgym.envs.codecs import Spoken
from chatgym.envs.llm_simulator import _words
from chatgym.envs.task import Task
from chatgym.evaluation import evaluate
from chatgym.rewards.judge import ATTEMPTS, MOST_TOKENS, THOUGHTS, JudgeRewardModel, _grade, _letter
from chatgym.scenarios import find_scenario

SCENARIO = find_scenario("customer_service")
ASK = [{"role": "user", "content": "Hello"}]
GOOD = [{"role": "user", "content": "I am sad."}, {"role": "assistant", "content": "What happened?"}]
CUT = {"finish_reason": "length"}
NUMBER = "Which order or account number is it?"


class Writer(LocalServer):
    """Answers each request by a function of its body: a text, a message, or (message, more of the choice)."""

    def __init__(self, written):
        super().__init__(None)
        self.written = written

    def answer(self, path, body):
        written = self.written(body)
        message, more = written if isinstance(written, tuple) else (written, {})
        message = message if isinstance(message, dict) else {"content": message}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}, **more}
        return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}

    @property
    def llm(self):
        return f"openai:{self.url}#tiny"


@pytest.mark.parametrize(
    ("written", "said", "cut"),
    [
        ("Hello.", "Hello.", False),
        ("<think>So.</think>\n\nHello.", "Hello.", False),
        ("<think>\n\n</think>\n\n8", "8", False),
        ("So, maybe a refund.</think>Hello.", "Hello.", False),  # begun in the prompt
        ("<think>Maybe I should offer a refund", "", True),
        ("Hello. <think>Hm", "Hello.", True),
        ("<think>a <think>b</think> c</think> Hello.", "Hello.", False),
        ("<think>one</think>Hello.<think>two</think> How are you?", "Hello. How are you?", False),
        ("<Thinking>So.</Thinking> Hello.", "Hello.", False),
        ("<reasoning effort='low'>So.</reasoning>Hello.", "Hello.", False),
        ("<seed:think>So.</seed:think>Hello.", "Hello.", False),
        ("<scratchpad>So.\n</ scratchpad >\nHello.", "Hello.", False),
        ("<think/>Hello.", "Hello.", False),
        ("[THINK]So.[/THINK]Hello.", "Hello.", False),
        ("◁think▷So.◁/think▷Hello.", "Hello.", False),
        ("<|START_THINKING|>So.<|END_THINKING|><|START_RESPONSE|>Hello.<|END_RESPONSE|>", "Hello.", False),
        (
            "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Hello.",
            "Hello.",
            False,
        ),
        ("<|channel|>analysis<|message|>So we", "", True),
        ("analysisWe greet.assistantfinalHello.", "Hello.", False),
        ("<think>So.</think><answer>8</answer>", "8", False),
        ("<antThinking>So.</antThinking><chain_of_thought>So.</chain_of_thought>Hello.", "Hello.", False),
        ("<|thinking|>So.<|/thinking|>Hello.", "Hello.", False),
        ("<|begin_of_thought|>So.<|end_of_thought|><|begin_of_solution|>Hello.<|end_of_solution|>", "Hello.", False),
        ("<|im_start|>think\nSo.<|im_end|>\n<|im_start|>answer\nHello.<|im_end|>", "Hello.", False),
        ("<unused94>thought\nSo.<unused95>Hello.<end_of_turn>", "Hello.", False),
        ("<|channel>thought\nSo.<channel|>Hello.<turn|>", "Hello.", False),
        ("<|channel|>commentary to=functions.x <|constrain|>json<|message|>{}<|call|>", "", True),
        ("<|im_start|>assistant\nHello.<|im_end|>", "Hello.", False),
        ("Hello.<｜end▁of▁sentence｜>", "Hello.", False),
        ("Hello.<|im_end|>\n<|im_start|>user\nHi", "Hello.", False),
        ("<think>So.</think><answer>Hello.</answer> You?", "Hello. You?", False),
        ("Hello.<|im_end|>", "Hello.", False),
        ("I think that 3 < 4 > 2 is odd.", "I think that 3 < 4 > 2 is odd.", False),
        ("My analysis: <br> thinking helps.", "My analysis: <br> thinking helps.", False),
    ],
)
def test_thoughts_are_not_said(written, said, cut):
    assert without_thoughts(written) == (said, cut)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you."}], "Hello, you."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "So."}]}, {"type": "text", "text": "8"}], "8"),
        ([{"type": "reasoning", "text": "So."}, {"type": "output_text", "text": "8"}, "!"], "8!"),
        ({"type": "text", "text": {"value": "8"}}, "8"),
        ([{"thought": True, "text": "So."}, {"type": None, "text": "8"}], "8"),
        ([{"type": "message", "content": [{"type": "output_text", "text": "8"}]}], "8"),
        (None, ""), ([], ""), (3, ""),
    ],
)  # fmt: skip
def test_parts_are_joined(content, text):
    assert text_of(content) == text


@pytest.mark.parametrize(
    "written",
    [
        {"content": None, "reasoning_content": "So."},
        {"content": "", "reasoning": "So."},
        {"content": "", "thinking": "So."},
        "<think>So.",
        {"content": [{"type": "text", "text": "<think>So."}]},
    ],
)
@pytest.mark.parametrize("record", [False, True])
def test_a_cut_thought_is_an_empty_reply_that_was_cut_and_can_be_given_room(written, record, tmp_path):
    def write(body):
        return "<think>So.</think> Hello." if body["max_tokens"] > 50 else (written, CUT)

    with Writer(write) as server:
        engine = make_engine(f"record:{tmp_path}/calls.sqlite,{server.llm}" if record else server.llm)
        (cut,) = chat(engine, [ASK], max_new_tokens=8)
        (whole,) = chat(engine, [ASK], max_new_tokens=8, thoughts=50)
        assert len(server.requests) == (2 if record else 3)
    assert (cut.text, cut.finish_reason) == ("", "length")
    assert (whole.text, whole.finish_reason) == ("Hello.", "stop")


def test_a_server_without_completions_says_words_without_thoughts():
    with Writer(lambda body: [{"type": "text", "text": "<think>So.</think>Hello."}]) as server:
        server.paths = ("chat/completions",)
        (made,) = make_engine(server.llm).generate(["Hi"], max_new_tokens=8)
    assert made.text == "Hello."


class Template:
    """An engine of this process whose chat template begins a thought."""

    identity, tokenizer = "template", None

    def __init__(self, written):
        self.written, self.prompts = written, []

    def generate(self, prompts, **sampling):
        self.prompts += prompts
        return [Completion(self.written, (1,), None, "length") for _ in prompts]

    def score(self, prompts, continuations):
        raise NotImplementedError

    def close(self):
        pass


def test_a_thought_that_the_prompt_begins_is_cut_too(tmp_path):
    engine = tiny_engine(save_tiny_model(tmp_path))
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A: <think>\n"
    (reply,) = chat(engine, [ASK], max_new_tokens=4)
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert opened_thought("user: <think>\nA:") == opened_thought("<think>\n\n</think>\n\n") == ""


def test_the_developer_is_the_system_where_the_template_does_not_know_it():
    engine = Template("Hello.")
    chat(engine, [[{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *ASK]], max_new_tokens=4)
    assert engine.prompts == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ]


@pytest.mark.parametrize(
    "written",
    [
        f"<think>The customer wants a refund. ###STOP###</think>{NUMBER}",
        [{"type": "text", "text": NUMBER[:9]}, {"type": "text", "text": NUMBER[9:]}],
        {"content": NUMBER, "reasoning_content": "Maybe I should offer a refund."},
    ],
)
def test_the_agent_says_what_is_left(written):
    with Writer(lambda body: written) as server:
        agent = LLM(SCENARIO, LLM.Config(llm=server.llm))
        evaluate(agent, Task("customer_service", {"max_turns": 2}), conversations=2, references=False)
        heard = [m["content"] for _, body, _ in server.requests for m in body["messages"] if m["role"] == "assistant"]
    assert set(heard) == {NUMBER}
    assert agent.counts == {"replies": 4}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (("<think>Maybe I should offer a refund", CUT), "4 cut off after the most tokens"),
        ("<think>So.</think>", "4 without words outside of thoughts"),
    ],
)
def test_an_evaluation_without_any_words_is_no_success(written, reason, tmp_path):
    line = ["evaluate", "llm", "--conversations", "4", "--max-turns", "1", "--out", str(tmp_path / "out"), "--llm"]
    with Writer(lambda body: written) as server:
        result = CliRunner().invoke(app, [*line, server.llm])
    assert result.exit_code == 1
    assert "none of the 4 replies of" in result.output
    assert reason in result.output
    counts = json.loads((tmp_path / "out" / "result.json").read_text())["agent"]["counts"]
    assert counts["empty"] == counts["replies"] == 4


def partner(written):
    """Return observation and info of the first turn with this partner, the environment, and whether it left."""
    with Writer(written if callable(written) else lambda body: written) as server:
        more = {"action": "text", "observation": "text", "simulator": "llm", "llm": server.llm, "reward_model": None}
        env = gym.make("ChatEnv-v0", **more).unwrapped
        env.reset(seed=1)
        observation, _, terminated, *_ = env.step(Spoken("", 1))
    return observation, terminated, env.llm_simulator.counts


@pytest.mark.parametrize(
    ("written", "seen", "left"),
    [
        ("<think>My hidden goal is a refund. ###STOP###</think>My parcel is late.", "My parcel is late.", False),
        ("I know my goal. ###STOP### or not?</think>My parcel is late.", "My parcel is late.", False),
        ("My parcel is late. ### STOP ###", "My parcel is late.", True),
        ("My parcel is late. **###Stop###**", "My parcel is late.", True),
        ("My parcel is late.\n### STOP", "My parcel is late.", True),
        ("My parcel is late. STOP###", "My parcel is late.", True),
        ("My parcel is late. [STOP]", "My parcel is late.", True),
        ("My parcel is late.\n\n**STOP**", "My parcel is late.", True),
        ("My parcel is late. \\#\\#\\#_STOP_\\#\\#\\#", "My parcel is late.", True),
        ("STOP asking me that!", "STOP asking me that!", False),
        (("My parcel is late. ###ST", CUT), "My parcel is late.", False),
        ("Please stop asking me that!", "Please stop asking me that!", False),
        ([{"type": "text", "text": "My parcel "}, {"type": "text", "text": "is late."}], "My parcel is late.", False),
    ],
)
def test_the_partner_says_no_thoughts_and_leaves_by_a_signal_outside_of_them(written, seen, left):
    observation, terminated, counts = partner(written)
    assert (observation, terminated) == (seen, left)
    assert counts["stopped"] == 2 * left


@pytest.mark.parametrize("mark", ["*", "_", "#", "\\#", "\n", "#" * 100 + " " * 9000, "##STOP!"])
def test_a_long_reply_of_marks_is_read_at_once(mark):
    reply = mark * (10_000 // len(mark)) + "x"
    start = time.perf_counter()
    _words(reply)
    assert time.perf_counter() - start < 0.3


def test_a_partner_that_thinks_gets_room_and_one_that_says_nothing_is_told():
    seen, *_ = partner(
        lambda body: ("<think>So.", CUT) if body["max_tokens"] < 100 else "<think>So.</think>It is late."
    )
    assert seen == "It is late."
    with Writer(lambda body: ("<think>So.", CUT)) as server:
        more = {"action": "text", "observation": "text", "simulator": "llm", "llm": server.llm, "reward_model": None}
        envs = gym.make_vec("ChatEnv-v0", num_envs=8, **more)
        with pytest.warns(RuntimeWarning, match="none of the 8 replies"):
            envs.reset(seed=1)


@pytest.mark.parametrize(
    "text",
    [
        "8", "8.", "8/10", "8 / 10", "8.0", "**8**", "Grade: 8", "Grade 8", "**Grade:** 8/10", "Score: 8 out of 10",
        "`8`", '{"grade": 8}', "Rating (1-10): 8", "On a scale from 1 to 10, I'd give it an 8.", "Score - 8", "# 8",
        "I would rate this 8/10 because it is polite.", "Politeness: 9. Final grade: 8", "\\boxed{8}", "Grade:\n8",
        "1. polite\n2. quick\nGrade: 8", "8\n\nThe assistant asked 1 question in 3 turns.", "My grade is **8**.",
        "1. Polite: 9/10\n2. Quick: 6/10\nOverall: 8/10",
    ],
)  # fmt: skip
def test_a_grade_in_other_words_is_a_grade(text):
    assert _grade(text) == 8


@pytest.mark.parametrize(
    "text",
    ["9 or 3", "11", "0", "-8", "7-8", "between 7 and 8", "80/100", "4/5", "80%", "GPT-4", "8th", "", "Grade: 8 or 9"],
)
def test_what_is_no_grade_from_1_to_10_or_more_than_one_is_none(text):
    assert _grade(text) is None


@pytest.mark.parametrize(
    ("letter", "texts"),
    [
        ("A", ["A", "**A**", "(A)", "[[A]]", "Answer: A", "A is better than B.", "In conversation A it does better."]),
        ("B", ["B.", "Conversation B", "I prefer B because A is rude.", "The better one is B.", "B wins"]),
        (None, ["", "A or B", "Both", "A good reply", "Conversation A is short, conversation B is long."]),
        (None, ["A is not better.", "Conversation A is worse.", "I don't prefer A.", "A isn't better than B."]),
    ],
)
def test_a_choice_in_other_words_is_a_choice(letter, texts):
    assert {text: _letter(text) for text in texts} == dict.fromkeys(texts, letter)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (_grade, "grade" + " " * 10_000),
        (_grade, "1" + "." * 5000 + "-" * 5000),
        (_grade, "8/" + "1" * 10_000),
        (_letter, "A is " * 2000),
        (llm_simulator._words, "#" * 10_000 + "x"),
        (llm_simulator._words, "\\#" * 5000 + "x"),
        (llm_simulator._words, "*" * 10_000 + "x"),
        (llm_simulator._words, "\n" * 10_000 + "x"),
    ],
    ids=range(8),
)
def test_a_model_that_repeats_itself_is_read_in_no_time(read, text):
    begin = time.thread_time()
    read(text)
    assert time.thread_time() - begin < 0.5


def test_a_judge_that_thinks_gets_the_tokens_for_it():
    def write(body):
        if body["max_tokens"] < MOST_TOKENS + THOUGHTS:
            return "<think>The assistant asks", CUT
        return "<think>\n9? No.\n</think>\n\n**8**"

    with Writer(write) as server:
        judge = JudgeRewardModel(make_engine(server.llm))
        assert judge.score([GOOD])[0] == pytest.approx(5 / 9)
    assert (judge.failures, len(server.requests), server.requests[1][1]["temperature"]) == (0, 2, 0.0)


def test_a_judge_without_a_grade_says_what_it_wrote_instead():
    with Writer(lambda body: "Grade: 11") as server, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("always", RuntimeWarning)
        judge = JudgeRewardModel(make_engine(server.llm))
        judge.score([GOOD])
    assert (judge.failures, judge.asked) == (1, ATTEMPTS)
    assert "such as 'Grade: 11': an answer names one number from 1 to 10" in str(told[-1].message)


def test_the_words_of_a_turn_in_tokens_are_those_outside_of_thoughts():
    env = gym.make("ChatEnv-v0", action="token", observation="token", llm="template", reward_model=None).unwrapped
    env.reset(seed=1)
    tokenizer = env._conversations.tokenizer
    for token in [*tokenizer.encode(f"<think>So.</think>{NUMBER}"), tokenizer.end]:
        *_, info = env.step(token)
    assert (env.agent_text, info["agent_act"]) == (NUMBER, "ask_reference")
