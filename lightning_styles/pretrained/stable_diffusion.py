"""A Stable Diffusion base, 1.x or XL, in the layout of diffusers: folder or single file -> frozen parts."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.single_file import check_single_file, load_single_file, whole
from lightning_styles.pretrained.weights import (
    check_finite,
    first_packed,
    is_wrapped,
    parse_json,
    read_header,
    read_safetensors,
)

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Text:
    """What a base model is told: states (B, L, D) of every token and, for SDXL, one vector (B, P) for all."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def cat(cls, texts: list["Text"]) -> "Text":
        """Several as one batch."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return cls(torch.cat([text.states for text in texts]), torch.cat(pooled) if pooled else None)

    def to(self, *args: Any, **kwargs: Any) -> "Text":
        """The same on another device or in another precision."""
        states = self.states.to(*args, **kwargs)
        return Text(states, None if self.pooled is None else self.pooled.to(*args, **kwargs))


@dataclass
class StableDiffusion:
    """The parts of a base model, all frozen and in eval mode, on the CPU in float32.

    SDXL has a second text encoder and tokenizer; both are None in Stable Diffusion 1.x.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: dict[str, Any]
    sha256: str
    text_encoder_2: Any = None
    tokenizer_2: Any = None

    @property
    def is_xl(self) -> bool:
        """Whether this is SDXL, which is told sizes and crops beside two texts."""
        return self.text_encoder_2 is not None

    @property
    def multiple(self) -> int:
        """Sides of pictures must be multiples of this: the VAE's factor times the UNet's."""
        return 2 ** (len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2)

    def pipeline(self, **replace: Any) -> Any:
        """A diffusers StableDiffusionPipeline, or -XLPipeline, over the same parts, with `replace`d components."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        return self.assemble(StableDiffusionXLPipeline if self.is_xl else StableDiffusionPipeline, **replace)

    def assemble(self, pipeline_class: Any, **replace: Any) -> Any:
        """The same as any subclass of diffusers' two pipelines; the scheduler is DDIM unless replaced."""
        from diffusers import DDIMScheduler

        parts = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": DDIMScheduler.from_config(self.scheduler),
        }
        if self.is_xl:
            parts |= {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2}
            options: dict[str, Any] = {"add_watermarker": False}
        else:
            options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = pipeline_class(**(parts | options | replace))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_stable_diffusion(name: str, vae: str | None = None, xl: bool = True) -> StableDiffusion:
    """Load the base behind `name`: a diffusers folder, a single .safetensors file or a name of the registry.

    Args:
        name: of a Stable Diffusion 1.x or SDXL.
        vae: folder, or name, of an autoencoder that replaces the base's own.
        xl: take SDXL too.

    Raises:
        UserError: it is damaged, incomplete, mixed, or of another kind.
    """
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    diffusers_log.set_verbosity_error()  # its remarks on precision do not apply: casts here are meant
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    path = locate(name, "stable-diffusion")
    config = check_base(path)
    if not xl and (config / "text_encoder_2").is_dir():
        raise UserError(f"{path} is SDXL, which this method does not take yet; choose a Stable Diffusion 1.x.")
    with _refusing(path):
        parts = _from_folder(path) if path.is_dir() else load_single_file(path, config)
    if vae is not None:
        with _refusing(locate(vae, "vae"), "an autoencoder"):
            parts["vae"] = _load_vae(locate(vae, "vae"), "")
    check_parts(path, parts)
    for part in NETWORKS:
        if parts.get(part) is not None:
            check_finite(parts[part].state_dict(), f"{vae if vae and part == 'vae' else path.name}: its {part}")
            parts[part].eval().requires_grad_(False)
    return StableDiffusion(**parts, sha256=fingerprint(locate(name, "stable-diffusion")))


def check_base(path: Path) -> Path:
    """The folder with the configuration of the base at `path`, a folder or single file, of which little is read.

    Raises:
        UserError: its header or its scheduler's configuration shows that it is of no use here.
    """
    with _refusing(path):
        if path.is_file():
            known = check_single_file(path)
        else:
            config = path / "scheduler" / "scheduler_config.json"
            check_prediction(parse_json(config.read_text(encoding="utf-8"), "its scheduler_config.json"))
            return path
    return locate(known, "stable-diffusion")


def check_prediction(scheduler: Mapping[str, Any]) -> None:
    """Refuse a model that was trained to predict something else than noise, or down to a signal of zero.

    Raises:
        ValueError: saying what its scheduler's configuration holds.
    """
    for key, expected in (("prediction_type", "epsilon"), ("rescale_betas_zero_snr", False)):
        found = scheduler.get(key, expected)
        if found != expected:
            raise ValueError(f"its scheduler says {key}={found!r}, expected a model that predicts epsilon")


