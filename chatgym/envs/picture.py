"""Draw a conversation as a picture: a bubble for each turn, the newest at the bottom."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from chatgym.scenarios import TONES, Scenario

WIDTH, HEIGHT = 800, 600
"""Size of a picture in units; both even, as video codecs want them."""

HEADER, MARGIN, GAP, FACE, PADDING = 58, 16, 9, 34, 10
BUBBLE, BESIDE = 430, 214
"""Greatest widths of the words in a bubble, and of the notes beside it."""
ENDING = 76
"""Height that is set aside for the outcome where a picture is as tall as it needs."""
LINES, MAX_CHARS = 5, 600
"""Greatest number of lines in a bubble, and of characters that are looked at to fill them."""
THUMBNAIL = (160, 120)
SMOOTH = 4
"""Shapes are drawn this many times larger and scaled down, because Pillow's edges are jagged."""

INK, DIM, PAPER, WHITE, LINE = "#1d2733", "#66717e", "#f3f5f8", "#ffffff", "#dde2e9"
GOOD, BAD = "#1d7a4c", "#b3362b"
AGENT = ("#dbe6fb", "#5f86dc", DIM)
PARTNER = {  # by tone: bubble, face, label
    "calm": ("#ddf0e5", "#5fb88a", "#2c7a55"),
    "annoyed": ("#fdebc0", "#eeb03c", "#8f6200"),
    "angry": ("#fad5d0", "#e4705f", BAD),
}
SHARED = re.compile(r"\s*\[picture: ([^\]]*)\]\s*")
"""How the words of a turn name a picture that was shared: by its caption."""

Font = tuple[int, bool]
"""A size in units, and whether it is bold."""
TITLE, OUTCOME, BODY, STRONG, SMALL = (17, True), (15, True), (15, False), (12, True), (12, False)
LINE_HEIGHT, NOTE_LINE = 20, 16
Styled = tuple[str, Font, str]
"""A line of text, its font and its colour."""


def draw(
    turns: Sequence[dict[str, Any]], scenario: Scenario, max_turns: int, height: int | None = HEIGHT, scale: int = 1
) -> npt.NDArray[np.uint8]:
    """Draw a conversation.

    Args:
        turns: What `ChatEnv.transcript` returns; a partner's turn may name its ``tone``, which colours it.
        scenario: Its scenario.
        max_turns: Turns of the agent until truncation.
        height: Height of the picture in units; None: what the whole conversation takes.
        scale: Pixels per unit.

    Returns:
        uint8[height * scale, 800 * scale, 3], red, green and blue.
    """
    goal = turns[-1] if turns and turns[-1]["role"] == "goal" else None
    said = turns[:-1] if goal else turns
    bubbles = _newest(said, scenario, scale, math.inf if height is None else height - HEADER)
    if height is None:
        needed = HEADER + MARGIN + sum(bubble.full_height + GAP for bubble in bubbles) + MARGIN
        height = 2 * math.ceil((needed + (ENDING if goal else 0)) / 2)
    canvas = Canvas(Image.new("RGB", (WIDTH * scale, height * scale), PAPER), scale)
    bottom: float = height - MARGIN
    if goal:
        bottom = _ending(canvas, bottom, goal, scenario) - GAP
    _stack(canvas, bubbles, bottom)
    total = sum(turn.get("reward", 0.0) for turn in said)
    _header(canvas, scenario, sum("reward" in turn for turn in said), max_turns, total)
    return np.array(canvas.image, np.uint8)


@dataclass(frozen=True)
class Canvas:
    """What is drawn on, in units of `scale` pixels."""

    image: Image.Image
    scale: int

    def measure(self, text: str, font: Font) -> float:
        """Return a text's width."""
        return _length(text, font[0] * self.scale, font[1]) / self.scale

    def write(self, x: float, y: float, line: Styled, right: bool = False) -> None:
        """Write a line that begins at x, or on the right ends there; y is its middle."""
        text, (size, bold), colour = line
        ink = _ink(text, size * self.scale, bold)
        left = round(x * self.scale) - (ink.width if right else 0)
        self.image.paste(colour, (left, round(y * self.scale - ink.height / 2)), ink)

    def box(self, x: float, y: float, width: float, height: float, colour: str, radius: int = 12) -> None:
        """Fill a box with round corners."""
        pixels = round(width * self.scale), round(height * self.scale)
        self.image.paste(colour, (round(x * self.scale), round(y * self.scale)), _rounded(*pixels, radius * self.scale))

    def paste(self, x: float, y: float, picture: Image.Image) -> None:
        """Put a picture with transparency, RGBA, at x, y."""
        self.image.paste(picture, (round(x * self.scale), round(y * self.scale)), picture)


