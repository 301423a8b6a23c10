"""Prompts: what pictures to draw from text alone, and the exact stylised twin of each where a filter makes it."""

import os
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.filters import apply_filter, check_filter
from datamodules.sampling import Samples, ShardSampler
from datamodules.sources import Source, find_sources
from lightning_styles.batches import EVALUATION, PROMPTS
from lightning_styles.errors import UserError, at_least
from lightning_styles.files import places, read_text
from lightning_styles.prompts import check_lengths

LONGEST = 60  # letters of a prompt in a file name
MOST_BYTES = 10_000_000  # of a file of prompts


class Prompts(L.LightningDataModule):
    """Prompts for `validate`, `test` and `predict` of text-to-image methods; ranks share them, none is repeated.

    A batch holds `prompt` (list of str), `name` (list of str: number and words of the prompt, fit for a file name, and
    no two alike), `set` (list of str, "" without sets), `group` (B,) int64, the prompt's number, and `index` (B,)
    int64, the picture's number.

    Args:
        prompts: a text file with one prompt in a line (`#` starts a comment line), or a list. An entry such as
            `scene:portrait/0-7?seed=1` stands for the captions of these scenes. Several sets {name: list} are drawn
            together and measured apart.
        pictures_per_prompt: pictures drawn for each prompt.
        batch_size: pictures drawn together.
        filter: posterize, cartoon, painting or sketch: makes the exact twin of any picture that the base model draws;
            null for none.
    """

    gives = dict.fromkeys(EVALUATION, PROMPTS)

    def __init__(
        self,
        *,
        prompts: str | list[str] | dict[str, list[str]],
        pictures_per_prompt: int = 1,
        batch_size: int = 1,
        filter: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["batch_size"])
        at_least(1, pictures_per_prompt=pictures_per_prompt, batch_size=batch_size)
        if filter is not None:
            check_filter(filter)
        self.batch_size = batch_size
        self.filter = filter
        sets = prompts if isinstance(prompts, dict) else {"": prompts}
        self.sets = list(sets)
        entries = [(name, prompt) for name, entry in sets.items() for prompt in read_prompts(entry)]
        self.plan = PromptPlan(tuple(entries), pictures_per_prompt)

    @property
    def sources(self) -> list[Source]:
        """The names of what `predict` draws."""
        return [Source(self.plan(i)["name"]) for i in range(len(self.plan))]

    def twin(self, images: Tensor) -> Tensor | None:
        """The exact twins of pictures (B, 3, H, W) in [-1, 1] that were drawn without style; None without a filter."""
        return None if self.filter is None else apply_filter(images, self.filter)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def _loader(self) -> DataLoader[Any]:
        count = len(self.plan)
        sampler = ShardSampler(self.trainer, count)
        return DataLoader(Samples(self.plan, count), batch_size=self.batch_size, sampler=sampler)


@dataclass(frozen=True)
class PromptPlan:
    """Picture i: all pictures of the first prompt, then those of the second, and so on."""

    prompts: tuple[tuple[str, str], ...]  # set and prompt
    pictures_per_prompt: int

    def __len__(self) -> int:
        return len(self.prompts) * self.pictures_per_prompt

    def __call__(self, i: int) -> dict[str, Any]:
        group, copy = divmod(i, self.pictures_per_prompt)
        part, prompt = self.prompts[group]
        name = f"{group:03d}_{slug(prompt)}" + (f"_{copy}" if self.pictures_per_prompt > 1 else "")
        return {"prompt": prompt, "name": name, "set": part, "group": group, "index": i}


def read_prompts(prompts: str | list[str]) -> list[str]:
    """The prompts of a list or of a text file, scenes replaced by their captions.

    Raises:
        UserError: there is no such file, it is no text, or it holds no prompt.
    """
    lines = _lines(prompts) if isinstance(prompts, str) else [prompt.strip() for prompt in prompts]
    check_lengths([("prompts", lines)])
    found: list[str] = []
    for line in lines:
        if not line:
            raise UserError("one of the prompts is empty; say what its picture shows, or remove it.")
        scenes = find_sources(line) if line.startswith("scene:") else []
        found += [f"a photo of {scene.caption()}" for scene in scenes] or [line]
    if not found:
        raise UserError("there are no prompts; name a text file with one in each line, or give a list.")
    return found


def slug(prompt: str) -> str:
    """The prompt's words in small letters, digits and underscores, cut after a whole word."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if len(words) > LONGEST:
        words = words[: LONGEST + 1].rpartition("_")[0] or words[:LONGEST]
    return words or "prompt"


def _lines(name: str) -> list[str]:
    """Lines of a text file that are neither empty nor comments; a scene stands for itself."""
    if name.startswith("scene:"):
        return [name]
    file = next((place for place in places(name) if os.path.isfile(place)), None)
    if file is None:
        raise UserError(f"there is no file '{name}' with prompts; a prompt itself goes into a list: [\"{name}\"].")
    lines = [line.strip() for line in read_text(file, MOST_BYTES, "the file of prompts").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{file} holds no prompt; write one in each line.")
    return found
