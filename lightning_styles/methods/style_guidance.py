"""StyleGuidance: pictures in the styles of LoRA files from anywhere, also blended (arXiv 2405.01536, section 3.3)."""

import logging
from typing import Any, TypedDict

from lightning_styles.errors import UserError
from lightning_styles.methods.lora_method import LoRAMethod
from lightning_styles.pretrained import fingerprint, locate

log = logging.getLogger(__name__)


class StyleFile(TypedDict):
    """A style of `StyleGuidance`.

    Attributes:
        lora: kohya, diffusers or PEFT safetensors: path or name.
        phrase: words that stand behind a prompt where it is drawn in this style; for many LoRAs their trigger words.
        share: of `strength`, so that lambda_i = share * strength.
    """

    lora: str
    phrase: str
    share: float


class StyleGuidance(LoRAMethod):
    """Draw prompts, or photos anew, through equation 11 with one or several style LoRAs.

    Trains nothing, so `predict`, `test` and `validate` are its commands.

    Args:
        styles: LoRA files with their words and shares.
        lora_partial: take LoRAs too of which less than 90 % of the layers exist in the base.
        drawing: settings of `LoRAMethod`.
    """

    def __init__(self, *, styles: list[StyleFile], lora_partial: bool = False, **drawing: Any) -> None:
        super().__init__(iterations=1, **drawing)
        if not styles:
            raise UserError("styles is empty; name at least one LoRA, as {lora: FILE, phrase: WORDS, share: 1.0}.")
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        loras = [(style["lora"], "lora") for style in init_args.get("styles") or []]
        return [*loras, *super().required_models(init_args)]

    def add_adapters(self) -> None:
        from lightning_styles.pretrained.style_lora import load_style_lora

        for number, style in enumerate(self.hparams.styles):
            path = locate(style["lora"], "lora")
            encoders = {"text_encoder": self.base.text_encoder, "text_encoder_2": self.base.text_encoder_2}
            options = {"name": f"style{number}", "strength": 1.0, "partial": self.hparams.lora_partial}
            log.info("style LoRA %s", load_style_lora(self.unet, path, **encoders, **options))
            self.base_models[style["lora"]] = fingerprint(path)

    def styled(self, strength: float) -> list[Any]:
        from lightning_styles.diffusion.styles import Style

        return [
            Style(f"style{number}", style["phrase"], strength * style["share"])
            for number, style in enumerate(self.hparams.styles)
        ]