@dataclass(frozen=True)
class Bubble:
    """One turn, laid out.

    Attributes:
        lines: Its words.
        notes: The lines beside it.
        colour: Of the bubble.
        face: The picture of who speaks.
        right: Whether it stands on the right, where the agent does.
        picture: What was shared, RGB, or None.
        width, height: Of the bubble; the notes may be higher.
    """

    lines: list[str]
    notes: list[Styled]
    colour: str
    face: Image.Image
    right: bool
    picture: Image.Image | None
    width: float
    height: float

    @property
    def full_height(self) -> float:
        """The height that it takes, notes included."""
        return max(self.height, FACE, NOTE_LINE * len(self.notes))


def _newest(turns: Sequence[dict[str, Any]], scenario: Scenario, scale: int, room: float) -> list[Bubble]:
    """Lay out the last turns, the newest first, until they take all the room."""
    canvas = Canvas(Image.new("RGB", (1, 1)), scale)
    bubbles: list[Bubble] = []
    for turn in reversed(turns):
        if room < 0:
            break
        bubbles.append(_lay_out(canvas, turn, scenario))
        room -= bubbles[-1].full_height + GAP
    return bubbles


def _stack(canvas: Canvas, bubbles: Sequence[Bubble], bottom: float) -> None:
    """Draw turns, the newest first, below the header and above `bottom`; the header hides what is too much."""
    height = sum(bubble.full_height + GAP for bubble in bubbles)
    y = min(float(HEADER + MARGIN), bottom + GAP - height)
    for bubble in reversed(bubbles):
        if y + bubble.full_height > HEADER:
            _put(canvas, bubble, y)
        y += bubble.full_height + GAP


def _lay_out(canvas: Canvas, turn: dict[str, Any], scenario: Scenario) -> Bubble:
    """Wrap a turn's words and choose its colours."""
    right = turn["role"] != scenario.partner_role
    words, picture = _shared(turn["text"], scenario, canvas.scale)
    lines = list(_wrap(canvas, words, BODY, BUBBLE, LINES))
    tone = turn.get("tone", TONES[0])
    colour, skin, label = AGENT if right else PARTNER.get(tone, PARTNER["calm"])
    notes: list[Styled] = [(_clip(canvas, turn["act"].replace("_", " "), SMALL, BESIDE), SMALL, DIM)]
    if "reward" in turn:
        notes.append((_signed(turn["reward"]), STRONG, _sign_colour(turn["reward"])))
    elif "tone" in turn:
        notes.append((tone, STRONG, label))
    if turn.get("heard") not in (None, turn["text"]):
        notes += [(line, SMALL, DIM) for line in _wrap(canvas, f"heard: {turn['heard']}", SMALL, BESIDE, 2)]
    width = max((canvas.measure(line, BODY) for line in lines), default=0.0)
    height = LINE_HEIGHT * len(lines) + 2 * PADDING - 4
    if picture:
        width, height = max(width, THUMBNAIL[0]), height + THUMBNAIL[1] + (6 if lines else 0)
    face = _face(FACE * canvas.scale, skin, "robot" if right else tone)
    return Bubble(lines, notes, colour, face, right, picture, width + 2 * PADDING + 4, height)


def _put(canvas: Canvas, bubble: Bubble, y: float) -> None:
    """Draw a turn at a height."""
    middle, inner = y + bubble.full_height / 2, MARGIN + FACE + 8
    x = WIDTH - inner - bubble.width if bubble.right else inner
    top = middle - bubble.height / 2
    canvas.paste(WIDTH - MARGIN - FACE if bubble.right else MARGIN, middle - FACE / 2, bubble.face)
    canvas.box(x, top, bubble.width, bubble.height, bubble.colour)
    for i, line in enumerate(bubble.lines):
        canvas.write(x + PADDING + 2, top + PADDING - 2 + LINE_HEIGHT * (i + 0.5), (line, BODY, INK))
    if bubble.picture:
        below = top + bubble.height - PADDING - THUMBNAIL[1]
        canvas.image.paste(
            bubble.picture, (round((x + PADDING + 2) * canvas.scale), round(below * canvas.scale)),
            _rounded(*bubble.picture.size, 6 * canvas.scale),
        )  # fmt: skip
    beside = x - 10 if bubble.right else x + bubble.width + 10
    first = middle - NOTE_LINE * len(bubble.notes) / 2
    for i, note in enumerate(bubble.notes):
        canvas.write(beside, first + NOTE_LINE * (i + 0.5), note, bubble.right)


