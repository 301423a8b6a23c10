"""Evaluation: the metrics of a configuration behind one `update` and one `compute`.

| key of `metrics` | value | what it adds |
|---|---|---|
| perceptual | perceptual network | `content`: distance of result and source; `twin`: of result and twin |
| lpips | trunk of torchvision | the same two by LPIPS, in place of perceptual |
| identity | identity network | `identity`: cosine similarity of result and source |
| structure | structure network | `structure`: difference of the self-similarities of result and source |
| style_features | perceptual network | `fid`, `kid`, and with a content distance `artfid` |
| inception | weights of FID's Inception | the same by Inception, in place of style_features |
| dreamsim | folder of DreamSim's files | `dreamsim_content`, `dreamsim_twin`: as content and twin |

Beside `content` and `twin` stand `content_rel` and `twin_rel`, the same in units of the distance from source to twin: a
result that is the source has 0 and 1, the exact answer 1 and 0. So styles of different strength can be averaged.

Always: `n` pictures; where the exact answer is known `twin_l1`, its pixel distance; against the style images
`spectrum`, the difference of the radially averaged power spectra in decades. Where pictures are of the same prompt,
`diversity` and `dreamsim_diversity`: their distances from each other by the same networks.
"""

import copy
import difflib
import logging
import math
import warnings

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from lightning_styles.errors import UserError
from lightning_styles.metrics.diversity import Diversity
from lightning_styles.metrics.fid import (
    LEAST,
    FrechetDistance,
    InceptionFeatures,
    KernelDistance,
    PooledFeatures,
    art_fid,
)
from lightning_styles.metrics.identity import IdentitySimilarity
from lightning_styles.metrics.perceptual import PerceptualDistance, PixelDistance, load_distance
from lightning_styles.metrics.rapsd import RadialSpectrum, spectrum_distance
from lightning_styles.metrics.structure import StructureDistance

log = logging.getLogger(__name__)

KINDS = {
    "perceptual": "perceptual",
    "lpips": "lpips",
    "identity": "identity",
    "structure": "structure",
    "style_features": "perceptual",
    "inception": "inception",
    "dreamsim": "dreamsim",
}
EITHER = (("perceptual", "lpips"), ("style_features", "inception"))
STYLE_BATCH = 32
RINGS = 16  # of the spectra, so pictures need 32 pixels each way


def required_models(metrics: dict[str, str]) -> list[tuple[str, str]]:
    """(name or path, kind) of every file that `metrics` reads.

    Raises:
        UserError: an unknown key, or two keys that exclude each other.
    """
    for key in metrics:
        if key not in KINDS:
            close = difflib.get_close_matches(key, KINDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(KINDS)}."
            raise UserError(f"There is no metric {key!r}: {hint}")
    for first, second in EITHER:
        if first in metrics and second in metrics:
            raise UserError(f"metrics has {first} and {second}, which measure the same; keep one of them.")
    return list(dict.fromkeys((name, KINDS[key]) for key, name in metrics.items()))


