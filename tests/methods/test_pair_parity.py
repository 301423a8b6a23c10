"""PairCustomization against the official code: bases, three training steps through Lightning, and files."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.methods.pair_customization import CONTENT, STYLE, PairCustomization
from lightning_styles.models.adapters import adapter_state, lora_layers
from lightning_styles.models.orthogonal import orthonormal_basis
from lightning_styles.pretrained.stable_diffusion import Text
from tests.golden.fill import fill_, load_case, relative_error, values
from tests.golden.sms_world import SCHEDULER, make_unet
from tests.micro import quiet_trainer

SETTINGS, EXPECTED = load_case("paircustom/b_training")
CONFIG = SETTINGS["config"]
SEED = CONFIG["seed"]


class Given(PairCustomization):
    """The method on the small UNet of the cases, with their latents, text, timesteps and noise."""

    def __init__(self, **changes: Any) -> None:
        ranks = {"content_rank": CONFIG["content_rank"], "style_rank": CONFIG["style_rank"]}
        settings = {"base": "given", "style_phrase": "style", "iterations": 3, "style_from": 1, "lr": CONFIG["lr"]}
        super().__init__(**(settings | ranks | changes))

    def configure_model(self) -> None:
        if not hasattr(self, "unet"):
            self.unet = make_unet(CONFIG, SEED + 1)
            self.schedule = NoiseSchedule.from_config(SCHEDULER)
            self.add_adapters()

    def embed(self, prompt: str) -> Text:
        name, width = "style" if prompt.endswith("style") else "content", CONFIG["unet"]["cross_attention_dim"]
        states = values(f"embed.{name}", (1, CONFIG["text_len"], width), SEED)
        return Text(states, values(f"pooled.{name}", (1, CONFIG["pooled"]), SEED))

    def latents(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        content, style = (values(f"latent.{name}", CONFIG["latent"], SEED) for name in ("content", "style"))
        return content, style

    def noise(self, z: Tensor) -> Tensor:
        return values(f"train.noise{self.iteration}", CONFIG["latent"], SEED)

    def timesteps(self, z: Tensor) -> Tensor:
        return torch.tensor(CONFIG["train_t"][self.iteration : self.iteration + 1])


class Steps(L.Callback):
    """Gradients at every optimizer step, and weights after every iteration."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor | None]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.unet.named_parameters()
        self.gradients.append({k: None if p.grad is None else p.grad.clone() for k, p in named if p.requires_grad})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.after.append({k: p.detach().clone() for k, p in pl_module.unet.named_parameters() if p.requires_grad})


def fill_adapters(unet: nn.Module) -> None:
    """Every layer gets its own A and B of both adapters."""
    layers: list[tuple[str, Any]] = lora_layers(unet)
    for name, seed in ((CONTENT, SEED + 3), (STYLE, SEED + 4)):
        state = {}
        for path, layer in layers:
            layer.lora_A[name].weight = nn.Parameter(layer.lora_A[name].weight.detach().clone(), requires_grad=False)
            state |= {f"{path}.lora_{x}.weight": getattr(layer, f"lora_{x}")[name].weight.data for x in "AB"}
        fill_(state, seed, scale=CONFIG["lora_scale"])


def as_here(key: str) -> str:
    """`<module>.lora_B@content.weight` as the parameter is called in the UNet."""
    return key.replace("@", ".")


def batch() -> dict[str, Any]:
    side = torch.tensor([CONFIG["resolution"]] * 2)
    return {
        "content": torch.zeros(3, *side), "style": torch.zeros(3, *side), "prompt": "content", "row": "0",
        "content_size": torch.tensor(CONFIG["orig_content"]), "style_size": torch.tensor(CONFIG["orig_style"]),
        "crop": torch.zeros(2, dtype=torch.long),
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Given, Steps, list[dict[str, float]]]:
    method, steps, losses = Given(), Steps(), []
    method.configure_model()
    fill_adapters(method.unet)
    log = method.log_losses
    method.log_losses = lambda found: (losses.append({k: v.item() for k, v in found.items()}), log(found))[-1]  # type: ignore[method-assign]
    run = quiet_trainer(tmp_path_factory.mktemp("parity"), 3, callbacks=[steps])
    run.fit(method, train_dataloaders=DataLoader([batch()] * 3, batch_size=1))  # type: ignore[arg-type]
    assert run.global_step == 3
    return method, steps, losses


def test_losses_are_the_official_ones(trained: tuple[Given, Steps, list[dict[str, float]]]) -> None:
    _, _, losses = trained
    for step, found in enumerate(losses):
        for name, official in (("content", "content"), ("style", "combined")):
            key = f"step{step}.{official}.loss"
            assert (key in EXPECTED) == (name in found)
            if name in found:
                assert found[name] == pytest.approx(EXPECTED[key].item(), rel=1e-4)