def _header(canvas: Canvas, scenario: Scenario, taken: int, max_turns: int, total: float) -> None:
    """Draw the bar at the top: the scenario, the turn and the return so far."""
    middle, scale, right = HEADER / 2, canvas.scale, WIDTH - MARGIN
    canvas.image.paste(LINE, (0, 0, WIDTH * scale, HEADER * scale))
    canvas.image.paste(WHITE, (0, 0, WIDTH * scale, (HEADER - 1) * scale))
    title = _clip(canvas, _heading(scenario.name), TITLE, 400)
    canvas.write(MARGIN, middle - 9, (title, TITLE, INK))
    roles = f"{scenario.partner_role} on the left, {scenario.agent_role} on the right"
    canvas.write(MARGIN, middle + 12, (_clip(canvas, roles, SMALL, 400), SMALL, DIM))
    canvas.write(right, middle - 9, (_signed(total), TITLE, _sign_colour(total)), right=True)
    canvas.write(right, middle + 12, (f"return after {taken} of at most {max_turns} turns", SMALL, DIM), right=True)


def _ending(canvas: Canvas, bottom: float, goal: dict[str, Any], scenario: Scenario) -> float:
    """Draw the outcome and what the partner had in mind, above `bottom`; returns where it begins."""
    width, won = WIDTH - 2 * MARGIN, goal["act"] == scenario.success
    words = f"The {scenario.partner_role} had in mind: {goal['text']}"
    lines = list(_wrap(canvas, words, SMALL, width - 2 * PADDING - 8, 3))
    height = 24 + NOTE_LINE * len(lines) + 2 * PADDING
    top = bottom - height
    canvas.box(MARGIN, top, width, height, LINE)
    canvas.box(MARGIN + 1, top + 1, width - 2, height - 2, WHITE)
    x, y = MARGIN + PADDING + 4, top + PADDING + 10
    outcome = _clip(canvas, _heading(goal["act"]), OUTCOME, width - 2 * PADDING - 8)
    canvas.write(x, y, (outcome, OUTCOME, GOOD if won else BAD))
    for i, line in enumerate(lines):
        canvas.write(x, y + 22 + NOTE_LINE * i, (line, SMALL, DIM))
    return top


def _signed(number: float) -> str:
    """Write a number with its sign, and no sign where two digits show nothing."""
    written = f"{number:+.2f}"
    return written if float(written) else "0.00"


def _sign_colour(number: float) -> str:
    shown = float(f"{number:.2f}")
    return GOOD if shown > 0 else BAD if shown < 0 else DIM


def _plain(text: str) -> str:
    """Return a text on one line, without characters that no font shows (line ends, controls, lone surrogates)."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _heading(name: str) -> str:
    words = _plain(name.replace("_", " "))
    return words[:1].upper() + words[1:]


def _wrap(canvas: Canvas, text: str, font: Font, width: float, most: int) -> Iterator[str]:
    """Break a text into lines of a width, the last of at most `most` ending in an ellipsis if there is more."""
    rest = _plain(text[:MAX_CHARS])
    cut = len(text) > MAX_CHARS
    for number in range(1, most + 1):
        if canvas.measure(rest, font) <= width and not (cut and number == most):
            if rest:
                yield rest + "…" * cut
            return
        if number == most:
            yield _clip(canvas, rest + "…" * cut, font, width)
            return
        fits = _fitting(canvas, rest, font, width)
        space = rest.rfind(" ", 0, fits + 1)
        line = rest[: space if space > 0 else fits]
        yield line
        rest = rest[len(line) :].lstrip()


def _fitting(canvas: Canvas, text: str, font: Font, width: float) -> int:
    """Return how many characters of a text fit in a width, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if canvas.measure(text[:middle], font) <= width else (low, middle - 1)
    return low