@contextmanager
def _refusing(path: Path, what: str = "a Stable Diffusion base") -> Iterator[None]:
    """Turn whatever a damaged or foreign base leads to into one message."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause = f"{error} is missing" if isinstance(error, KeyError) else lines[0]
        layout = "" if path.is_file() else " in diffusers layout"
        raise UserError(
            f"{path} is not {what}{layout} that can be used: {cause[:300].rstrip('.')}; "
            "use another copy, or give the path of another one."
        ) from error


def check_parts(path: Path, parts: dict[str, Any]) -> None:
    """Refuse a base that is put together from parts of different models.

    Raises:
        UserError: naming the two parts and what differs.
    """
    unet, vae, text = (parts[part].config for part in ("unet", "vae", "text_encoder"))
    second = parts.get("text_encoder_2")
    width = text.hidden_size + (second.config.hidden_size if second is not None else 0)
    pairs = (
        ("the UNet's text embedding", unet.cross_attention_dim, "the text encoders' width", width),
        ("the UNet's latent channels", unet.in_channels, "the autoencoder's", vae.latent_channels),
    )
    for first, one, second, other in pairs:
        if one != other:
            raise UserError(f"{path} mixes two models: {first} is {one}, {second} {other}; take all from one model.")
    for suffix in ("", "_2"):
        if parts.get(f"tokenizer{suffix}") is not None:
            _check_words(path, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"].config.vocab_size)


def _check_words(path: Path, tokenizer: Any, known: int) -> None:
    words = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not 2 < words <= known:
        raise UserError(
            f"{path} has a foreign tokenizer: its words are numbered up to {words}, the text encoder knows "
            f"{known}; take both from one model."
        )


# Never a pickle, which may run code.
WEIGHTS: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}


def _from_folder(path: Path) -> dict[str, Any]:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = {
        "unet": _network(UNet2DConditionModel, path, "unet"),
        "vae": _load_vae(path, "vae"),
        "text_encoder": _network(CLIPTextModel, path, "text_encoder", dtype=torch.float32),
        "tokenizer": _load_tokenizer(path, "tokenizer"),
        "scheduler": dict(DDIMScheduler.load_config(path, subfolder="scheduler", local_files_only=True)),  # type: ignore[arg-type]
    }
    if parts["unet"].config.addition_embed_type != "text_time":
        return parts
    second = {
        "text_encoder_2": _network(CLIPTextModelWithProjection, path, "text_encoder_2", dtype=torch.float32),
        "tokenizer_2": _load_tokenizer(path, "tokenizer_2"),
    }
    return parts | second


def _load_vae(path: Path, subfolder: str) -> Any:
    from diffusers import AutoencoderKL

    return _network(AutoencoderKL, path, subfolder)


def _network(kind: Any, path: Path, part: str, **options: Any) -> Any:
    with _plain_folder(path / part) as folder:
        return whole(part or "vae", kind.from_pretrained(folder, **WEIGHTS, **options))


@contextmanager
def _plain_folder(folder: Path) -> Iterator[Path]:
    """`folder`, or, where the names in its weights are those of a compiled network, a copy with plain ones."""
    from safetensors.torch import save_file

    files = sorted(folder.glob("*.safetensors"))
    if packed := next(filter(None, (first_packed(read_header(file)[0]) for file in files)), None):
        raise ValueError(packed)
    if not any(is_wrapped(file) for file in files):
        yield folder
        return
    with TemporaryDirectory() as copy:
        for file in folder.glob("*.json"):
            shutil.copy(file, copy)
        for file in files:
            save_file(read_safetensors(file)[0], Path(copy, file.name), metadata={"format": "pt"})
        yield Path(copy)


def _load_tokenizer(path: Path, part: str) -> Any:
    from transformers import CLIPTokenizer

    if not any((path / part / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise FileNotFoundError(f"it has no {part}/vocab.json")  # transformers would make one without words
    return CLIPTokenizer.from_pretrained(path, subfolder=part, local_files_only=True)


def embed_prompts(base: StableDiffusion, prompts: list[str]) -> Text:
    """What the UNet of `base` is told for `prompts`, in float32 on the text encoders' device.

    Stable Diffusion 1.x takes the last states of its encoder; SDXL (arXiv 2307.01952, section 2.1) the last but
    one of both encoders side by side, and the projected end-of-text state of the second. One prompt after the
    other, as in `encode_prompts`.
    """
    if not base.is_xl:
        return Text(encode_prompts(base.text_encoder, base.tokenizer, prompts))
    device = next(base.text_encoder.parameters()).device
    parts: list[list[Tensor]] = []
    with torch.autocast(device.type, enabled=False):
        for prompt in prompts:
            first = base.text_encoder(token_ids(base.tokenizer, [prompt]).to(device), output_hidden_states=True)
            second = base.text_encoder_2(token_ids(base.tokenizer_2, [prompt]).to(device), output_hidden_states=True)
            states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            parts.append([states, second.text_embeds])
    states, pooled = (torch.cat(part) for part in zip(*parts, strict=True))
    return Text(states, pooled)


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Numbers (B, L) of the tokens of `prompts`, padded or cut to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def encode_prompts(text_encoder: nn.Module, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Last hidden states (B, L, D) of `prompts`, padded or cut to the tokenizer's length L.

    In the encoder's own precision, whether asked inside or outside of autocast, and one prompt after the other: the
    last bits depend on neither, so a resumed run may ask in another order.
    """
    device = next(text_encoder.parameters()).device
    tokens = token_ids(tokenizer, prompts).to(device)
    with torch.autocast(device.type, enabled=False):
        return torch.cat([text_encoder(ids)[0] for ids in tokens.split(1)])
