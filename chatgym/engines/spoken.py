"""What a model says, out of what it writes: text parts joined, without its thoughts and the marks around its answer.

Thoughts stand between marks (``<think>…</think>``). They can be cut off, so that the second mark is missing; or the
prompt ends with the first mark, so that only the second one is in the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMES = (
    r"(?:\w+:|inner_?|chain_of_|longcat_|ant)?(?:think(?:ing)?(?:_never_used_\w+)?|thought(?:s|_?process)?|reason(?:ing)?(?:_content)?|cot|"
    r"reflection|analysis|scratchpad|monologue)"
)
_OPEN = (
    rf"<\|?\s*{_NAMES}(?:\s[^<>]*)?[/|]?>",
    r"(?-i:\[THINK\])",  # Mistral
    r"◁think▷",  # Kimi
    r"<\|START_THINKING\|>",  # Command
    r"<\|begin_of_thought\|>",  # Sky-T1
    r"<\|im_start\|>think\b",  # s1
    r"<unused94>|<\|channel>thought\b",  # Gemma
    r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)\b(?:[^<]|<\|constrain\|>)*<\|message\|>",  # gpt-oss
    r"\A(?-i:analysis(?=[A-Z]))",  # the same without its special tokens
)
_CLOSE = (
    rf"<\|?\s*/\s*{_NAMES}\s*\|?>",
    r"(?-i:\[/THINK\])",
    r"◁/think▷",
    r"<\|END_THINKING\|>",
    r"<\|end_of_thought\|>",
    r"<\|im_start\|>answer\b",
    r"<unused95>|<channel\|>",
    r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final\b[^<]*<\|message\|>",
    r"(?-i:assistantfinal(?=\W|[A-Z]))",
)
_MARK = re.compile(f"(?P<open>{'|'.join(_OPEN)})|(?P<close>{'|'.join(_CLOSE)})", re.I)
_ANSWER = re.compile(
    r"\s*(?:<(?P<name>answer|final_answer|final|response|reply|output)>|<\|(?:START_RESPONSE|begin_of_solution)\|>)"
    r"(?P<words>.*?)(?:(?:</(?P=name)>|<\|(?:END_RESPONSE|end_of_solution)\|>)(?P<more>.*))?", re.I | re.S,
)  # fmt: skip
_BEGIN = re.compile(r"\A\s*<\|(?:im_start\|>|start_header_id\|>)?assistant(?:\|>|<\|end_header_id\|>|\n)\s*")
_END = re.compile(
    r"(?:<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|return|call|END_OF_TURN_TOKEN)\|>|</s>|<eos>|"
    r"<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>)+"
    r"(?:\s*<(?:\|(?:im_start|start_header_id|start)\||\|turn|start_of_turn)>.*)?\Z", re.S,
)  # fmt: skip
"""The end of a turn, and the next turn, if the model wrote that, too."""
ENOUGH = 8
"""Replies after which a user is warned if none of them could be used (`why_wordless`)."""
_UNUSABLE = {
    "empty": "without words outside of thoughts",
    "unknown_tools": "with calls of no known tool",
    "cut": "cut off after the most tokens that they may have",
}
_WORDS = ("text", "output_text", "input_text", "message")
"""Types of parts that hold words; other parts are thoughts, pictures, or calls."""


def text_of(content: Any) -> str:
    """Return the words in the content of a message: a text, a part, or a list of those; empty if there are none."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        if content.get("thought") or str(content.get("type") or "text").lower() not in _WORDS:
            return ""
        return text_of(next(filter(None, map(content.get, ("text", "value", "content", "parts"))), None))
    return "".join(map(text_of, content)) if isinstance(content, (list, tuple)) else ""


def without_thoughts(text: str) -> tuple[str, bool]:
    """Return what is said in a text, and whether it ends within a thought."""
    said: list[str] = []
    thinking, at = False, 0
    for mark in _MARK.finditer(text):
        if not thinking:
            said.append(text[at : mark.start()])
        if mark["close"] and not thinking:
            said.clear()  # the thought began in the prompt
        thinking, at = bool(mark["open"]) and not mark[0].endswith("/>"), mark.end()
    if at == 0:
        return _unwrapped(text), False
    if not thinking:
        said.append(text[at:])
    return _unwrapped("".join(said)).strip(), thinking


def why_wordless(model: str, counts: Mapping[str, int], remedy: str) -> str:
    """Return what to say of a model of whose replies none can be used; empty if one can, or there are none.

    Args:
        model: Its identity.
        counts: ``replies``, and of them ``empty``, ``unknown_tools`` and ``cut``.
        remedy: What to do if they were cut.
    """
    replies = counts.get("replies", 0)
    if not replies or counts.get("empty", 0) + counts.get("unknown_tools", 0) < replies:
        return ""
    told = [f"{counts[name]:,} {what}" for name, what in _UNUSABLE.items() if counts.get(name)]
    advice = remedy if counts.get("cut") else "look at what it writes, and take another model"
    return f"none of the {replies:,} replies of {model} could be used ({', '.join(told)}); {advice}"


def opened_thought(prompt: str) -> str:
    """Return the mark of a thought with which a prompt ends; empty if there is none."""
    end = prompt[-100:].rstrip()
    last = [*_MARK.finditer(end)][-1:]
    return last[0][0] if last and last[0]["open"] and last[0].end() == len(end) else ""


def _unwrapped(text: str) -> str:
    """Return a text without the marks that enclose an answer or end a turn."""
    if "<" not in text:
        return text
    text = _BEGIN.sub("", _END.sub("", text.rstrip()))
    found = _ANSWER.fullmatch(text)
    return (found["words"] + (found["more"] or "")).strip() if found else text
