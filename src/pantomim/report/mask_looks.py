"""How the gallery shows each strategy: one colour, seen on light and dark pages alike, and a sentence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Colour and words of a strategy.

    Args:
        color: As #rrggbb.
        hides: What it hides, in a sentence.
        drawn: How its masks come about where there is no pattern; empty where there is one.
    """

    color: str
    hides: str
    drawn: str = ""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as 8-bit numbers."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


# The looks of the colours are those of the authors' picture, in the words of section 2.2 of the specification.
BY_CHANCE = "No pattern: each patch is drawn by itself."
BY_RECTANGLES = "No pattern: rectangles are drawn until enough is hidden."
LOOKS = {
    "random": Look("#6d7985", "Hides patches by chance alone: small holes and small clumps, side by side.", BY_CHANCE),
    "white": Look("#948a78", "Hides by chance alone, from unfiltered noise: the control for the colours."),
    "red": Look("#d9453d", "Hides all but a few large blobs: most of the image is far from anything visible."),
    "green": Look(
        "#2e9b53", "Hides the gaps between clusters of medium size: neighbours vanish, whole regions do not."
    ),
    "blue": Look("#3b7ddd", "Hides evenly: visible dots everywhere, no big hole, no dense clump."),
    "purple": Look("#9255d0", "Hides large regions whole; elsewhere visible dots form a checkerboard."),
    "block": Look("#c4740a", "Hides overlapping rectangles: whole objects can vanish.", BY_RECTANGLES),
    "block_beit": Look("#a0673c", "Hides rectangles as BEiT's own sampler does; the count varies.", BY_RECTANGLES),
    "grid": Look(
        "#12929c",
        "Hides coarse cells by chance: holes and clumps are made of cells, not of patches.",
        "No pattern: each cell is drawn by itself.",
    ),
    "inverse_block": Look(
        "#c8458f",
        "Hides all around a few visible squares: what is left are whole pieces.",
        "No pattern: a fixed number of squares stays visible; single patches are then shown or hidden until the count "
        "is exact.",
    ),
}
FILE = Look("#8a8f1d", "Hides by the patterns of a file: their highest values stay visible.")


def look(name: str) -> Look:
    """The look of a strategy; what has no name of its own comes from a file."""
    return LOOKS.get(name, FILE)
