"""Training of language models: from conversations to a model in a folder, by DeepSpeed.

Read in this order: `dialogues` (conversations as messages), `packing` (messages as rows of token ids), `models` (what
is trained), `loop` (how), `sft` (supervised fine-tuning, the first step of RLHF).
"""
