"""Draw docs/forest.svg: two pairs as a padded batch, and as a token forest with its mask.

Usage: python docs/draw_forest.py
"""

from html import escape
from pathlib import Path

import numpy as np

from plaudit.forest.trie import TokenForest

PAIRS = [
    {"prompt": "Is the sky blue ?", "chosen": "Yes , it is .", "rejected": "No ."},
    {"prompt": "2 + 2 ?", "chosen": "4", "rejected": "It is 5 ."},
]
COLOURS = {  # of the prompt, chosen and rejected tokens of each pair
    (0, "prompt"): "#7aa7e0",
    (0, "chosen"): "#7cc6a4",
    (0, "rejected"): "#f2a97e",
    (1, "prompt"): "#b39ddb",
    (1, "chosen"): "#7cc6a4",
    (1, "rejected"): "#f2a97e",
}
INK, FAINT, EMPTY, LINE = "#1f2937", "#6b7280", "#f1f3f6", "#ffffff"
SANS = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
PADDED, SMALL = 37, 25  # sides of a cell: of the batch, of the mask
Token = tuple[str, int, str]  # a word, its pair, its part


class Drawing:
    """A list of SVG elements."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, fill: str, **more: object) -> None:
        """Add a rectangle."""
        rest = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        self.elements.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{rest}/>')

    def line(self, *points: tuple[float, float], colour: str = FAINT, width: float = 1.5) -> None:
        """Add a line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        colour: str = INK,
        anchor: str = "start",
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        """Add one line of text."""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{MONO if mono else SANS}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}" font-weight="{600 if bold else 400}">{escape(words)}</text>'
        )

    def cell(self, x: float, y: float, side: float, token: Token, *, repeated: bool = False) -> None:
        """Add a token, hatched if it is computed a second time."""
        self.rect(x, y, side - 2, side - 2, COLOURS[token[1:]], rx=4)
        if repeated:
            self.rect(x, y, side - 2, side - 2, "url(#hatch)", rx=4)
        self.text(x + side / 2 - 1, y + side / 2 + 3.5, token[0], size=min(12, side * 0.36), anchor="middle", mono=True)

    def svg(self, width: int, height: int, title: str) -> str:
        """Return the content of the SVG file."""
        hatch = (
            '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect width="2.5" height="6" fill="#ffffff" fill-opacity="0.45"/></pattern>'
            "</defs>"
        )
        start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        ground = f'<rect width="{width}" height="{height}" rx="12" fill="#ffffff"/>'
        return "\n".join([start, f"<title>{escape(title)}</title>", hatch, ground, *self.elements, "</svg>\n"])


def tokens_of(pair: int, side: str) -> list[Token]:
    """Return the tokens of one sequence: its prompt, then its response."""
    return [(word, pair, part) for part in ("prompt", side) for word in PAIRS[pair][part].split()]


def draw_batch(drawing: Drawing, x: float, y: float, sequences: list[list[Token]]) -> None:
    """Draw the padded batch, one sequence in each row."""
    longest = max(map(len, sequences))
    seen: set[tuple[Token, ...]] = set()
    repeats = 0
    for row, sequence in enumerate(sequences):
        top = y + row * PADDED
        for column in range(longest):
            left = x + column * PADDED
            if column >= len(sequence):
                drawing.rect(left, top, PADDED - 2, PADDED - 2, EMPTY, rx=4)
                drawing.text(
                    left + PADDED / 2 - 1, top + 22, "pad", size=10, colour="#a3aab5", anchor="middle", mono=True
                )
                continue
            prefix = tuple(sequence[: column + 1])
            drawing.cell(left, top, PADDED, sequence[column], repeated=prefix in seen)
            repeats += prefix in seen
            seen.add(prefix)
        drawing.text(x - 10, top + 22, sequence[-1][2], size=12, colour=FAINT, anchor="end")
    positions, real = len(sequences) * longest, sum(map(len, sequences))
    drawing.text(x, y - 36, f"Padded: {len(sequences)} rows, {positions} positions", size=17, bold=True)
    words = f"{positions - real} are padding, {repeats} compute a prompt again (hatched)"
    drawing.text(x, y - 15, words, colour=FAINT)


def draw_trees(drawing: Drawing, x: float, y: float) -> None:
    """Draw the pairs as trees: each prompt once, with a branch for each response."""
    drawing.text(x, y - 36, "Each prefix once: a forest", size=17, bold=True)
    drawing.text(x, y - 15, "A prompt, and a branch for each response", colour=FAINT)
    for pair in range(len(PAIRS)):
        top = y + pair * 2.6 * PADDED
        prompt = [token for token in tokens_of(pair, "chosen") if token[2] == "prompt"]
        fork, middle = x + len(prompt) * PADDED, top + 0.5 * PADDED
        for branch, side in enumerate(("chosen", "rejected")):
            response = tokens_of(pair, side)[len(prompt) :]
            height = top + branch * 1.1 * PADDED
            centre = height + PADDED / 2 - 1
            drawing.line(
                (fork - 2, middle + 0.5 * PADDED),
                (fork + 9, middle + 0.5 * PADDED),
                (fork + 9, centre),
                (fork + 20, centre),
            )
            for number, token in enumerate(response):
                drawing.cell(fork + 20 + number * PADDED, height, PADDED, token)
        for number, token in enumerate(prompt):
            drawing.cell(x + number * PADDED, middle, PADDED, token)


