"""Evaluation: the metrics of a configuration behind one `update` and one `compute`.

| key of `metrics` | value | what it adds |
|---|---|---|
| perceptual | perceptual network | `content`: distance of result and source; `twin`: of result and twin |
| lpips | trunk of torchvision | the same two by LPIPS, in place of perceptual |
| identity | identity network | `identity`: cosine similarity of result and source |
| structure | structure network | `structure`: difference of the self-similarities of result and source |
| inception | weights of FID's Inception | `fid`, `kid` |
| art_inception | weights of ArtFID's Inception | `artfid`, with the trunk AlexNet as lpips; `artfid_style`, its FID |
| style_features | perceptual network | `fd`, `kd`, and with a content distance `artfd`: the same in its features |
| dreamsim | folder of DreamSim's files | `dreamsim_content`, `dreamsim_twin`: as content and twin |
| style_images | picture or folder | what results are compared with as the style, in place of the twins |

Distances are taken at the size of the results. Pictures of `style_images` are read as middle squares of the results'
shorter side.

Beside `content` and `twin` stand `content_rel` and `twin_rel`, the same in units of the distance from source to twin: a
result that is the source has 0 and 1, the exact answer 1 and 0. So styles of different strength can be averaged.

Always: `n` pictures; where the exact answer is known `twin_l1`, its pixel distance; against the style images
`spectrum`, the difference of the radially averaged power spectra in decades. Where pictures are of the same prompt,
`diversity` and `dreamsim_diversity`: their distances from each other by the same networks. `artfid_inf` is ArtFID with
FID followed to infinitely many pictures, where there are equally many results and style images, more than 5000.
"""

import copy
import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from lightning_styles.errors import UserError
from lightning_styles.files import existing
from lightning_styles.imaging import find_images
from lightning_styles.metrics.diversity import Diversity
from lightning_styles.metrics.fid import (
    INFINITE,
    LEAST,
    FeatureSets,
    art_fid,
    frechet_at_infinity,
    frechet_distance,
    kernel_distance,
)
from lightning_styles.metrics.identity import IdentitySimilarity
from lightning_styles.metrics.networks import ABOUT, KINDS, load_distances, load_style_networks, required_models
from lightning_styles.metrics.perceptual import PerceptualDistance, PixelDistance
from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.metrics.rapsd import RadialSpectrum, spectrum_distance
from lightning_styles.metrics.structure import StructureDistance
from lightning_styles.square import open_square

log = logging.getLogger(__name__)

STYLE_BATCH = 32
RINGS = 16  # of the spectra, so pictures need 32 pixels each way


