"""What little of a pretrained file shows that it is of no use, before a run begins and anything heavy loads."""

from pathlib import Path


def check_header(path: Path, kind: str) -> None:
    """Refuse what cannot be used as `kind`, as far as that shows without building a network.

    Raises:
        UserError: saying why.
    """
    from lightning_styles.pretrained.clip import clip_weights
    from lightning_styles.pretrained.lora_files import find_file, read_lora
    from lightning_styles.pretrained.stable_diffusion import check_base

    if kind == "stable-diffusion":
        check_base(path)
    elif kind == "lora":
        read_lora(find_file(path))
    elif kind == "clip":
        clip_weights(path)
