"""One training step of every LoRA method, and what they draw, against plain lines."""

from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import Pictures, Prompts
from lightning_styles import noise
from lightning_styles.commands.stylize import main as stylize
from lightning_styles.imaging import read_image
from lightning_styles.methods.concept_slider import ConceptSlider
from lightning_styles.methods.lora_method import STYLE, LoRAMethod
from lightning_styles.methods.pair_customization import CONTENT, PairCustomization
from lightning_styles.methods.style_guidance import StyleGuidance
from lightning_styles.methods.style_lora import StyleLoRA
from lightning_styles.models.adapters import adapter_parameters
from tests.golden.fill import fill_, relative_error, values
from tests.methods.lora_lines import ALPHA_BAR, Plain, factors
from tests.micro import Micro, quiet_trainer, write_picture

pytest_plugins = ["tests.micro"]
LEARNING: dict[str, Any] = {"iterations": 1, "rank": 4, "alpha": 2.0, "lr": 0.01, "weight_decay": 0.1}
NOISE = {purpose: values(purpose, (4, 4, 8, 8), 7) for purpose in ("noise", "posterior")}
PROMPTS = ["a photo of a woman", "a drawing of hair"]


class FirstStep(L.Callback):
    """Gradients of the first optimizer step."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {k: p.grad.clone() for k, p in adapter_parameters(pl_module.unet, STYLE).items()}


def two_pairs() -> dict[str, Any]:
    """A batch of pairs whose files had all different sizes."""
    return {
        "content": values("content", (2, 3, 32, 32), 1).clamp(-1, 1),
        "style": values("style", (2, 3, 32, 32), 1).clamp(-1, 1),
        "prompt": PROMPTS,
        "content_size": torch.tensor([[40, 50], [60, 70]]),
        "style_size": torch.tensor([[44, 55], [66, 77]]),
        "crop": torch.tensor([[0, 3], [5, 0]]),
        "name": ["a", "b"],
        "row": ["a", "b"],
    }


def step(method: LoRAMethod, batch: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One step with the given noise and t of the seed 5: the adapter before and after, gradients and logged losses."""
    method.configure_model()
    fill_(dict(adapter_parameters(method.unet, STYLE)), 3, scale=0.2)
    method.randn_like = lambda tensor, purpose: NOISE[purpose][: len(tensor)]  # type: ignore[method-assign]
    method.generator = lambda purpose: torch.Generator().manual_seed(5)  # type: ignore[method-assign]
    before, seen = factors(method.unet, STYLE), FirstStep()
    run = quiet_trainer(folder, 1, callbacks=[seen])
    run.fit(method, train_dataloaders=DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    logged = {k.removeprefix("train/"): float(v) for k, v in run.callback_metrics.items()}
    return {"before": before, "after": factors(method.unet, STYLE), "gradients": seen.gradients, "losses": logged}


def check_step(found: dict[str, Any], losses: dict[str, Tensor]) -> None:
    """The losses, their gradients, and AdamW's step on them: lr sign(g), after a decay by lr weight_decay."""
    total = torch.stack(list(losses.values())).sum()
    for name, loss in (losses | {"total": total}).items():
        assert found["losses"][name] == pytest.approx(loss.item(), rel=1e-4)
    leaves = {f"{layer}.lora_{x}.weight": p for layer, pair in found["before"].items() for x, p in zip("BA", pair)}  # noqa: B905
    expected = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    assert found["gradients"].keys() == expected.keys()
    assert all(relative_error(found["gradients"][key], gradient) < 1e-3 for key, gradient in expected.items())
    lr, decay = LEARNING["lr"], LEARNING["weight_decay"]
    after = {f"{layer}.lora_{x}.weight": p for layer, pair in found["after"].items() for x, p in zip("BA", pair)}  # noqa: B905
    wanted = {key: leaves[key] * (1 - lr * decay) - lr * gradient.sign() for key, gradient in expected.items()}
    near = torch.cat([((after[key] - p).abs() < 0.05 * lr).flatten() for key, p in wanted.items()])
    assert near.float().mean() > 0.99  # but where the gradient is about 0


@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["pictures", "pairs"])
def test_a_step_of_style_lora(micro: Micro, tmp_path: Path, kind: str, dropout: float) -> None:
    """|| eps - eps_{W + alpha / rank B A}(z_t, t, c) ||^2, the caption c empty at a dropout of 1."""
    path = micro.base if kind == "pictures" else micro.base_xl
    batch = two_pairs()
    images, captions = batch["style"], [f"{prompt} in cartoon style" for prompt in PROMPTS]
    time_ids = torch.tensor([[44, 55, 0, 3, 32, 32], [66, 77, 5, 0, 32, 32]])
    if kind == "pictures":
        batch = {"image": images, "caption": captions, "name": ["a", "b"]}
    method = StyleLoRA(base=path, style_phrase="in cartoon style", caption_dropout=dropout, **LEARNING)
    found = step(method, batch, tmp_path)

    plain, vae = Plain(path), Plain(path).base.vae
    posterior = vae.encode(images).latent_dist
    z = (posterior.mean + posterior.std * NOISE["posterior"][:2]) * vae.config.scaling_factor
    t, eps = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(5)), NOISE["noise"][:2]
    told = plain.told([""] * 2 if dropout else captions, time_ids)
    eps_hat = plain.eps(plain.noised(z, eps, t), t, told, found["before"], 2.0 / 4)
    check_step(found, {"noise": (eps - eps_hat).square().mean()})