class Evaluation(nn.Module):
    """Measures results against their source, their exact stylised twin and a set of style images.

    The twins are the style images unless `metrics` or `set_style_images` gives others. Each rank updates with its own
    pictures; `compute` puts the ranks together and returns the same everywhere.

    Args:
        metrics: key -> name or path, see the table of this module.

    Raises:
        UserError: as `required_models`, and for files that hold something else than their key says.
    """

    def __init__(self, metrics: dict[str, str]) -> None:
        super().__init__()
        required_models(metrics)
        self.metrics = dict(metrics)
        self.sizes: set[tuple[int, int]] = set()
        self.style_files = find_images(existing(metrics["style_images"])) if "style_images" in metrics else []
        self.given_style, self.read_style = bool(self.style_files), False
        self.n, self.twin_n, self.style_n = SumMetric(), SumMetric(), SumMetric()
        self.to_source, self.to_twin = nn.ModuleDict(), nn.ModuleDict({"twin_l1": PixelDistance()})
        self.in_groups, self.gaps = nn.ModuleDict(), nn.ModuleDict()
        for prefix, network in load_distances(metrics).items():
            self.to_source[f"{prefix}content"] = PerceptualDistance(network)
            self.to_twin[f"{prefix}twin"] = PerceptualDistance(network)
            self.in_groups[f"{prefix}diversity"] = Diversity(network)
            self.gaps[f"{prefix}gap"] = PerceptualDistance(network)
        if "identity" in metrics:
            from lightning_styles.pretrained.networks import load_identity

            self.to_source["identity"] = IdentitySimilarity(load_identity(metrics["identity"]))
        if "structure" in metrics:
            from lightning_styles.pretrained.networks import load_structure

            self.to_source["structure"] = StructureDistance(load_structure(metrics["structure"]))
        features = load_style_networks(metrics)
        self.features = nn.ModuleDict(features)
        self.sets = nn.ModuleDict({key: FeatureSets(network.num_features) for key, network in features.items()})
        self.result_spectrum, self.style_spectrum = RadialSpectrum(RINGS), RadialSpectrum(RINGS)

    def another(self) -> "Evaluation":
        """An evaluation of other pictures by the same networks, which are not held twice."""
        metrics = [module for module in self.modules() if isinstance(module, Metric)]
        networks = [*self.features.values(), *(network for metric in metrics for network in metric.children())]
        made = copy.deepcopy(self, {id(network): network for network in networks})
        for module in made.modules():
            if isinstance(module, Metric):
                module.reset()
        made.sizes, made.given_style, made.read_style = set(), bool(made.style_files), False
        return made

    @torch.no_grad()
    def set_style_images(self, images: Tensor) -> None:
        """Compare with these pictures of the style, (N, 3, H, W) in [-1, 1], the same on every rank, not the twins."""
        rank, world = _rank()
        self.given_style = True
        for some in images[rank::world].split(STYLE_BATCH):
            self._add_style(some)

    @torch.no_grad()
    def update(self, result: Tensor, source: Tensor, twin: Tensor | None = None, group: Tensor | None = None) -> None:
        """Add pictures.

        Args:
            result: (B, 3, H, W) in [-1, 1], as the next two.
            source: what they are made from.
            twin: their exact answers.
            group: (B,) int64, the prompt that each is of, for the diversity.

        Raises:
            UserError: pictures of another shape, type or range.
        """
        check_pictures("the evaluation", result, source, *([] if twin is None else [twin]))
        result, source = result.float(), source.float()
        self.sizes.add((result.shape[-2], result.shape[-1]))
        self.n.update(len(result))
        _update(self.to_source, result, source)
        if twin is not None:
            self.twin_n.update(len(twin))
            _update(self.to_twin, result, twin.float())
            _update(self.gaps, source, twin.float())
            if not self.given_style:
                self._add_style(twin)
        if group is not None:
            _update(self.in_groups, result, group)
        self._add_features(result, style=False)
        self.result_spectrum.update(result)

    def _add_style(self, images: Tensor) -> None:
        check_pictures("the evaluation", images)
        images = images.to(self.n.device, torch.float32)
        self.style_n.update(len(images))
        self.style_spectrum.update(images)
        self._add_features(images, style=True)

    def _add_features(self, images: Tensor, style: bool) -> None:
        for key, features in self.features.items() if len(images) else ():
            sets = self.sets[key]
            assert isinstance(sets, FeatureSets)
            sets.update(features(images), style)

    @torch.no_grad()
    def _read_style(self) -> None:
        """Add this rank's share of the files of style images, as large as the results of all ranks."""
        rank, world = _rank()
        sizes = [self.sizes]
        if world > 1:
            sizes = [set() for _ in range(world)]
            torch.distributed.all_gather_object(sizes, self.sizes)
        side = min((side for of_rank in sizes for size in of_rank for side in size), default=0)
        for file in self.style_files[rank::world] if side else ():
            self._add_style(open_square(file, side, "crop"))
        self.read_style = True

    def compute(self) -> dict[str, float]:
        """All values by name; FID and what is made of it are left out, with a warning, for fewer than 16 pictures."""
        if self.style_files and not self.read_style:
            self._read_style()
        n, twins, styled = (int(_value(count)) for count in (self.n, self.twin_n, self.style_n))
        if n == 0:
            raise UserError("There was no picture to measure; check data.images.")
        values = {"n": float(n)}
        groups = [self.to_source, self.to_twin] if twins else [self.to_source]
        values |= {name: _value(measure) for group in groups for name, measure in group.items()}
        for name, gap in self.gaps.items() if twins else ():
            prefix, between = name.removesuffix("gap"), max(_value(gap), 1e-9)
            values |= {f"{prefix}{key}_rel": values[f"{prefix}{key}"] / between for key in ("content", "twin")}
        diversity = {name: _value(measure) for name, measure in self.in_groups.items()}
        values |= {name: value for name, value in diversity.items() if not math.isnan(value)}
        if styled:
            spectra = _computed(self.result_spectrum), _computed(self.style_spectrum)
            values["spectrum"] = float(spectrum_distance(*spectra))
            for key in self.features:
                values |= self._to_style(key, values.get("content"))
        return values

    def _to_style(self, key: str, content: float | None) -> dict[str, float]:
        """What the features of `key` say of both sets."""
        style, results = _computed(self.sets[key])
        fid, kid, both = {
            "inception": ("fid", "kid", ""), "art_inception": ("artfid_style", "", "artfid"),
            "style_features": ("fd", "kd", "artfd"),
        }[key]  # fmt: skip
        least = min(len(style), len(results))
        values = {kid: kernel_distance(style, results)} if kid and least >= 2 else {}
        if least < LEAST:
            log.log(
                logging.DEBUG if _rank()[0] else logging.WARNING,
                "%s left out: %d results and %d style images, it needs at least %d of each%s.",
                fid, len(results), len(style), LEAST, f"; {kid} stays" if kid else "",
            )  # fmt: skip
            return values
        values[fid] = frechet_distance(style, results)
        if both and content is not None:
            values[both] = art_fid(content, values[fid])
            if key == "art_inception" and len(style) == len(results) > INFINITE:
                values["artfid_inf"] = art_fid(content, frechet_at_infinity(style, results))
        return values

    def notes(self) -> list[str]:
        """What the numbers depend on: networks with their sha256, and the resolution."""
        from lightning_styles.pretrained import fingerprint, locate

        used = [
            f"{key}: {name} (sha256 {fingerprint(locate(name, KINDS[key]))[:12]})"
            for key, name in self.metrics.items()
            if KINDS[key] != "file"
        ]
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(self.sizes))
        lines = [*used, f"resolution: {sizes} (height x width), in which all distances of pictures are taken"]
        if self.style_files:
            lines.append(f"style images: {self.metrics['style_images']}, {len(self.style_files)}, as middle squares")
        return lines + [text for key, text in ABOUT.items() if key in self.metrics]


def _update(measures: nn.ModuleDict, x: Tensor, y: Tensor) -> None:
    for measure in measures.values():
        assert isinstance(measure, Metric)
        measure.update(x, y)


def _computed(metric: nn.Module) -> Any:
    assert isinstance(metric, Metric)
    with warnings.catch_warnings():  # a rank without pictures has never updated, which is no mistake
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        return metric.compute()


def _value(metric: nn.Module) -> float:
    return float(_computed(metric))


def _rank() -> tuple[int, int]:
    """Rank and number of processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
