"""From dialogue acts to words (NLG) and back (NLU), and the guard that checks a language model's wordings."""
