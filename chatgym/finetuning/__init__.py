"""Training of language models by DeepSpeed: from conversations to a model in a folder.

Read in this order: `dialogues` (conversations as messages), `packing` (messages as rows of token ids), `models` (the
model and its loss), `loop` (optimizer steps and checkpoints), `sft` (supervised fine-tuning, the first step of RLHF).
"""
