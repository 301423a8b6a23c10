"""Named classes of the attributes and their colours (RGB in [0, 1])."""

from collections.abc import Iterable
from math import dist

Colour = tuple[float, float, float]


def by_likeness(colours: Iterable[Colour]) -> list[int]:
    """The colours' numbers in an order in which neighbours look alike: the shortest of the greedy paths."""
    table = list(colours)

    def path(first: int) -> list[int]:
        left, way = set(range(len(table))) - {first}, [first]
        while left:
            way.append(min(left, key=lambda k: dist(table[k], table[way[-1]])))
            left.remove(way[-1])
        return way

    ways = [path(first) for first in range(len(table))]
    return min(ways, key=lambda way: sum(dist(table[a], table[b]) for a, b in zip(way, way[1:], strict=False)))


COLOURS = {
    "red": (0.78, 0.16, 0.16), "orange": (0.92, 0.52, 0.16), "yellow": (0.95, 0.82, 0.28),
    "green": (0.25, 0.58, 0.30), "teal": (0.14, 0.56, 0.58), "blue": (0.20, 0.38, 0.76),
    "purple": (0.48, 0.28, 0.66), "pink": (0.92, 0.52, 0.66), "brown": (0.46, 0.31, 0.21),
    "gray": (0.55, 0.57, 0.60), "white": (0.93, 0.92, 0.90), "black": (0.14, 0.14, 0.17),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
COLOUR_TABLE = tuple(COLOURS.values())
COLOUR_ORDER = by_likeness(COLOUR_TABLE)

SKINS = {
    "pale": (0.96, 0.80, 0.72), "fair": (0.93, 0.73, 0.62), "tan": (0.83, 0.61, 0.46),
    "olive": (0.75, 0.55, 0.40), "brown": (0.56, 0.37, 0.26), "dark": (0.38, 0.25, 0.18),
}  # fmt: skip
HAIR_COLOURS = {
    "black": (0.11, 0.09, 0.10), "brown": (0.34, 0.20, 0.12), "chestnut": (0.48, 0.26, 0.14),
    "blonde": (0.86, 0.68, 0.36), "red": (0.72, 0.27, 0.10), "gray": (0.62, 0.62, 0.64),
    "white": (0.90, 0.89, 0.87), "blue": (0.16, 0.34, 0.74), "pink": (0.90, 0.42, 0.60),
    "green": (0.20, 0.58, 0.40), "purple": (0.46, 0.24, 0.62),
}  # fmt: skip
HAIR_ORDER = by_likeness(HAIR_COLOURS.values())
EYE_COLOURS = {
    "brown": (0.36, 0.20, 0.10), "hazel": (0.50, 0.36, 0.14), "green": (0.24, 0.52, 0.30),
    "blue": (0.22, 0.46, 0.76), "gray": (0.44, 0.52, 0.58),
}  # fmt: skip

HAIR_STYLES = (
    "bald", "short", "parted", "spiky", "curly", "bob", "fringe", "long", "wavy", "bun", "ponytail",
)  # fmt: skip
FACES = ("oval", "round", "square", "heart", "long")
BEARDS = ("none", "stubble", "mustache", "goatee", "beard")
GLASSES = ("none", "round", "square")
HATS = ("none", "cap", "beanie", "brim")
EXPRESSIONS = ("neutral", "smile", "laugh", "sad", "surprised")
COLLARS = ("crew", "v-neck", "shirt", "turtleneck", "jacket", "stripes")
BACKDROPS = ("gradient", "two-tone", "blobs")
PORTRAIT_LABELS = (
    "background", "skin", "hair", "eyes", "brows", "mouth", "nose", "beard", "glasses", "hat", "clothes",
    "hand", "microphone", "mask",
)  # fmt: skip

FURS = {
    "orange": (0.88, 0.54, 0.24), "black": (0.15, 0.14, 0.16), "gray": (0.53, 0.54, 0.58),
    "white": (0.93, 0.91, 0.88), "cream": (0.90, 0.77, 0.58), "brown": (0.48, 0.31, 0.19),
}  # fmt: skip
ANIMAL_EYES = {
    "green": (0.50, 0.74, 0.26), "yellow": (0.93, 0.76, 0.22), "blue": (0.38, 0.64, 0.92),
    "brown": (0.44, 0.25, 0.11),
}  # fmt: skip
SPECIES = ("cat", "dog")
PATTERNS = ("plain", "striped", "patched")
ANIMAL_LABELS = ("background", "fur", "ears", "eyes", "nose", "mouth", "collar")

PLACES = ("lake", "sea", "meadow", "desert", "snow")
TIMES = ("day", "sunset", "dawn", "night")
LANDSCAPE_LABELS = (
    "sky", "sun", "clouds", "mountains", "hills", "ground", "water", "trees", "house", "boat",
)  # fmt: skip