def _clip(canvas: Canvas, text: str, font: Font, width: float) -> str:
    """Cut a text that is wider than a width, and end it in an ellipsis."""
    text = _plain(text)
    if canvas.measure(text, font) <= width:
        return text
    return text[: _fitting(canvas, text, font, width - canvas.measure("…", font))].rstrip(" .…") + "…"


def _shared(text: str, scenario: Scenario, scale: int) -> tuple[str, Image.Image | None]:
    """Take a picture that words share out of them, if the scenario can draw it."""
    found = SHARED.search(text)
    if found is None or scenario.picture is None:
        return text, None
    picture = _thumbnail(scenario, found[1], scale)
    return (text, None) if picture is None else (SHARED.sub(" ", text).strip(), picture)


@functools.lru_cache(maxsize=64)
def _thumbnail(scenario: Scenario, caption: str, scale: int) -> Image.Image | None:
    png = scenario.picture(caption) if scenario.picture else None
    if png is None:
        return None
    size = THUMBNAIL[0] * scale, THUMBNAIL[1] * scale
    return Image.open(io.BytesIO(png)).convert("RGB").resize(size, Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=32)
def _font(pixels: int, bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load DejaVu Sans, which matplotlib brings; without it, the font in Pillow."""
    try:
        import matplotlib

        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", pixels)
    except (ImportError, OSError):
        return ImageFont.load_default(pixels)


@functools.lru_cache(maxsize=4096)
def _length(text: str, pixels: int, bold: bool) -> float:
    return _font(pixels, bold).getlength(text)


@functools.lru_cache(maxsize=1024)
def _ink(text: str, pixels: int, bold: bool) -> Image.Image:
    """Draw a line as a mask, L: of each frame of a video, most lines stood in the one before."""
    font = _font(pixels, bold)
    mask = Image.new("L", (math.ceil(font.getlength(text)) + 1, 2 * pixels))
    if isinstance(font, ImageFont.FreeTypeFont):
        ImageDraw.Draw(mask).text((0, pixels), text, 255, font, anchor="lm")
    else:  # the bitmap font knows no anchors, and few characters
        ImageDraw.Draw(mask).text((0, pixels // 2), text.encode("ascii", "replace").decode(), 255, font)
    return mask


@functools.lru_cache(maxsize=512)
def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """Make the mask of a box with round corners, L."""
    mask = Image.new("L", (width * SMOOTH, height * SMOOTH))
    corners = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, radius * SMOOTH, 255)
    return mask.reduce(SMOOTH)


@functools.lru_cache(maxsize=32)
def _face(pixels: int, colour: str, look: str) -> Image.Image:
    """Draw a round face, RGBA: that of a tone, or of the agent, which is a robot."""
    side = pixels * SMOOTH
    image = Image.new("RGBA", (side, side))
    pen, unit = ImageDraw.Draw(image), side / 34
    pen.ellipse((0, 0, side - 1, side - 1), colour)

    def at(*points: float) -> tuple[float, ...]:
        return tuple(point * unit for point in points)

    stroke = round(1.8 * unit)
    if look == "robot":
        pen.line(at(17, 5, 17, 10), WHITE, stroke)
        pen.ellipse(at(15, 3.6, 19, 7.6), WHITE)
        pen.rounded_rectangle(at(8, 10, 26, 25), 4 * unit, WHITE)
        for x in (13, 21):
            pen.ellipse(at(x - 2, 13.5, x + 2, 17.5), colour)
        pen.rounded_rectangle(at(13, 20.2, 21, 22), unit, colour)
        return image.reduce(SMOOTH)
    for x in (12, 22):
        pen.ellipse(at(x - 1.8, 12, x + 1.8, 15.6), WHITE)
    if look == "angry":
        pen.arc(at(11, 21, 23, 31), 200, 340, WHITE, stroke)
        pen.line(at(8.5, 8.5, 14, 11), WHITE, stroke)
        pen.line(at(25.5, 8.5, 20, 11), WHITE, stroke)
    elif look == "annoyed":
        pen.line(at(11.5, 23, 22.5, 23), WHITE, stroke)
    else:
        pen.arc(at(10, 13, 24, 25), 20, 160, WHITE, stroke)
    return image.reduce(SMOOTH)