@pytest.mark.parametrize("kind", ["base", "base_xl"])
def test_a_step_of_the_slider(micro: Micro, tmp_path: Path, kind: str) -> None:
    """Forwards the twin, backwards the photo, with one eps and one t for both of a pair."""
    path, batch = getattr(micro, kind), two_pairs()
    found = step(ConceptSlider(base=path, style_phrase="in cartoon style", **LEARNING), batch, tmp_path)

    plain, losses = Plain(path), {}
    t = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(5))
    for name, way, rows in (("style", 1, slice(0, 2)), ("content", -1, slice(2, 4))):
        posterior = plain.base.vae.encode(batch[name]).latent_dist
        z = (posterior.mean + posterior.std * NOISE["posterior"][rows]) * plain.base.vae.config.scaling_factor
        time_ids = torch.cat([batch[f"{name}_size"], batch["crop"], torch.full((2, 2), 32)], 1)
        told, eps = plain.told(PROMPTS, time_ids), NOISE["noise"][:2]
        eps_hat = plain.eps(plain.noised(z, eps, t), t, told, found["before"], way * 2.0 / 4)
        losses[name] = (eps - eps_hat).square().mean()
    check_step(found, losses)


class Given(L.LightningDataModule):
    """One batch, again and again."""

    def __init__(self, batch: dict[str, Any]) -> None:
        super().__init__()
        self.batch, self.views = batch, len(batch["row"])

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("updates", ["sequential", "joint"])
def test_a_step_of_pair_customization(micro: Micro, tmp_path: Path, updates: str) -> None:
    """Equations 4 and 6 of arXiv 2405.01536 with Min-SNR weights and offset noise; the style sees the moved content."""
    settings = {key: LEARNING[key] for key in ("iterations", "lr", "weight_decay")} | {"updates": updates}
    ranks = {"content_rank": 4, "style_rank": 4, "style_from": 0, "snr_gamma": 0.01, "noise_offset": 0.5}
    path, batch, phrase = micro.base_xl, two_pairs(), "in cartoon style"
    method = PairCustomization(base=path, style_phrase=phrase, **settings, **ranks)  # type: ignore[arg-type]
    method.configure_model()
    for seed, name in enumerate((CONTENT, STYLE)):
        fill_({k: p for k, p in adapter_parameters(method.unet, name).items() if "lora_B" in k}, seed, scale=0.2)
    purposes = {"posterior of content": 2, "posterior of style": 2, "noise": 2, "noise offset": 2}
    drawn = {purpose: values(purpose, (count, 4, 8, 8), 7) for purpose, count in purposes.items()}
    drawn["noise offset"] = drawn["noise offset"][..., :1, :1]
    method.randn_like = lambda tensor, purpose: drawn[purpose]  # type: ignore[method-assign]
    method.generator = lambda purpose: torch.Generator().manual_seed(5)  # type: ignore[method-assign]
    before = {name: factors(method.unet, name) for name in (CONTENT, STYLE)}
    run = quiet_trainer(tmp_path, 1)
    run.fit(method, datamodule=Given(batch))

    plain, lr, decay = Plain(path), LEARNING["lr"], LEARNING["weight_decay"]
    t = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(5))
    eps, a = drawn["noise"] + 0.5 * drawn["noise offset"], ALPHA_BAR[t].float()
    weight = ((a / (1 - a)).clamp(max=0.01) / (a / (1 - a))).view(2, 1, 1, 1)
    assert weight.max() < 0.9

    def loss(name: str, prompts: list[str], loras: Any) -> Tensor:
        posterior = plain.base.vae.encode(batch[name]).latent_dist
        z = (posterior.mean + posterior.std * drawn[f"posterior of {name}"]) * plain.base.vae.config.scaling_factor
        time_ids = torch.cat([batch[f"{name}_size"], batch["crop"], torch.full((2, 2), 32)], 1)
        eps_hat = plain.eps(plain.noised(z, eps, t), t, plain.told(prompts, time_ids), loras, 1.0)
        return (weight * (eps - eps_hat).square()).mean()

    def stepped(loss: Tensor, loras: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """B after AdamW's first step."""
        gradients = torch.autograd.grad(loss, [B for B, _ in loras.values()])
        steps = zip(loras.items(), gradients, strict=True)
        return {k: (B * (1 - lr * decay) - lr * g.sign()).detach() for (k, (B, _)), g in steps}

    content, style = before[CONTENT], before[STYLE]
    losses = {"content": loss("content", PROMPTS, content)}
    after = {CONTENT: stepped(losses["content"], content)}
    seen = {k: after[CONTENT][k] if updates == "sequential" else B.detach() for k, (B, _) in content.items()}
    both = {k: (torch.cat([seen[k], B], 1), torch.cat([content[k][1], A])) for k, (B, A) in style.items()}
    losses["style"] = loss("style", [f"{prompt} {phrase}" for prompt in PROMPTS], both)
    after[STYLE] = stepped(losses["style"], style)
    for name, expected in losses.items():
        assert float(run.callback_metrics[f"train/{name}"]) == pytest.approx(expected.item(), rel=1e-3)
    for name, expected in after.items():
        found = factors(method.unet, name)
        assert all(torch.equal(found[k][1], before[name][k][1]) for k in found), "A is fixed"
        near = torch.cat([((found[k][0] - B).abs() < 0.05 * lr).flatten() for k, B in expected.items()])
        assert near.float().mean() > 0.99


# ---- drawing

DRAWING: dict[str, Any] = {
    "size": 32,
    "steps": 3,
    "guidance": 2.0,
    "strength": 0.25,
    "style_phrase": "in cartoon style",
}
STARTS = [None, 400, 0]  # of t = 667, 334, 1: all, the last two, none


def drawn(plain: Plain, loras: Any, x: Tensor, words: str, settings: dict[str, Any]) -> Tensor:
    """Equation 11 of arXiv 2405.01536, or 3 with guidance, from `style_start` on; before it the base alone."""
    empty, prompt, styled = (plain.told([one]) for one in ("", words, f"{words} in cartoon style"))
    strength, guidance, start = (settings[key] for key in ("strength", "guidance", "style_start"))

    def predict(x: Tensor, t: int) -> Tensor:
        time, active = torch.tensor([t]), start is None or t <= start
        if active and settings["mode"] == "scale":
            without, with_ = (plain.eps(x, time, one, loras, strength) for one in (empty, styled))
            return without + guidance * (with_ - without)
        without, with_ = (plain.eps(x, time, one, {}, 0.0) for one in (empty, prompt))
        eps = without + guidance * (with_ - without)
        return eps + strength * (plain.eps(x, time, styled, loras, 1.0) - with_) if active else eps

    return plain.down(x, settings["steps"], predict)


def redrawn(plain: Plain, loras: Any, photo: Tensor, words: str, settings: dict[str, Any]) -> Tensor:
    """The photo inverted under its prompt and drawn again without classifier-free guidance, as it was inverted."""
    prompt = plain.told([words])
    x = plain.up(photo, settings["steps"], lambda x, t: plain.eps(x, torch.tensor([t]), prompt, {}, 0.0))
    return drawn(plain, loras, x, words, settings | {"guidance": 1.0})


@torch.no_grad()
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mode", ["guidance", "scale"])
def test_predict_draws_prompts_and_photos_by_the_formulas(
    micro: Micro, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, start: int | None
) -> None:
    settings: dict[str, Any] = DRAWING | {"mode": mode, "style_start": start}
    own = {key: value for key, value in settings.items() if key != "style_phrase"}
    styles: Any = [{"lora": micro.lora, "phrase": "in cartoon style", "share": 1.0}]
    method, run = StyleGuidance(base=micro.base, styles=styles, **own), quiet_trainer(tmp_path, 1)
    photo = write_picture(tmp_path / "photo.png", 32, 32)
    caplog.set_level("INFO")
    new: list[Any] = [Prompts(prompts=PROMPTS, batch_size=2), Pictures(images=photo, captions="a woman", resolution=32)]
    batches, said = [], []
    for data in new:
        caplog.clear()
        batches.append(run.predict(method, datamodule=data)[0])  # type: ignore[index]
        said.append([text for text in caplog.messages if "guidance" in text])
    assert [len(texts) for texts in said] == [0, 1]
    told = "without classifier-free guidance: guidance 2, scheduler base and size 32 are for prompts alone"
    assert told in said[1][0]

    plain, loras = Plain(micro.base), factors(method.unet, "style0")
    noises = [torch.randn(1, 4, 8, 8, generator=noise.generator(0, name, "drawing")) for name in batches[0]["name"]]  # type: ignore[call-overload,index]
    expected = [drawn(plain, loras, x, words, settings) for x, words in zip(noises, PROMPTS, strict=True)]
    expected.append(redrawn(plain, loras, read_image(photo)[None], "a photo of a woman", settings))
    found = [image for batch in batches for image in batch["image"]]  # type: ignore[call-overload,index]
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other[0].clamp(-1, 1)) < 3e-3


