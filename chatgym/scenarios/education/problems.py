"""Generate questions with known answers: three difficulties for each skill, chosen by number.

A question is a template whose numbers are drawn (Mirzadeh et al. 2024, "GSM-Symbolic") from a public seed and the
question's number: these two determine the question. Each has its answer and the answer that a typical mistake leads
to, both as fractions: a sum taken denominator by denominator, a percentage subtracted as if it were euros, an
equation's last division forgotten.
"""

from __future__ import annotations

import numpy as np

from chatgym.dynamics import nb
from chatgym.dynamics.rng import randint
from chatgym.scenarios.education.policy import *

Numbers = tuple[int, int, int, int]
Values = tuple[int, int, int, int]  # answer and typical mistake: num, den, num, den


@nb.njit
def between(seed: np.uint64, number: int, i: int, low: int, high: int) -> int:
    """Draw the i-th number of a question, low … high, both included."""
    return low + randint(seed, number, i, high - low + 1)


@nb.njit
def common_divisor(a: int, b: int) -> int:
    """Return the greatest common divisor (Euclid)."""
    a, b = abs(a), abs(b)
    while b:
        a, b = b, a % b
    return a


@nb.njit
def arithmetic(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question: add with a carry, or products before sums."""
    if difficulty == EASY:
        tens, more = between(seed, number, 0, 1, 4), between(seed, number, 1, 1, 4)
        ones = between(seed, number, 2, 4, 9)
        a, b = 10 * tens + ones, 10 * more + between(seed, number, 3, 10 - ones, 9)
        return (a, b, 0, 0), (a + b, 1, a + b - 10, 1)  # the carry is forgotten
    a, b = between(seed, number, 0, 3, 9), between(seed, number, 1, 6, 12)
    c = between(seed, number, 2, 2, 5)
    if difficulty == MEDIUM:
        return (a, b, c, 0), (a * b - c, 1, a * (b - c), 1)
    d = between(seed, number, 3, 120, 180)
    return (d, a, b, 0), (d - a * b, 1, (d - a) * b, 1)  # from left to right


@nb.njit
def fractions(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question: add fractions of equal or different denominators, or divide them."""
    if difficulty == EASY:
        d = between(seed, number, 0, 5, 12)
        a, b = between(seed, number, 1, 1, 2), between(seed, number, 2, 1, 2)
        return (a, b, d, 0), (a + b, d, a + b, 2 * d)
    if difficulty == MEDIUM:
        a = between(seed, number, 0, 2, 6)
        b = a + between(seed, number, 1, 1, 5)
        c = between(seed, number, 2, 1, a - 1)
        return (c, a, b, 0), (c * b + a, a * b, c + 1, a + b)
    a, b = between(seed, number, 0, 1, 4), between(seed, number, 1, 5, 9)
    c = between(seed, number, 2, 1, 4)
    d = c + between(seed, number, 3, 1, 5)
    return (a, b, c, d), (a * d, b * c, a * c, b * d)  # multiplied instead


@nb.njit
def percentages(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question: take a percentage, subtract it, or find the whole."""
    p = 10 * between(seed, number, 0, 1, 4)
    n = 20 * between(seed, number, 1, 6, 20)
    if difficulty == EASY:
        return (p, n, 0, 0), (n * p, 100, n * p, 10)
    if difficulty == MEDIUM:
        return (n, p, 0, 0), (n * (100 - p), 100, n - p, 1)
    n = 100 * between(seed, number, 1, 2, 8)
    m = n * (100 + p) // 100
    return (m, p, 0, 0), (n, 1, m * (100 - p), 100)


@nb.njit
def ratios(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question: scale a price, share in a ratio, or share work."""
    if difficulty == EASY:
        a, price = between(seed, number, 0, 2, 5), between(seed, number, 1, 2, 6)
        c = a + between(seed, number, 2, 1, 5)
        return (a, a * price, c, 0), (c * price, 1, a * price + c - a, 1)  # adds where it should multiply
    if difficulty == MEDIUM:
        b, part = between(seed, number, 0, 1, 4), between(seed, number, 1, 3, 12)
        a = b + between(seed, number, 2, 1, 4)
        return (part * (a + b), a, b, 0), (part * a, 1, part * b, 1)
    a, times = between(seed, number, 0, 2, 5), between(seed, number, 1, 2, 3)
    days = between(seed, number, 2, 2, 6)
    return (a, times * days, times * a, 0), (days, 1, times * times * days, 1)


@nb.njit
def equations(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question: solve x + a = b, ax + b = c, or ax + b = cx + d."""
    x, b = between(seed, number, 0, 2, 12), between(seed, number, 1, 3, 20)
    if difficulty == EASY:
        return (b, x + b, 0, 0), (x, 1, x + 2 * b, 1)
    a = between(seed, number, 2, 2, 9)
    if difficulty == MEDIUM:
        return (a, b, a * x + b, 0), (x, 1, a * x, 1)  # the division is forgotten
    c = between(seed, number, 3, 2, 6)
    return (a + c, b, c, a * x + b), (x, 1, a * x, a + 2 * c)  # cx goes over with the wrong sign


@nb.njit
def word_problems(seed: np.uint64, number: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return numbers and values of a question in two steps, in three steps, or with an equation to find."""
    a, b, c = between(seed, number, 0, 4, 12), between(seed, number, 1, 3, 9), between(seed, number, 2, 2, 5)
    if difficulty == EASY:
        return (a, b, c, 0), (a + b * c, 1, (a + b) * c, 1)
    if difficulty == MEDIUM:
        return (a + b, b, c, 0), (2 * (a + b) + b * c, 1, a + b + b * c, 1)  # one of the two is forgotten
    return (c, 2 * a + c, 0, 0), (a, 1, 2 * a, 1)


@nb.njit(cache=True)  # also called by itself, from words
def problem(seed: np.uint64, number: int, skill: int, difficulty: int) -> tuple[Numbers, Values]:
    """Return a question's numbers, and its answer and a typical mistake as reduced fractions."""
    if skill == ARITHMETIC:
        numbers, (n, d, wrong_n, wrong_d) = arithmetic(seed, number, difficulty)
    elif skill == FRACTIONS:
        numbers, (n, d, wrong_n, wrong_d) = fractions(seed, number, difficulty)
    elif skill == PERCENTAGES:
        numbers, (n, d, wrong_n, wrong_d) = percentages(seed, number, difficulty)
    elif skill == RATIOS:
        numbers, (n, d, wrong_n, wrong_d) = ratios(seed, number, difficulty)
    elif skill == EQUATIONS:
        numbers, (n, d, wrong_n, wrong_d) = equations(seed, number, difficulty)
    else:
        numbers, (n, d, wrong_n, wrong_d) = word_problems(seed, number, difficulty)
    by, wrong_by = common_divisor(n, d), common_divisor(wrong_n, wrong_d)
    return numbers, (n // by, d // by, wrong_n // wrong_by, wrong_d // wrong_by)


TEXTS = {
    ARITHMETIC: ("What is {0} + {1}?", "What is {0} × {1} - {2}?", "What is {0} - {1} × {2}?"),
    FRACTIONS: ("What is {0}/{2} + {1}/{2}?", "What is {0}/{1} + 1/{2}?", "What is {0}/{1} divided by {2}/{3}?"),
    PERCENTAGES: (
        "What is {0}% of {1}?",
        "A coat costs {0} euros and gets {1}% cheaper. What does it cost then?",
        "After a rise of {1}% a bike costs {0} euros. What did it cost before?",
    ),
    RATIOS: (
        "{0} pens cost {1} euros. What do {2} pens cost?",
        "{0} euros are shared in the ratio {1} to {2}. How much is the larger share?",
        "{0} painters need {1} days for a house. How many days do {2} painters need?",
    ),
    EQUATIONS: ("x + {0} = {1}. What is x?", "{0}x + {1} = {2}. What is x?", "{0}x + {1} = {2}x + {3}. What is x?"),
    WORD_PROBLEMS: (
        "Mia has {0} stickers and buys {1} packs of {2}. How many has she got then?",
        "A zoo ticket is {0} euros for adults and {1} for children. What do 2 adults and {2} children pay?",
        "Tom is {0} years older than Mia, and together they are {1}. How old is Mia?",
    ),
}


def question(seed: int, number: int, skill: int, difficulty: int) -> tuple[str, str]:
    """Return a question and its answer in words."""
    numbers, (num, den, _, _) = problem(np.uint64(seed), number, skill, difficulty)
    return TEXTS[skill][difficulty].format(*numbers), surface(num, den)


def surface(num: int, den: int) -> str:
    """Write a fraction as text: ``12``, ``3/4``."""
    return str(num) if den == 1 else f"{num}/{den}"
