"""What a scene shows, in words."""

from collections.abc import Callable

from datamodules.scenes import palette
from datamodules.scenes.sampling import Scenes

_HAIR_WORDS = {
    "bald": "a bald head", "short": "short {} hair", "parted": "parted short {} hair", "spiky": "spiky {} hair",
    "curly": "curly {} hair", "bob": "a {} bob", "fringe": "{} hair with a fringe", "long": "long {} hair",
    "wavy": "long wavy {} hair", "bun": "{} hair in a bun", "ponytail": "a {} ponytail",
}  # fmt: skip
_MOODS = {"neutral": "", "smile": "smiling ", "laugh": "laughing ", "sad": "sad ", "surprised": "surprised "}
_HAT_WORDS = {"cap": "{} cap", "beanie": "{} beanie", "brim": "wide {} hat"}
_FACE_HAIR = {"stubble": "stubble", "mustache": "a mustache", "goatee": "a goatee", "beard": "a beard"}


def captions(scenes: Scenes, style: str) -> list[str]:
    """One caption a scene: "a photo of ..." for photos, "..., cartoon style" and so on for the others.

    Args:
        scenes: the scenes.
        style: name of a style.

    Returns:
        Captions of at most 24 words; they depend on each scene's attributes alone.
    """
    describe: Callable[[dict[str, int]], str] = _WRITERS[scenes.kind]
    classes = {name: value.tolist() for name, value in scenes.values.items() if not value.is_floating_point()}
    texts = [describe({name: column[i] for name, column in classes.items()}) for i in range(len(scenes))]
    return [f"a photo of {text}" if style == "photo" else f"{text}, {style} style" for text in texts]


def article(words: str) -> str:
    """The words after their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _person(scene: dict[str, int]) -> str:
    mood = "" if scene["mask"] else _MOODS[palette.EXPRESSIONS[scene["expression"]]]
    parts = [_HAIR_WORDS[palette.HAIR_STYLES[scene["hair"]]].format(_name(palette.HAIR_COLOURS, scene["hair_colour"]))]
    if scene["beard"] and not scene["mask"]:
        parts.append(_FACE_HAIR[palette.BEARDS[scene["beard"]]])
    if scene["glasses"]:
        parts.append("glasses")
    if scene["hat"]:
        colour = palette.COLOUR_NAMES[scene["hat_colour"]]
        parts.append(article(_HAT_WORDS[palette.HATS[scene["hat"]]].format(colour)))
    if scene["mask"]:
        parts.append("a face mask")
    rare = ["a raised hand"] * scene["hand"] + ["a microphone"] * scene["microphone"]
    text = f"{article(mood + ('man' if scene['gender'] else 'woman'))} with {_joined(parts + rare)}"
    return text + _behind(scene, crowded=len(parts) + len(rare) > 4)


def _name(table: dict[str, tuple[float, float, float]], row: int) -> str:
    return list(table)[row]


def _behind(scene: dict[str, int], crowded: bool) -> str:
    if crowded or not scene["backdrop_named"]:
        return ""
    return f" on {article(palette.COLOUR_NAMES[scene['backdrop_colour']])} background"


def _animal(scene: dict[str, int]) -> str:
    pattern = {"plain": "", "striped": "striped ", "patched": "patched "}[palette.PATTERNS[scene["pattern"]]]
    fur, species = _name(palette.FURS, scene["fur_colour"]), palette.SPECIES[scene["species"]]
    parts = [f"{_name(palette.ANIMAL_EYES, scene['eye_colour'])} eyes"]
    if scene["collar"]:
        parts.append(article(f"{palette.COLOUR_NAMES[scene['collar_colour']]} collar"))
    if scene["tongue"]:
        parts.append("its tongue out")
    return f"{article(f'{pattern}{fur} {species}')} with {_joined(parts)}{_behind(scene, crowded=False)}"


def _land(scene: dict[str, int]) -> str:
    place = {
        "lake": "a lake",
        "sea": "the sea",
        "meadow": "a meadow",
        "desert": "a desert",
        "snow": "a snowy field",
    }
    words = {"mountains": "mountains", "trees": "trees", "house": "a house", "boat": "a boat"}
    parts = [word for name, word in words.items() if scene[name]]
    when = {"day": "on a clear day", "sunset": "at sunset", "dawn": "at dawn", "night": "at night"}
    time = palette.TIMES[scene["time"]]
    moment = "on a cloudy day" if time == "day" and scene["clouds"] else when[time]
    return f"{place[palette.PLACES[scene['place']]]}{' with ' + _joined(parts) if parts else ''} {moment}"


_WRITERS = {"portrait": _person, "animal": _animal, "landscape": _land}