def test_gradients_and_their_pattern_are_the_official_ones(trained: tuple[Given, Steps, Any]) -> None:
    _, steps, _ = trained
    passes = [pattern["backward"] for pattern in SETTINGS["gradient_pattern"]]
    assert len(steps.gradients) == len(passes)
    for gradients, official, pattern in zip(steps.gradients, passes, SETTINGS["gradient_pattern"], strict=True):
        for suffix, (nonzero,) in pattern["B_grad_nonzero"].items():
            mine = [g for k, g in gradients.items() if k.endswith(as_here(f"lora_{suffix}"))]
            assert mine
            assert all((g is not None and g.abs().max() > 0) == nonzero for g in mine)
        compared = [key for key in EXPECTED if key.startswith(f"{official}.grad.")]
        assert compared
        for key in compared:
            found = gradients[as_here(key.removeprefix(f"{official}.grad."))]
            assert found is not None
            assert relative_error(found, EXPECTED[key]) < 1e-3
        for key, norm in SETTINGS["gradient_norms_all_layers"].items():
            if key.startswith(f"{official}.grad."):
                found = gradients[as_here(key.removeprefix(f"{official}.grad."))]
                assert found is not None
                assert found.norm().item() == pytest.approx(norm, rel=2e-3)


def test_weights_after_every_step_are_the_official_ones(trained: tuple[Given, Steps, Any]) -> None:
    _, steps, _ = trained
    near = total = 0
    for step, after in enumerate(steps.after):
        for key in (key for key in EXPECTED if key.startswith(f"step{step}.after.")):
            error = (after[as_here(key.removeprefix(f"step{step}.after."))] - EXPECTED[key]).abs()
            near, total = near + int((error < 3e-5).sum()), total + error.numel()
    assert near / total > 0.995


def test_the_bases_are_the_official_ones() -> None:
    settings, expected = load_case("paircustom/a_orthogonal")
    method = Given()
    method.configure_model()
    config, layers = settings["config"], lora_layers(method.unet)
    assert sorted(path for path, _ in layers) == settings["modules"]
    for width in config["sizes"]:
        for name in (CONTENT, STYLE):
            held = {id(layer.lora_A[name].weight): layer.lora_A[name].weight for _, layer in layers
                    if layer.in_features == width}  # fmt: skip
            (A,) = held.values()  # one for all layers of this width
            assert not A.requires_grad
            official = expected[f"size{width}.{name}_A"]
            signs = (A * official).sum(1, keepdim=True).sign()
            torch.testing.assert_close(signs * A, official, rtol=1e-3, atol=1e-4)
        both = torch.cat([next(la.lora_A[n].weight for _, la in layers if la.in_features == width)
                          for n in (CONTENT, STYLE)])  # fmt: skip
        torch.testing.assert_close(both @ both.T, torch.eye(len(both)), rtol=0, atol=1e-5)
    assert all(layer.lora_B[name].weight.abs().max() == 0 for _, layer in layers for name in (CONTENT, STYLE))
    assert all(set(layer.scaling.values()) == {1.0} for _, layer in layers)
    trained = {k for k, p in method.unet.named_parameters() if p.requires_grad}
    official = {k.replace("_weights", "") for k in settings["trainable_params_after_init"]}
    assert trained == official
    held = {id(p) for p in method.named_optimizers()["loras"][0].param_groups[0]["params"]}
    assert held == {id(p) for p in method.unet.parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("width", [640, 1280, 2048])
def test_the_bases_of_sdxl_are_the_official_ones(width: int) -> None:
    _, expected = load_case("paircustom/a_orthogonal")
    Q = orthonormal_basis(width)
    for key, rows in (("rows0_4_cols0_16", slice(0, 4)), ("row64_cols0_16", slice(64, 65))):
        found, official = Q[rows, :16], expected[f"sdxl{width}.{key}"].reshape(-1, 16)
        signs = (found * official).sum(1, keepdim=True).sign()
        torch.testing.assert_close(signs * found, official, rtol=1e-3, atol=1e-4)
    projector = (Q[:64].T @ Q[:64]).diagonal()[:64]
    torch.testing.assert_close(projector, expected[f"sdxl{width}.content_projector_diag0_64"], rtol=1e-3, atol=1e-4)


def test_files_are_the_official_ones(tmp_path: Path) -> None:
    settings, expected = load_case("paircustom/d_lora_file")
    method = Given()
    method.configure_model()
    fill_adapters(method.unet)
    for layout, official in (("official", "style_weights"), ("content_official", "content_weights")):
        method.export(tmp_path / f"{layout}.safetensors", layout)
        with safe_open(tmp_path / f"{layout}.safetensors", framework="pt") as file:
            assert file.metadata() == settings["files"][official]["metadata"]
        found = load_file(tmp_path / f"{layout}.safetensors")
        assert {k: list(v.shape) for k, v in found.items()} == settings["files"][official]["keys"]
        assert {v.dtype for v in found.values()} == {torch.float32}
    found = load_file(tmp_path / "official.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in settings["sample_values"])


def test_only_up_matrices_are_in_checkpoints_unless_the_down_ones_are_trained() -> None:
    for down, kinds in (("orthogonal", {"lora_B"}), ("gaussian", {"lora_A", "lora_B"})):
        method = Given(down=down)
        method.configure_model()
        keys = method.state_dict()
        assert {kind for kind in ("lora_A", "lora_B") if any(f".{kind}." in key for key in keys)} == kinds
        assert all(".lora_" in key for key in keys)
    assert len(adapter_state(method.unet, STYLE)) == 2 * len(lora_layers(method.unet))
    down = torch.cat([layer.lora_A[STYLE].weight.flatten() for _, layer in lora_layers(method.unet)])
    assert down.std().item() * CONFIG["style_rank"] == pytest.approx(1, rel=0.1)  # of each layer its own, 1 / rank
    assert len(down.unique()) > 0.99 * len(down)
