"""Files of pseudo pairs: the photographs of each style picture are made once, beside a sheet that shows all levels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.console import say
from lightning_styles.files import replacing
from lightning_styles.imaging import read_image, save_png
from lightning_styles.losses.semantic import Judge, shrink
from lightning_styles.models.stylegan2.pairing import Level, PairNetworks, PairSettings, best_levels, pseudo_pairs
from lightning_styles.reading import read_made, tensor
from lightning_styles.sheet import labelled

SHOWN = 40  # style pictures on the sheet of all


@dataclass(frozen=True)
class Style:
    """A style picture.

    Attributes:
        name: of its file.
        image: (3, H, W) in [-1, 1].
    """

    name: str
    image: Tensor

    @property
    def digest(self) -> str:
        """The same for the same pixels, in 8 bits."""
        return blake2b(((self.image + 1) * 127.5).round().byte().numpy().tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Pairs:
    """What the paired loss compares, N pictures in the order of the styles.

    Attributes:
        w: (N, L, D), codes of the chosen level.
        style: (N, 3, H, W), as large as they are compared: up to 256 px.
        level: (N,), 1 to 3.
    """

    w: Tensor
    style: Tensor
    level: Tensor

    def to(self, device: torch.device) -> "Pairs":
        return Pairs(self.w.to(device), self.style.to(device), self.level)


@dataclass(frozen=True)
class PairFiles:
    """Where the pairs lie, and what they are made of.

    Attributes:
        folder: of the files.
        made_of: fingerprints of the networks that take part.
        settings: of the pipeline.
        seed: of the noise maps of level 2.
        shape: levels, layers L and length D of the codes w.
    """

    folder: Path
    made_of: tuple[str, ...]
    settings: PairSettings
    seed: int
    shape: tuple[int, int, int]

    def find(
        self,
        styles: Sequence[Style],
        load: Callable[[], PairNetworks],
        device: torch.device,
        level: int | None,
        after_batch: Callable[[], None],
    ) -> Pairs:
        """The pairs, of which those that are missing are made now, on `device`.

        Args:
            styles: the pictures, of one size.
            load: loads the networks, only called if something is missing.
            device: where to compute.
            level: 1, 2, 3, or None: for each picture the one whose photographs score best.
            after_batch: called after each batch of new pairs is written.

        """
        files = [(self.file(style), self.file(style).with_suffix(".png")) for style in styles]
        missing = [style for style, own in zip(styles, files, strict=True) if not all(map(Path.exists, own))]
        if missing:
            self._make(missing, load(), device, after_batch)
            self._write_sheet(styles)
        scores = tensor(self.shape[0])
        content = {"w": tensor(*self.shape), "perceptual": scores, "identity": scores}
        found = [read_made(file, content) for file, _ in files]
        scores = torch.stack([pair["perceptual"] + pair["identity"] for pair in found])
        chosen = best_levels(scores) if level is None else torch.full((len(styles),), level - 1)
        w = torch.stack([pair["w"][index] for pair, index in zip(found, chosen.tolist(), strict=True)])
        return Pairs(w, torch.cat([shrink(style.image[None]) for style in styles]), chosen + 1)

    def file(self, style: Style) -> Path:
        """The file of one picture, named by all that it depends on but the batch that it is made in."""
        recipe = {**asdict(self.settings), "batch_size": None}
        key = noise.number(style.digest, *self.made_of, json.dumps(recipe), self.seed)
        return self.folder / f"{style.name}_{key:016x}.safetensors"

    def sheet(self, styles: Sequence[Style]) -> Path:
        """The picture that shows all of them, or the first 40."""
        key = noise.number(*(self.file(style).name for style in styles))
        return self.folder / f"sheet_{key:016x}.png"

    def _make(
        self, styles: Sequence[Style], nets: PairNetworks, device: torch.device, after_batch: Callable[[], None]
    ) -> None:
        size = self.settings.batch_size
        for first in range(0, len(styles), size):
            batch = styles[first : first + size]
            images = torch.stack([style.image for style in batch]).to(device)
            draws = [nets.source.draw_noise(1, noise.generator(self.seed, style.digest)) for style in batch]
            maps = [torch.cat(maps) for maps in zip(*draws, strict=True)]
            levels = pseudo_pairs(nets, images, maps, self.settings)
            for i, style in enumerate(batch):
                self._write(style, [_only(level, i) for level in levels])
            say(f"pseudo pairs: {first + len(batch)} of {len(styles)}")
            after_batch()

    def _write(self, style: Style, levels: list[Level]) -> None:
        """The strip S | P1 | P2 | P3 with the scores, then the numbers: where they are, so is the strip."""
        from safetensors.torch import save_file

        path, scores = self.file(style), torch.stack([level.score for level in levels])
        strip = [labelled(shrink(style.image[None])[0], style.name)]
        for number, level in enumerate(levels, 1):
            best = " best" if level.score == scores.min() else ""
            label = f"{float(level.perceptual):.2f} + {float(level.identity):.2f}{best}"
            strip.append(labelled(shrink(level.image[None])[0].clamp(-1, 1), f"level {number}", label))
        save_png(path.with_suffix(".png"), torch.cat(strip, dim=-1), {"scores": scores.tolist()})
        tensors = {name: torch.stack([getattr(x, name) for x in levels]) for name in ("w", "perceptual", "identity")}
        tensors["z"] = torch.stack([level.z for level in levels if level.z is not None])
        with replacing(path) as temporary:
            save_file({name: values.float().cpu().contiguous() for name, values in tensors.items()}, temporary)

    def _write_sheet(self, styles: Sequence[Style]) -> None:
        strips = [read_image(self.file(style).with_suffix(".png")) for style in styles[:SHOWN]]
        save_png(self.sheet(styles), torch.cat(strips, dim=-2))


def _only(level: Level, i: int) -> Level:
    """The i-th picture of a level, without the axis of the batch."""
    z = None if level.z is None else level.z[i]
    return Level(level.w[i], level.image[i], level.perceptual[i], level.identity[i], z)


class Targets:
    """Maps of the style pictures, by which results are judged in every step: computed once, as far as they fit.

    Args:
        judge: perceptual network.
        style: (N, 3, H, W), as `Pairs` has them.
        gigabytes: of memory for them, on the device of `style`; what exceeds it is computed anew each time.
    """

    def __init__(self, judge: Judge, style: Tensor, gigabytes: float) -> None:
        self.judge, self.style, self.left = judge, style, gigabytes * 1e9
        self.kept: dict[int, list[Tensor]] = {}

    def maps(self, indices: Sequence[int]) -> list[Tensor]:
        """What `perceptual_distance` compares pictures with, for the style pictures of these indices."""
        return [torch.cat(maps) for maps in zip(*(self._of(i) for i in indices), strict=True)]

    @torch.no_grad()
    def _of(self, i: int) -> list[Tensor]:
        # Each by itself: what a picture's maps are must not depend on the batch that asked first.
        if i in self.kept:
            return self.kept[i]
        maps = self.judge.embed(self.style[i : i + 1])
        size = sum(x.nbytes for x in maps)
        if size <= self.left:
            self.kept[i] = maps
            self.left -= size
        return maps
