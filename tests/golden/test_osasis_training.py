"""The training loop of OSASIS, written from the package's parts alone, against the official one."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_styles.diffusion.ddim import decode, encode, sample_codes, step_down
from lightning_styles.diffusion.respacing import (
    Respaced,
    constant_betas,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
)
from lightning_styles.losses.osasis import Anchors, embedding_terms, picture_terms
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.models.spn import MappingNetTime
from lightning_styles.pretrained.diffae import save_diffae
from tests.golden.fill import load_case
from tests.golden.osasis_world import diffae, distance, fake_clip_of, filled, inputs
from tests.micro import quiet_trainer

NAMES = {"cross": "cross_dom", "in": "in_dom", "re_clip": "recon_clip", "re_l1": "recon_l1", "re_lpips": "recon_lpips"}


class Training:
    """The loop, keeping of every update what the reference kept."""

    def __init__(self) -> None:
        self.case, self.expected = load_case("osasis/g_training")
        self.config, self.given = c, given = self.case["config"], inputs(self.case)
        self.A, self.B = (diffae(self.case, f"diffae_{name}") for name in "AB")
        self.spn = filled(MappingNetTime(), self.case["weights"]["spn"]["seed"])
        self.start = {"diffae_B": state_of(self.B), "map": state_of(self.spn)}
        self.optimizers = [
            torch.optim.Adam(self.B.parameters(), lr=c["lr"]),
            torch.optim.Adam(self.spn.parameters(), lr=c["lr_map"]),
        ]
        self.up, self.down = (
            Respaced.of(linear_betas(), even_timesteps(c[f"T_train_{way}"])) for way in ("for", "back")
        )
        self.prior = Respaced.of(constant_betas(), even_timesteps(c["T_latent"]))
        self.clip = fake_clip_of(given)
        self.style_a, self.style_b = given["img_style_A"], given["img_style_B"]
        self.steps: list[dict[str, Any]] = []

    def run(self) -> "Training":
        for iteration in range(self.config["n_iter"]):
            self.iterate(iteration)
        return self

    @torch.no_grad()
    def photos(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Pictures of A's own and their codes, encoded again from the pictures."""
        given, latent_net = self.given, self.A.latent_net
        noise = given[f"latent_noise_{iteration}"]
        z = sample_codes(latent_net, noise, self.prior, given["conds_mean"], given["conds_std"])
        steps = reversed(range(len(self.down)))
        photo = decode(partial(self.predict, self.A, z), given[f"noise_{iteration}"], self.down, steps)
        return photo, self.A.encoder(photo)

    @staticmethod
    def predict(network: nn.Module, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, z)

    def iterate(self, iteration: int) -> None:
        c = self.config
        photo, z = self.photos(iteration)
        with torch.no_grad():
            pictures, codes = torch.cat([self.style_a, photo]), torch.cat([self.A.encoder(self.style_a), z])
            anchors = Anchors(*(self.clip(image) for image in (self.style_a, self.style_b, photo)))
        indices = encode_indices(len(self.up), c["t0_ratio"])
        x = encode(partial(self.predict, self.A, codes), pictures, self.up, indices)
        strength = torch.tensor([1.0] + [c["lambda_map"]] * len(photo))[:, None, None, None]
        for j in decode_indices(len(self.down), c["t0_ratio"]):
            x = x + strength * self.spn(pictures, torch.full((len(x),), j))
            x, x_0 = step_down(self.down, j, x, self.B(x, self.down.t(j, x), codes))
            x = x.detach()
            self.update(anchors, photo, x_0[1:], x_0[:1])

    def update(self, anchors: Anchors, photo: Tensor, result: Tensor, again: Tensor) -> None:
        terms = embedding_terms(anchors, self.clip(result), self.clip(again))
        terms |= picture_terms(again, self.style_b, lambda x: x.new_zeros(len(x)))
        terms = {ours: self.config[theirs] * terms[ours] for ours, theirs in NAMES.items()}
        total = sum(terms.values(), torch.tensor(0.0))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        step = {NAMES[name]: value.item() for name, value in terms.items()} | {"total": total.item()}
        step |= {"clamped_cont": clamped(result), "clamped_style": clamped(again)}
        step |= {"grad_norm_diffae_B": gradient_norm(self.B), "grad_norm_map": gradient_norm(self.spn)}
        parameters = list(self.B.parameters())
        step |= {"tensors": len(parameters), "tensors_with_grad": sum(p.grad is not None for p in parameters)}
        if not self.steps:
            self.first = {"img_cont_A": photo, "x0_pred_cont_B": result.detach(), "x0_pred_style_B": again.detach()}
            for owner, network in (("diffae_B", self.B), ("map", self.spn)):
                gradients = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
                self.first |= {f"grad_{owner}.{k}": gradient for k, gradient in gradients.items()}
        self.steps.append(step)
        for optimizer in self.optimizers:
            optimizer.step()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def clamped(x_0: Tensor) -> float:
    return (x_0.abs() >= 1).float().mean().item()


