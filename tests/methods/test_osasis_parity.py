"""OSASIS itself - sampling photos, encoding, training, stylizing - against the official code."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from datamodules import DiffAESamples
from lightning_styles.diffusion.half_way import picture_process
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.models.spn import MappingNetTime
from lightning_styles.pretrained.diffae import CodeStatistics, save_diffae
from tests.golden.fill import load_case
from tests.golden.osasis_world import diffae, distance, excess, fake_clip_of, filled, inputs
from tests.micro import quiet_trainer

NAMES = {"cross": "cross_dom", "in": "in_dom", "re_clip": "recon_clip", "re_l1": "recon_l1", "re_lpips": "recon_lpips"}


class Parity:
    """A parity case: settings, expected tensors, inputs, and networks with the weights that it names."""

    def __init__(self, name: str) -> None:
        self.case, self.expected = load_case(f"osasis/{name}")
        self.config, self.given = self.case["config"], inputs(self.case)

    def autoencoder(self, folder: Path) -> str:
        """The file of A."""
        statistics = CodeStatistics(*(self.given.get(f"conds_{x}", torch.ones(1, 64)) for x in ("mean", "std")))
        save_diffae(folder / "a.safetensors", diffae(self.case, "diffae_A"), statistics, dtype=torch.float32)
        return str(folder / "a.safetensors")

    def spn(self) -> MappingNetTime:
        return filled(MappingNetTime(), self.case["weights"]["spn"]["seed"])


class GoldenOSASIS(OSASIS):
    """The method with the SPN, the pictures and the stand-in for CLIP of a case, noting what it predicts and loses."""

    parity: Parity

    @classmethod
    def of(cls, parity: Parity, folder: Path, **settings: Any) -> "GoldenOSASIS":
        c = parity.config
        method = cls(
            **{
                "diffae": parity.autoencoder(folder), "style_image": "none", "clip": "none", "perceptual": "none",
                "weights": {}, "steps": {"encode": 10, "decode": 5}, "predict_steps": {"encode": 10, "decode": 5},
                "resolution": c["image_size"], "lambda_spn": c["lambda_map"], "t0": c["t0_ratio"], "dropout": False,
            }
            | settings
        )  # fmt: skip
        method.__dict__ |= {"parity": parity, "predictions": [], "noted": []}
        return method

    def configure_model(self) -> None:
        super().configure_model()
        self.spn.load_state_dict(self.parity.spn().state_dict())
        given = self.parity.given
        style = given["img_style_B"]
        self.pictures.copy_(torch.cat([given.get("img_style_A", torch.zeros_like(style)), style]))

    def _load_judges(self) -> None:
        self.judge = lambda x, y: x.new_zeros(len(x))

    def embed(self, images: Tensor) -> Tensor:
        return fake_clip_of(self.parity.given)(images)

    def losses(self, anchors: Any, result: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        self.predictions.append({"cont": result.detach(), "style": reconstruction.detach()})
        return super().losses(anchors, result, reconstruction)

    def total_loss(self, losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        total = super().total_loss(losses, weights)
        weighted = {NAMES[name]: weights[name] * value.item() for name, value in losses.items()}
        self.noted.append(weighted | {"total": total.item()})
        return total


# ---- training


class GoldenPhotos(L.LightningDataModule):
    """Photos that the package samples from A with the noise of the case."""

    def __init__(self, parity: Parity, file: str) -> None:
        super().__init__()
        c, given = parity.config, parity.given
        data = DiffAESamples(diffae=file, size=c["image_size"], steps=c["T_train_back"], latent_steps=c["T_latent"])
        data.trainer = quiet_trainer(Path(file).parent, 1)
        self.photos = []
        for i in range(c["n_iter"]):
            draws = [*given[f"noise_{i}"], *given[f"latent_noise_{i}"]]
            with patch("torch.randn", side_effect=draws):
                self.photos.append({"image": data.sample(list(range(c["batch_size"])), torch.device("cpu"))})

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.photos, batch_size=None)  # type: ignore[arg-type]


class Gradients(L.Callback):
    """Keeps the gradients of the first step and the norms of all."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.norms: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        networks: dict[str, nn.Module] = {"diffae_B": pl_module.B, "map": pl_module.spn}
        found = {
            name: {key: p.grad.clone() for key, p in network.named_parameters() if p.grad is not None}
            for name, network in networks.items()
        }
        flat = {name: torch.cat([g.flatten().double() for g in grads.values()]) for name, grads in found.items()}
        self.norms.append({name: vector.norm().item() for name, vector in flat.items()})
        self.first = self.first or {f"grad_{n}.{key}": g for n, grads in found.items() for key, g in grads.items()}


class Training:
    """Two iterations of the method, and what the case expects of them."""

    def __init__(self, folder: Path) -> None:
        self.parity = parity = Parity("g_training")
        c = parity.config
        self.method = GoldenOSASIS.of(
            parity, folder, iterations=c["n_iter"], lr=c["lr"], spn_lr=c["lr_map"],
            weights={ours: c[theirs] for ours, theirs in NAMES.items()},
            steps={"encode": c["T_train_for"], "decode": c["T_train_back"]},
        )  # fmt: skip
        self.data = GoldenPhotos(parity, self.method.hparams.diffae)
        self.gradients = Gradients()
        run = quiet_trainer(folder, c["n_iter"], callbacks=[self.gradients])
        run.fit(self.method, datamodule=self.data)
        assert run.global_step == c["n_iter"]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tmp_path_factory.mktemp("training"))


