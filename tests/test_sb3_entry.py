"""What users of Stable-Baselines3 run: its entries over single environments, which ask for pictures."""

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor, VecNormalize, VecVideoRecorder

import chatgym
from chatgym.envs.chat_env import ChatEnv

OBSERVATIONS = ["embedding", "discrete"]


def make(n_envs=2, observation="embedding", **arguments):
    env_kwargs = {"llm": "template", "observation": observation, "max_turns": 6}
    # With the module in its name, as processes need it that are not forked and import nothing else.
    return make_vec_env("chatgym:ChatEnv-v0", n_envs=n_envs, seed=5, env_kwargs=env_kwargs, **arguments)


def ppo(envs, algorithm=PPO):
    return algorithm("MlpPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, seed=3, device="cpu")


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.filterwarnings("error")
def test_its_checker_has_no_objection(observation):
    check_env(ChatEnv(llm="template", observation=observation, render_mode="rgb_array"))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_it_trains_and_evaluates_over_monitored_environments(observation, tmp_path):
    envs, held_out = VecMonitor(make(4, observation)), VecMonitor(make(2, observation))
    if observation == "embedding":
        envs, held_out = VecNormalize(envs), VecNormalize(held_out, training=False)
    evaluation = EvalCallback(held_out, n_eval_episodes=4, eval_freq=16, log_path=str(tmp_path), verbose=0)
    model = ppo(envs).learn(4 * 32, callback=evaluation)
    with np.load(tmp_path / "evaluations.npz") as stored:
        assert stored["results"].shape == (2, 4)
    assert 1 <= evaluate_policy(model, held_out, 4, return_episode_rewards=True)[1][0] <= 6


def test_environments_in_processes_hold_the_same_conversations_and_render():
    envs, apart = make(2), make(2, vec_env_cls=SubprocVecEnv)
    try:
        assert np.array_equal(envs.reset(), apart.reset())
        for act in (0, 1, 14, 2):
            for here, there in zip(envs.step([act] * 2)[:3], apart.step([act] * 2)[:3], strict=True):
                assert np.allclose(here, there)  # rewards are float32 in the one, float64 in the other
        assert np.array_equal(apart.render(), envs.render())
        assert apart.env_method("action_masks")[0].shape == (15,)
    finally:
        apart.close()


def test_it_records_a_video_of_all_environments(tmp_path):
    envs = VecVideoRecorder(make(2), str(tmp_path), lambda step: step == 0, video_length=3)
    envs.reset()
    for _ in range(4):
        envs.step([1, 2])
    envs.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_an_error_rate_is_set_where_it_has_an_effect():
    envs = make(2)
    envs.env_method("set_wrapper_attr", "error_rate", 0.9)
    envs.reset()
    assert envs.get_attr("error_rate") == [0.9, 0.9]
    envs.set_attr("error_rate", 0.1)  # on SB3's Monitor
    with pytest.raises(chatgym.InvalidValue, match="on the wrapper Monitor"):
        envs.reset()


@pytest.mark.parametrize("wrapper", [None, ActionMasker])
def test_masked_ppo_takes_only_actions_that_make_sense(wrapper):
    more = {"wrapper_class": wrapper, "wrapper_kwargs": {"action_mask_fn": lambda env: env.unwrapped.action_masks()}}
    envs = make(2, **(more if wrapper else {}))
    model, acted, step = ppo(envs, MaskablePPO), [], envs.step_async

    def recorded(acts):
        acted.extend(mask[act] for mask, act in zip(envs.env_method("action_masks"), acts, strict=True))
        step(acts)

    envs.step_async = recorded
    model.learn(2 * 32)
    assert len(acted) == 2 * 32
    assert np.all(acted)


def test_the_masks_are_those_of_the_info_and_words_have_none():
    env = ChatEnv(llm="template")
    for _, *_, info in (env.reset(seed=1), env.step(1), env.step(0)):
        assert info["action_mask"].any()
    assert np.array_equal(env.action_masks(), info["action_mask"])
    with pytest.raises(chatgym.ChatGymError, match="action='text' has no action mask"):
        ChatEnv(llm="template", action="text").action_masks()
