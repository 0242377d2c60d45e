"""Pictures of conversations, Gymnasium's video wrappers, and output that can't show every character."""

import dataclasses
import io
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import HumanRendering, RecordVideo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from chatgym.envs import picture as picture
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.rendering import Replacing
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.scenarios.social import SCENARIO as SOCIAL

WIDTH, HEIGHT = picture.WIDTH, picture.HEIGHT
COMMAND = [sys.executable, "-c", "from chatgym.cli import main; main()"]
ODD = ["", "\n" * 9, "W" * 2000, "a\0b\x1b[31m", "\ud800 alone", "שלום 你好 🙂 €", "one  two\tthree " * 90]


def rgb(scenario="customer_service", **arguments):
    return ChatEnv(scenario=scenario, llm="template", render_mode="rgb_array", **arguments)


def draw(*turns, scenario=SCENARIO, **arguments):
    return picture.draw(turns, scenario, 20, **arguments)


def heard(text="Hello.", tone="calm"):
    return {"role": "customer", "act": "greet", "text": text, "tone": tone}


def said(text="Hello.", reward=-0.02, **more):
    return {"role": "agent", "act": "greet", "text": text, "reward": reward, **more}


def where(image, colour):
    """Return rows and columns of the pixels of a colour, below the header."""
    rows, columns = np.nonzero((image == ImageColor.getrgb(colour)).all(2))
    below = rows >= picture.HEADER
    return rows[below], columns[below]


@pytest.mark.parametrize("scenario", ["customer_service", "education", "social"])
def test_each_turn_gives_another_picture_of_the_same_size(scenario):
    env = rgb(scenario)
    env.reset(seed=3)
    frames, over = [env.render()], False
    while not over:
        _, _, terminated, truncated, _ = env.step(int(env.room.expert_acts()[0]))
        over = terminated or truncated
        frames.append(env.render())
    assert all(frame.shape == (600, 800, 3) and frame.dtype == np.uint8 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == len(frames) > 3
    assert np.array_equal(env.render(), frames[-1])
    frames[-1][:] = 0  # it is the caller's own
    assert env.render().any()


def test_the_colour_is_that_of_the_tone_heard_and_never_of_the_hidden_mood():
    shown = {tone: draw(heard(tone=tone)) for tone in picture.PARTNER}
    for tone, (bubble, face, label) in picture.PARTNER.items():
        assert {other for other, image in shown.items() if len(where(image, bubble)[0])} == {tone}
        assert len(where(shown[tone], face)[0])
        assert len(where(shown[tone], label)[0])
    env = rgb()
    env.reset(seed=3)
    before = env.render()
    env.room.hidden["mood"] = 10 - env.room.hidden["mood"]
    assert np.array_equal(env.render(), before)


def test_the_partner_stands_on_the_left_and_the_agent_on_the_right():
    image = draw(heard(), said())
    assert where(image, picture.PARTNER["calm"][0])[1].max() < WIDTH / 2 < where(image, picture.AGENT[0])[1].min()


def test_the_newest_turns_are_at_the_bottom_and_the_oldest_out_of_sight():
    turns = [heard("Yes."), said("Is it so?")] * 15
    image = draw(*turns)
    assert np.array_equal(draw(heard("What?"), *turns[1:]), image)
    rows = np.nonzero((draw(*turns[:-1], said("Or not?")) != image).any(2))[0]
    assert rows.min() > HEIGHT - 60
    few = draw(heard(), said())
    assert where(few, picture.AGENT[0])[0].max() < HEIGHT / 3


def test_rewards_return_and_what_was_heard_are_shown():
    image = draw(heard(), said())
    changed = np.nonzero((draw(heard(), said(reward=0.5)) != image).any(2))[0]
    assert changed.min() < picture.HEADER < changed.max()
    assert len(where(image, picture.BAD)[0])
    assert not len(where(image, picture.GOOD)[0])
    assert len(where(draw(heard(), said(reward=0.5)), picture.GOOD)[0])
    assert np.array_equal(draw(said(reward=1e-17)), draw(said(reward=-1e-17)))
    assert not np.array_equal(draw(heard(), said(heard="Good day.")), image)
    assert np.array_equal(draw(heard(), said(heard="Hello.")), image)


def test_an_ended_conversation_shows_its_outcome_in_the_colour_of_success_or_failure():
    goal = {"role": "goal", "act": "resolved", "text": "billing " * 200}
    for act, colour in (("resolved", picture.GOOD), ("hung_up", picture.BAD)):
        rows, _ = where(draw(heard(), {**goal, "act": act}), colour)
        assert rows.min() > HEIGHT / 2


@pytest.mark.parametrize("text", ODD)
def test_any_words_are_drawn_and_stay_inside(text):
    goal = {"role": "goal", "act": text, "text": text}
    for height in (600, 200):
        image = draw(heard(text), said(text, heard=text[:500] + "x"), goal, height=height)
        assert (image[picture.HEADER + 1 :, [0, 3, -4, -1]] == ImageColor.getrgb(picture.PAPER)).all()


@given(st.text(max_size=80), st.integers(20, 400), st.integers(1, 4))
def test_wrapped_lines_are_no_wider_than_asked_and_lose_nothing_but_the_end(text, width, most):
    canvas = picture.Canvas(Image.new("RGB", (9, 9)), 1)
    lines = list(picture._wrap(canvas, text, picture.BODY, width, most))
    assert len(lines) <= most
    assert all(canvas.measure(line, picture.BODY) <= width for line in lines if len(line) > 2)
    plain, shown = picture._plain(text).replace(" ", ""), "".join(lines).replace(" ", "")
    assert shown == plain or (shown.endswith("…") and plain.startswith(shown.rstrip(".…")))


def test_without_matplotlibs_fonts_that_of_pillow_is_used(monkeypatch):
    import matplotlib

    usual = draw(heard(), said())
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: "/nowhere")
    for cached in (picture._font, picture._length, picture._ink):
        cached.cache_clear()
    try:
        other = draw(heard("€ 🙂"), said())
    finally:
        for cached in (picture._font, picture._length, picture._ink):
            cached.cache_clear()
    assert other.shape == usual.shape
    assert len(where(other, picture.INK)[0])