def test_every_update_agrees_with_the_reference(training: Training) -> None:
    rules, expected = training.parity.case["tolerance"], training.parity.case["expected"]["per_step"]
    assert len(training.method.noted) == len(expected)
    for number, step in enumerate(expected):
        rule = rules["later_losses" if number else "step0_losses"]
        terms = training.method.noted[number]
        for name in (*NAMES.values(), "total"):
            assert terms[name] == pytest.approx(step[name], rel=rule["rtol"], abs=rule["atol"]), (number, name)
        for name, norm in training.gradients.norms[number].items():
            assert norm == pytest.approx(step[f"grad_norm_{name}"], rel=rules["grad_norms"]["rtol"]), (number, name)
        for name, x_0 in training.method.predictions[number].items():
            clamped = (x_0.abs() >= 1).float().mean().item()
            assert clamped == pytest.approx(step[f"clamped_{name}"], abs=1e-3), (number, name)


def test_the_first_predictions_and_gradients_agree_with_the_reference(training: Training) -> None:
    found = training.gradients.first | {"img_cont_A": training.data.photos[0]["image"]}
    found |= {f"x0_pred_{name}_B": x_0 for name, x_0 in training.method.predictions[0].items()}
    first = {key: tensor for key, tensor in training.parity.expected.items() if key.startswith("step0_")}
    assert len(first) == 9
    for name, tensor in first.items():
        assert distance(found[name.removeprefix("step0_")], tensor) < (2e-3 if "grad" in name else 1e-3), name


def test_the_weights_move_as_in_the_reference(training: Training) -> None:
    method, given, expected = training.method, training.parity.given, training.parity.expected
    start = {"diffae_B": method.A.state_dict(), "map": training.parity.spn().state_dict()}
    found = {"final_map.out_layer.0.bias": method.spn.out_layer[0].bias.detach()}
    for owner, network in (("diffae_B", method.B), ("map", method.spn)):
        for key, tensor in network.state_dict().items():
            found[f"final_delta_{owner}.{key}"] = tensor - start[owner][key]
    with torch.no_grad():
        found["probe_pred_after"] = method.B(given["x_probe"], torch.tensor([500]), given["cond_probe"])
        found["probe_spn_after"] = method.spn(given["x_probe"], torch.tensor([1]))
    for name, tensor in expected.items():
        if not name.startswith("step0_"):
            assert distance(found[name], tensor) < 2e-2, name
    moved = sum(bool(found[f"final_delta_diffae_B.{key}"].any()) for key, _ in method.B.named_parameters())
    assert moved == training.parity.case["expected"]["moved"]


# ---- stylizing


class Stylizing:
    """The method as `predict` uses it on the photos of the case, and the timesteps that its networks were told."""

    def __init__(self, folder: Path) -> None:
        self.parity = parity = Parity("e_samplers")
        self.method = GoldenOSASIS.of(parity, folder, lambda_spn=0.0)  # each call says its own
        self.method.configure_model()
        self.told: dict[str, list[int]] = {"A": [], "B": [], "spn": []}
        for name, network in (("A", self.method.A), ("B", self.method.B), ("spn", self.method.spn)):
            network.register_forward_pre_hook(lambda _, x, name=name: self.told[name].append(int(x[1][0])))
        self.take(diffae(parity.case, "diffae_B"))
        self.up, self.down = (picture_process(parity.config[f"T_infer_{way}"]) for way in ("for", "back"))
        self.photos = parity.given["img_cont_A"]

    def take(self, network: nn.Module) -> None:
        """Have the weights of `network` in B."""
        self.method.B.load_state_dict(network.state_dict(), strict=False)

    def stylize(self, f_ch: int, lambda_spn: float, t0: float = 0.5) -> Tensor:
        self.method.hparams.f_ch = f_ch
        start = self.method.start(self.photos, self.up, t0)
        return self.method.stylize(self.photos, start, self.up, self.down, t0, lambda_spn)

    def check(self, name: str, found: Tensor) -> None:
        assert excess(found, self.parity.expected[name], self.parity.case["tolerance"]) < 1, name


def test_stylizing_agrees_with_the_reference(tmp_path: Path) -> None:
    world = Stylizing(tmp_path)
    strength, told = world.parity.config["lambda_map"], world.parity.case["expected"]
    assert world.parity.config["ref_cond_scale"] == [0, 1]  # of sides 32 and 16
    world.check("stylized", world.stylize(16, strength))
    seen = {"A": "unet_encode", "B": "unet_decode", "spn": "spn"}
    assert world.told == {name: told[f"t_seen_by_{theirs}"] for name, theirs in seen.items()}
    world.check("x_t0", world.method.encode(world.photos, world.up, 0.5)[1])
    world.check("decode_no_mix", world.stylize(64, strength))
    world.check("tester_scales_0123", world.stylize(4, strength) / 2 + 0.5)
    world.take(diffae(world.parity.case, "diffae_A"))
    world.check("recon_A_no_spn", world.stylize(64, 0.0))
