"""Dialogue acts to words and back: NLG, NLU, and the guard that checks what a language model wrote."""