def test_a_picture_that_was_shared_is_shown_and_an_unknown_one_stays_words():
    sky = [draw(said(f"Here. [picture: {name}]"), scenario=SOCIAL) for name in ("a small boat on a quiet lake", "x")]
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in sky]
    assert colours[0] > 2 * colours[1]
    assert SOCIAL.picture("x") is None
    none = dataclasses.replace(SOCIAL, picture=None)
    assert np.array_equal(draw(said("Here. [picture: x]"), scenario=none), sky[1])


def test_height_and_scale_of_a_picture_can_be_chosen():
    assert draw(heard(), height=200, scale=2).shape == (400, 1600, 3)


def test_pillow_is_imported_for_pictures_only():
    code = (
        "import sys, chatgym, gymnasium; env = gymnasium.make('ChatEnv-v0', llm='template', render_mode='ansi');"
        "env.reset(seed=1); env.render(); sys.exit('PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_a_video_has_a_frame_for_the_opening_and_for_each_turn(tmp_path):
    from moviepy import VideoFileClip

    env = RecordVideo(gym.make("ChatEnv-v0", llm="template", render_mode="rgb_array"), str(tmp_path))
    env.reset(seed=2)
    for act in (1, 2, 14):
        env.step(act)
    env.close()
    (path,) = tmp_path.glob("*.mp4")
    with VideoFileClip(str(path)) as clip:
        assert (tuple(clip.size), clip.fps, clip.duration) == ((800, 600), 1.0, 4.0)


def test_pictures_are_shown_in_a_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = HumanRendering(gym.make("ChatEnv-v0", llm="template", render_mode="rgb_array"))
    env.metadata["render_fps"] = 1000
    env.reset(seed=2)
    env.step(1)
    assert env.window.get_size() == (800, 600)
    env.close()


def test_the_vector_environment_names_what_renders_instead():
    with pytest.raises(ValueError, match="vectorization_mode='sync', render_mode='rgb_array'"):
        gym.make_vec("ChatEnv-v0", num_envs=2, llm="template", render_mode="rgb_array")
    arguments = {"vectorization_mode": "sync", "render_mode": "rgb_array"}
    envs = gym.make_vec("ChatEnv-v0", num_envs=2, llm="template", **arguments)
    envs.reset(seed=1)
    assert [frame.shape for frame in envs.render()] == [(600, 800, 3)] * 2
    envs.close()


HUMAN = """
import sys
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.rendering import print_turns
stdout = sys.stdout
env = ChatEnv(llm="template", render_mode="human")
env.reset(seed=1)
env.step(1)
print_turns([{"role": "agent", "act": "greet", "text": "40 \\u20ac \\u2013 \\u4f60 \\ud800."}], env.scenario)
assert sys.stdout is stdout and stdout.errors == "strict"
"""


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"40 ? ? ? ?."), ("cp1252", b"40 \x80 \x96 ? ?.")])
def test_human_rendering_replaces_what_the_output_can_not_show_and_leaves_stdout_as_it_is(encoding, shown, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run([sys.executable, "-c", HUMAN], capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout


def test_human_rendering_writes_to_streams_without_an_encoding():
    out = io.StringIO()
    assert Replacing(out).write("\ud800 €") == 3
    assert out.getvalue() == "? €"


@pytest.mark.parametrize(("encoding", "how"), [("ascii", "act"), ("cp1252", "text"), ("utf-8", "act")])
def test_commands_take_and_print_any_characters(encoding, how, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    typed = b"\xff\x81\xe2\x82 \xc3\xa9 \xf0\x9f\x99\x82\n\xe2\x82\xac\ngreet\n?\nclose\n"
    play = [*COMMAND, "play", "--seed", "1", "--action", how]
    done = subprocess.run(play, input=typed, capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Outcome" in done.stdout or b"You left" in done.stdout
    name = "caf\u00e9 \u20ac".encode() + b"\xff"
    done = subprocess.run([*COMMAND, "scenarios", name], capture_output=True, timeout=300)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"unknown scenario" in done.stderr