def draw_mask(drawing: Drawing, x: float, y: float, forest: TokenForest, names: list[Token], sides: list[str]) -> None:
    """Draw the row of the forest, and below it the attention mask."""
    size = len(forest)
    drawing.text(x, y - 36, f"Token forest: 1 row, {size} positions", size=17, bold=True)
    drawing.text(x, y - 15, "Query q sees key k where k ≤ q < subtree_end[k]", colour=FAINT)
    queries, keys = np.arange(size)[:, None], np.arange(size)[None, :]
    seen = (keys <= queries) & (queries < forest.subtree_end[keys])
    grid = y + 2 * SMALL + 24
    for column in range(size):
        left = x + column * SMALL
        drawing.cell(left, y, SMALL, names[column])
        for line, values in enumerate((forest.position_ids, forest.subtree_end)):
            number = str(values[column])
            drawing.text(
                left + SMALL / 2 - 1, y + SMALL + 15 + 17 * line, number, size=10.5, anchor="middle", mono=True
            )
        for row in range(size):
            colour = COLOURS[names[column][1:]] if seen[row, column] else EMPTY
            drawing.rect(left, grid + row * SMALL, SMALL - 2, SMALL - 2, colour, rx=3)
    for line, name in enumerate(("position", "subtree_end")):
        drawing.text(x - 8, y + SMALL + 15 + 17 * line, name, size=11, colour=FAINT, anchor="end")
    for row in range(size):
        drawing.text(x - 8, grid + row * SMALL + 16, names[row][0], size=10, anchor="end", mono=True)
    for leaf, side in zip(forest.leaf, sides, strict=True):
        height = grid + leaf * SMALL + 16
        drawing.text(x + size * SMALL + 6, height, f"→ reward, {side}", size=11.5)
    # The queries that see one key, as an example: the last token of the first prompt.
    key = max(k for k in range(size) if names[k][1:] == (0, "prompt"))
    reach = (forest.subtree_end[key] - key) * SMALL
    drawing.rect(
        x + key * SMALL - 1.5, grid + key * SMALL - 1.5, SMALL + 1, reach + 1, "none", stroke=INK, stroke_width=2, rx=4
    )
    words = [f"k = {key}: seen by its subtree,", f"q from {key} to {forest.subtree_end[key] - 1}"]
    left = x + (key + 9) * SMALL
    for number, line in enumerate(words):
        drawing.text(left, grid + (key - 1.5) * SMALL + 17 * number, line, size=12.5)
    drawing.line(
        (left - 6, grid + (key - 1.4) * SMALL + 4), (x + (key + 1) * SMALL + 2, grid + key * SMALL + 6), colour=INK
    )


def draw_legend(drawing: Drawing, x: float, y: float, size: int) -> None:
    """Draw the meaning of the rows, columns and colours of the mask."""
    lines = [
        f"In the mask, right, rows and columns are the forest's {size} tokens:",
        "the token of a row attends to the coloured columns. Colours",
        "are those of the columns; no pair, and no branch, sees another.",
    ]
    for number, line in enumerate(lines):
        drawing.text(x, y + 19 * number, line, colour=FAINT)
    for number, part in enumerate([(0, "prompt"), (1, "prompt"), (0, "chosen"), (0, "rejected")]):
        left = x + 102 * number
        drawing.rect(left, y + 61, 13, 13, COLOURS[part], rx=3)
        words = f"prompt {part[0] + 1}" if part[1] == "prompt" else part[1]
        drawing.text(left + 20, y + 72, words, size=12.5)


def main() -> None:
    """Lay the pairs out and draw them."""
    sides = ["chosen", "chosen", "rejected", "rejected"]  # as in a batch: first all chosen ones
    pairs = [0, 1, 0, 1]
    sequences = [tokens_of(pair, side) for pair, side in zip(pairs, sides, strict=True)]
    words = list(dict.fromkeys(token[0] for sequence in sequences for token in sequence))
    forest = TokenForest.from_sequences([[words.index(token[0]) for token in line] for line in sequences], pairs)
    names: list[Token] = [("", 0, "")] * len(forest)
    for sequence, leaf in zip(sequences, forest.leaf, strict=True):
        path = [k for k in range(len(forest)) if k <= leaf < forest.subtree_end[k]]
        for index, token in zip(path, sequence, strict=True):
            names[index] = token
    drawing = Drawing()
    draw_batch(drawing, 96, 80, sequences)
    draw_trees(drawing, 96, 322)
    draw_legend(drawing, 96, 560, len(forest))
    draw_mask(drawing, 584, 80, forest, names, sides)
    title = "Two preference pairs as a padded batch, and as a token forest with its attention mask"
    Path(__file__).with_name("forest.svg").write_text(drawing.svg(1240, 704, title), encoding="utf-8")


if __name__ == "__main__":
    main()