def gradient_norm(network: nn.Module) -> float:
    norms = [p.grad.double().norm() for p in network.parameters() if p.grad is not None]
    return torch.stack(norms).norm().item()


@pytest.fixture(scope="module")
def training() -> Training:
    return Training().run()


def test_every_update_agrees_with_the_reference(training: Training) -> None:
    rules = training.case["tolerance"]
    assert len(training.steps) == len(training.case["expected"]["per_step"])
    for number, (found, expected) in enumerate(zip(training.steps, training.case["expected"]["per_step"], strict=True)):
        rule = rules["later_losses" if number else "step0_losses"]
        for name in (*NAMES.values(), "total"):
            assert found[name] == pytest.approx(expected[name], rel=rule["rtol"], abs=rule["atol"]), (number, name)
        for name in ("grad_norm_diffae_B", "grad_norm_map"):
            assert found[name] == pytest.approx(expected[name], rel=rules["grad_norms"]["rtol"]), (number, name)
        for name in ("clamped_cont", "clamped_style"):
            assert found[name] == pytest.approx(expected[name], abs=1e-3), (number, name)
        assert (found["tensors"], found["tensors_with_grad"]) == (expected["tensors"], expected["tensors_with_grad"])


def test_the_first_predictions_and_gradients_agree_with_the_reference(training: Training) -> None:
    for name, expected in training.expected.items():
        if name.startswith("step0_"):
            found = training.first[name.removeprefix("step0_")].detach()
            assert distance(found, expected) < (2e-3 if "grad" in name else 1e-3), name


def test_the_weights_move_as_in_the_reference(training: Training) -> None:
    given, expected = training.given, training.expected
    found = {"final_map.out_layer.0.bias": training.spn.out_layer[0].bias.detach()}
    for owner, network in (("diffae_B", training.B), ("map", training.spn)):
        for key, tensor in network.state_dict().items():
            found[f"final_delta_{owner}.{key}"] = tensor - training.start[owner][key]
    with torch.no_grad():
        found["probe_pred_after"] = training.B(given["x_probe"], torch.tensor([500]), given["cond_probe"])
        found["probe_spn_after"] = training.spn(given["x_probe"], torch.tensor([1]))
    for name, tensor in expected.items():
        if not name.startswith("step0_"):
            assert distance(found[name], tensor) < 2e-2, name
    moved = sum(bool(found[f"final_delta_diffae_B.{k}"].any()) for k, _ in training.B.named_parameters())
    assert moved == training.case["expected"]["moved"]


# ---- the method itself


class GoldenOSASIS(OSASIS):
    """The method with the networks, pictures and the stand-in for CLIP of the parity case."""

    golden: Training

    def configure_model(self) -> None:
        super().configure_model()
        filled(self.spn, self.golden.case["weights"]["spn"]["seed"])
        self.pictures.copy_(torch.cat([self.golden.style_a, self.golden.style_b]))

    def _load_judges(self) -> None:
        self.judge = lambda x, y: x.new_zeros(len(x))

    def embed(self, images: Tensor) -> Tensor:
        return self.golden.clip(images)


class GoldenPhotos(L.LightningDataModule):
    def __init__(self, training: Training) -> None:
        super().__init__()
        self.photos = [{"image": training.photos(i)[0]} for i in range(training.config["n_iter"])]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.photos, batch_size=None)  # type: ignore[arg-type]


def test_the_method_moves_its_weights_as_in_the_reference(training: Training, tmp_path: Path) -> None:
    c, file = training.config, tmp_path / "a.safetensors"
    save_diffae(file, training.A, dtype=torch.float32)
    weights = {ours: c[theirs] for ours, theirs in NAMES.items()}
    method = GoldenOSASIS(
        diffae=str(file), style_image="none", clip="none", perceptual="none", iterations=c["n_iter"], weights=weights,
        resolution=c["image_size"], lr=c["lr"], spn_lr=c["lr_map"], lambda_spn=c["lambda_map"], t0=c["t0_ratio"],
        steps={"encode": c["T_train_for"], "decode": c["T_train_back"]}, predict_steps={"encode": 100, "decode": 50},
        dropout=False,
    )  # fmt: skip
    method.__dict__["golden"] = training
    run = quiet_trainer(tmp_path, training.config["n_iter"])
    run.fit(method, datamodule=GoldenPhotos(training))
    assert run.global_step == training.config["n_iter"]
    given, expected = training.given, training.expected
    with torch.no_grad():
        predicted = method.B(given["x_probe"], torch.tensor([500]), given["cond_probe"])
        offset = method.spn(given["x_probe"], torch.tensor([1]))
    delta_b = method.B.out[2].bias - training.start["diffae_B"]["out.2.bias"]
    delta_map = method.spn.out_layer[0].weight - training.start["map"]["out_layer.0.weight"]
    assert distance(delta_b.detach(), expected["final_delta_diffae_B.out.2.bias"]) < 2e-2
    assert distance(delta_map.detach(), expected["final_delta_map.out_layer.0.weight"]) < 2e-2
    assert distance(predicted, expected["probe_pred_after"]) < 2e-2
    assert distance(offset, expected["probe_spn_after"]) < 2e-2