class Evaluation(nn.Module):
    """Measures results against their source, their exact stylised twin and a set of style images.

    The twins are the style images unless `set_style_images` gives others. Each rank updates with its own
    pictures; `compute` puts the ranks together and returns the same everywhere.

    Args:
        metrics: key -> name or path, see the table of this module.
    """

    def __init__(self, metrics: dict[str, str]) -> None:
        super().__init__()
        required_models(metrics)
        self.metrics = dict(metrics)
        self.sizes: set[tuple[int, int]] = set()
        self.given_style = False
        self.n, self.twin_n, self.style_n = SumMetric(), SumMetric(), SumMetric()
        self.to_source, self.to_twin = nn.ModuleDict(), nn.ModuleDict({"twin_l1": PixelDistance()})
        self.in_groups, self.gaps = nn.ModuleDict(), nn.ModuleDict()
        for prefix, network in _distances(metrics).items():
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
        self.features = _style_network(metrics)
        if self.features is not None:
            self.fid = FrechetDistance(self.features.num_features)
            self.kid = KernelDistance(self.features.num_features)
        self.result_spectrum, self.style_spectrum = RadialSpectrum(RINGS), RadialSpectrum(RINGS)

    def another(self) -> "Evaluation":
        """An evaluation of other pictures by the same networks, which are not held twice."""
        metrics = [module for module in self.modules() if isinstance(module, Metric)]
        networks = [self.features, *(network for metric in metrics for network in metric.children())]
        made = copy.deepcopy(self, {id(network): network for network in networks if network is not None})
        for module in made.modules():
            if isinstance(module, Metric):
                module.reset()
        made.sizes, made.given_style = set(), False
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
        """
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
        if self.features is not None:
            features = self.features(result)
            self.fid.update(features, real=False)
            self.kid.update(features, real=False)
        self.result_spectrum.update(result)

    def _add_style(self, images: Tensor) -> None:
        images = images.to(self.n.device, torch.float32)
        self.style_n.update(len(images))
        self.style_spectrum.update(images)
        if self.features is not None and len(images):
            features = self.features(images)
            self.fid.update(features, real=True)
            self.kid.update(features, real=True)

    def compute(self) -> dict[str, float]:
        """All values by name; FID and ArtFID are left out, with a warning, for fewer than 16 pictures."""
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
        if styled and self.features is not None:
            values |= self._to_style(min(n, styled), values.get("content"))
        return values

    def _to_style(self, least: int, content: float | None) -> dict[str, float]:
        assert self.features is not None
        for real in (True, False):  # a rank without pictures must have a state of the right shape to exchange
            nothing = torch.zeros(0, self.features.num_features, device=self.kid.device)
            self.kid.update(nothing, real=real)
            self.fid.update(nothing, real=real)
        values = {"kid": _value(self.kid)} if least >= 2 else {}
        if least < LEAST:
            log.log(
                logging.DEBUG if _rank()[0] else logging.WARNING,
                "FID left out: %d pictures, it needs at least %d on each side; KID stays.",
                least,
                LEAST,
            )
            return values
        values["fid"] = _value(self.fid)
        return values if content is None else values | {"artfid": art_fid(content, values["fid"])}

    def notes(self) -> list[str]:
        """What the numbers depend on: networks with their sha256, and the resolution."""
        from lightning_styles.pretrained import fingerprint, locate

        used = [
            f"{key}: {name} (sha256 {fingerprint(locate(name, KINDS[key]))[:12]})" for key, name in self.metrics.items()
        ]
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(self.sizes))
        lines = [*used, f"resolution: {sizes} (height x width)"]
        if "inception" in self.metrics:
            lines.append("fid, kid and artfid: pictures resized to 299 x 299, bilinear, antialiased")
        if "dreamsim" in self.metrics:
            lines.append(
                "dreamsim: ensemble, 1 - cosine similarity, pictures resized to 224 x 224, bicubic, antialiased"
            )
        if "style_features" in self.metrics:
            lines.append("fid, kid and artfid are in features of style_features: comparable only with each other")
        return lines


def _update(measures: nn.ModuleDict, x: Tensor, y: Tensor) -> None:
    for measure in measures.values():
        assert isinstance(measure, Metric)
        measure.update(x, y)


def _computed(metric: nn.Module) -> Tensor:
    assert isinstance(metric, Metric)
    with warnings.catch_warnings():  # a rank without pictures has never updated, which is no mistake
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        return metric.compute()


def _value(metric: nn.Module) -> float:
    return float(_computed(metric))


def _distances(metrics: dict[str, str]) -> dict[str, nn.Module]:
    """The networks that measure how far two pictures are apart, by what the names of their values begin with."""
    found: dict[str, nn.Module] = {}
    if "lpips" in metrics or "perceptual" in metrics:
        found[""] = load_distance(metrics.get("lpips"), metrics.get("perceptual"))
    if "dreamsim" in metrics:
        from lightning_styles.metrics.dreamsim import load_dreamsim

        found["dreamsim_"] = load_dreamsim(metrics["dreamsim"])
    return found


def _style_network(metrics: dict[str, str]) -> PooledFeatures | InceptionFeatures | None:
    if "inception" in metrics:
        return InceptionFeatures(metrics["inception"])
    if "style_features" in metrics:
        from lightning_styles.pretrained.networks import load_perceptual

        return PooledFeatures(load_perceptual(metrics["style_features"]))
    return None


def _rank() -> tuple[int, int]:
    """Rank and number of processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