def test_stylize_takes_what_is_set_there(micro: Micro, tmp_path: Path) -> None:
    """`--set style_start=400` and others, on a checkpoint of a method that trains."""
    method, run = StyleLoRA(base=micro.base, **(LEARNING | DRAWING)), quiet_trainer(tmp_path, 1)
    batch = {"image": torch.zeros(1, 3, 32, 32), "caption": ["x"]}
    run.fit(method, train_dataloaders=DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    fill_(dict(adapter_parameters(method.unet, STYLE)), 3, scale=0.4)
    run.save_checkpoint(tmp_path / "style.ckpt", weights_only=True)
    photo, plain, loras = write_picture(tmp_path / "photo.png", 32, 32), Plain(micro.base), factors(method.unet, STYLE)
    shown: list[Tensor] = []
    for start in STARTS:
        settings: dict[str, Any] = DRAWING | {"mode": "scale", "style_start": start, "strength": 1.0}
        words = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
        changes = [word for pair in words for word in ("--set", pair)]
        out = tmp_path / f"out{start}"
        assert (
            stylize([photo, "--style", str(tmp_path / "style.ckpt"), "--out", str(out), *changes, "--device", "cpu"])
            == 0
        )
        (file,) = out.glob("*.png")
        shown.append(read_image(file))
        with torch.no_grad():
            scaled = {layer: (B * LEARNING["alpha"] / LEARNING["rank"], A) for layer, (B, A) in loras.items()}
            expected = redrawn(plain, scaled, read_image(photo)[None], "a photo", settings)[0].clamp(-1, 1)
        assert ((shown[-1] - expected).abs() < 2 / 127.5).float().mean() > 0.99
    assert all((a - b).abs().max() > 0.1 for a, b in combinations(shown, 2))
