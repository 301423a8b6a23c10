"""A folder of good files and of every kind of damaged and hostile ones that the tests of bad inputs name."""

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_styles.__main__ import main
from tests.micro import Micro, make_unet, write_picture

TOY: dict[str, Any] = {
    "vars": {"lr": 0.25},
    "model": {"class_path": "tests.toys.ToyStyle", "init_args": {"learning_rate": "${vars.lr}"}},
    "data": {"class_path": "tests.toys.ToyData"},
    "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
}


class Bomb:
    """What a hostile pickle holds: opening it without care makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def make_files(folder: Path, micro: Micro) -> None:
    """Fill `folder`."""
    os.chdir(folder)
    make_configs(micro)
    make_pictures()
    make_checkpoints()
    make_pickles(folder / "code_ran")
    make_loras(Path(micro.lora))
    make_bases(Path(micro.base))


def write(name: str, content: str | bytes | dict[str, Any]) -> Path:
    """Write text, bytes, or a tree as YAML."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(content, sort_keys=False) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def changed(source: Path, name: str, change: Callable[[bytearray], Any]) -> None:
    """A copy of `source` with its bytes changed in place."""
    content = bytearray(source.read_bytes())
    change(content)
    write(name, bytes(content))


def flip(content: bytearray, place: int) -> None:
    content[place] ^= 0x10


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


# ---- configs


def make_configs(micro: Micro) -> None:
    """toy.yaml trains a toy, sms.yaml the micro base; the others are broken."""
    write("toy.yaml", TOY)
    sms = {
        "base": micro.base, "style_lora": micro.lora, "style": "cartoon style", "iterations": "${trainer.max_steps}",
        "weights": {"style": 1.0, "identity": 0.0005}, "rank": 2,
    }  # fmt: skip
    data = {"class_path": "datamodules.Pictures", "init_args": {"images": "scene:portrait/3", "resolution": 32}}
    writer = {"class_path": "callbacks.ImageWriter", "init_args": {"output_dir": "out"}}
    model = {"class_path": "lightning_styles.methods.sms.SMS", "init_args": sms}
    trainer = {**TOY["trainer"], "max_steps": 1, "callbacks": [writer]}
    write("sms.yaml", {"model": model, "data": data, "trainer": trainer})
    write("empty.yaml", "")
    write("list.yaml", "- 1\n- 2\n")
    write("syntax.yaml", "model:\n  class_path: [tests\ntrainer: {}\n")
    write("tab.yaml", "model:\n\tclass_path: x\n")
    write("latin1.yaml", "model: Ge\u00e4ndert\n".encode("latin-1"))
    write("no_key.yaml", {"model": {"init_args": {"learning_rate": "${vars.nope}"}}})
    write("unclosed.yaml", {"model": {"init_args": {"learning_rate": "${vars.lr"}}})
    write("circle.yaml", {"vars": {"lr": "${vars.lr}"}})
    write("resolver.yaml", {"vars": {"lr": "${nothing:1}"}})
    write("key.yaml", {"trainer": {"max_stepz": 1}})
    write("section.yaml", {"modle": {"class_path": "tests.toys.ToyStyle"}})
    write("code.yaml", "model: !!python/object/apply:os.mkdir [code_ran]\n")
    write("no_class.yaml", {"data": TOY["data"], "trainer": TOY["trainer"]})
    names = "abcdefghi"
    levels = [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip(names, names[1:], strict=False)
    ]
    write("aliases.yaml", "\n".join(["a: &a [x]", *levels, ""]))
    write("deep.yaml", "[" * 5000)
    toy = str(Path("toy.yaml").absolute())
    write("no_rows.yaml", {"config": toy})
    write("odd_rows.yaml", {"rowz": {"a": None}})
    write("number_row.yaml", {"config": toy, "rows": {"a": 3}})
    write("rows.yaml", {"config": toy, "rows": {"a": {"model.init_args.learning_rat": 3}}})


# ---- pictures


def make_pictures() -> None:
    """photo.png is good."""
    good = Path(write_picture(Path("photo.png"), 32, 40))
    changed(good, "cut.png", cut)
    changed(good, "flipped.png", lambda content: flip(content, len(content) // 2))
    write("empty.png", b"")
    write("text.png", "this is no picture\n")
    Image.new("RGB", (1, 1)).save("dot.png")
    write("bomb.png", png_header(30_000, 30_000) + png_chunk(b"IDAT", zlib.compress(bytes(9_000_000), 9)))
    write("text_bomb.png", png_header(32, 32) + png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 27))))
    Image.new("F", (32, 32)).save("float.tiff")
    write("postscript.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{} loop\n")
    os.mkfifo("pipe.png")
    Image.new("L", (16, 4000)).save("narrow.png")
    Path("no_pictures").mkdir()
    write("no_pictures/notes.txt", "nothing to see")
    Path("empty_folder").mkdir()
    for name in ("cut", "empty", "text"):
        shutil.copy(f"{name}.png", write(f"all_broken/{name}.png", b""))
    write_picture(Path("latin1_caption/a.png"), 32, 40)
    write("latin1_caption/a.txt", "Ge\u00e4ndert".encode("latin-1"))
    write_picture(Path("long_caption/a.png"), 32, 40)
    write("long_caption/a.txt", "x" * 10_001)
    write_picture(Path("two_sizes/a.png"), 32, 40)
    write_picture(Path("two_sizes/b.png"), 32, 48)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


# ---- checkpoints


def make_checkpoints() -> None:
    """toy.ckpt and sms.ckpt are good."""
    for name in ("toy", "sms"):
        logged = ["--trainer.logger", "true"]
        assert main(["fit", "--config", f"{name}.yaml", *logged]) == 0
        shutil.copy(f"runs/{name}/version_0/checkpoints/last.ckpt", f"{name}.ckpt")
    good = Path("sms.ckpt")
    write("empty.ckpt", b"")
    write("text.ckpt", "this is no checkpoint\n")
    changed(good, "cut.ckpt", cut)
    changed(good, "flipped_payload.ckpt", flip_tensor)
    changed(good, "flipped_directory.ckpt", lambda content: flip(content, content.rfind(b"PK\1\2") + 1))
    changed(good, "flipped_pickle.ckpt", lambda content: flip(content, content.find(b"state_dict") + 3))
    torch.save({"model": {"weight": torch.ones(2)}}, "foreign.ckpt")
    plain = {"state_dict": {"weight": torch.ones(2)}, "global_step": 3}
    torch.save(plain, "plain.ckpt")
    torch.save(plain | {"pytorch-lightning_version": "2.6.6"}, "lightning.ckpt")
    torch.save([1, 2, 3], "list.ckpt")
    torch.save(torch.load(good, weights_only=True) | {"path": Path("x")}, "odd_object.ckpt")
    content = torch.load(good, weights_only=True)
    content["lightning_styles"] |= {"class_path": "lightning_styles.methods.sms.SMZ"}
    torch.save(content, "no_class.ckpt")
    content["lightning_styles"] |= {"class_path": "os.system"}
    torch.save(content, "os_system.ckpt")
    content = torch.load(good, weights_only=True)
    content["lightning_styles"]["init_args"] |= {"rank": 5}
    content["state_dict"].popitem()
    torch.save(content, "lacking.ckpt")
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 28))
    Path("no_checkpoints").mkdir()


def flip_tensor(content: bytearray) -> None:
    """One bit in the first tensor; the zip directory knows where its content begins."""
    from io import BytesIO

    entry = next(e for e in zipfile.ZipFile(BytesIO(content)).infolist() if "/data/" in e.filename)
    start = entry.header_offset + 26
    name, extra = struct.unpack("<HH", content[start : start + 4])
    flip(content, start + 4 + name + extra + entry.file_size // 2)


def make_pickles(ran: Path) -> None:
    """Files that make the folder `ran` when they are unpickled without care."""
    bomb = {"state_dict": {}, "bomb": Bomb(ran), "lightning_styles": {}}
    torch.save(bomb, "pickle.ckpt")
    torch.save(bomb, "pickle_legacy.ckpt", _use_new_zipfile_serialization=False)
    write("pickle_plain.ckpt", pickle.dumps(bomb))
    for name in ("pickle.safetensors", "pickle.pth", "pickle.bin", "pickle.pt"):
        shutil.copy("pickle.ckpt", name)


# ---- style LoRAs


def make_loras(good: Path) -> None:
    changed(good, "cut.safetensors", cut)
    changed(good, "flipped_header.safetensors", lambda content: flip(content, content.find(b"F16")))
    changed(good, "flipped_length.safetensors", lambda content: flip(content, 6))
    changed(good, "flipped_name.safetensors", lambda content: flip(content, content.find(b"attn1")))
    write("empty.safetensors", b"")
    save_file({}, "no_tensors.safetensors")
    save_file({"weight": torch.ones(2)}, "no_lora.safetensors")
    state = load_file(good)
    save_file({k.replace("lora_unet_", "lora_unet_else_"): v for k, v in state.items()}, "no_match.safetensors")
    wide = {k: torch.cat([v, v], 1) if "lora_down" in k else v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in wide.items()}, "wide.safetensors")
    save_file({k: v * torch.nan if v.ndim else v for k, v in state.items()}, "nan.safetensors")
    half = {k.replace("_down_", "_else_").replace("_mid_", "_else_"): v for k, v in state.items()}
    save_file(half, "half_match.safetensors")
    peft = {f"{i}.lora_{x}.weight": torch.ones(2, 2) for i in range(2) for x in "AB"}
    slow = json.dumps({"lora_alpha": 1, "alpha_pattern": {"(.*.*.*.*.*.*.*)*x": 1}})
    for name, text in (("odd_config", "{"), ("deep_config", "[" * 100_000), ("slow_pattern", slow)):
        save_file(peft, f"{name}.safetensors", metadata={"lora_adapter_metadata": text})
    save_file({k: v if v.ndim else v * torch.nan for k, v in state.items()}, "alpha.safetensors")
    save_file({k.replace("lora_down", "hada_w1_a"): v for k, v in state.items()}, "loha.safetensors")
    Path("no_lora").mkdir()


# ---- base models


def make_bases(good: Path) -> None:
    def base(name: str) -> Path:
        shutil.copytree(good, f"bases/{name}")
        return Path("bases", name)

    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(base(f"no_{part}") / part)
    (base("no_config") / "unet/config.json").unlink()
    (base("broken_json") / "unet/config.json").write_text('{"sample_size": 16,')
    write(str(base("broken_tokenizer") / "tokenizer/tokenizer.json"), "{}")
    weights = "unet/diffusion_pytorch_model.safetensors"
    for name, change in (
        ("cut", cut),
        ("flipped", lambda content: flip(content, 12)),
        ("flipped_name", lambda content: flip(content, content.find(b"conv_in"))),
        ("flipped_payload", lambda content: flip(content, len(content) - 99)),
    ):
        changed(good / weights, str(base(name) / weights), change)
    foreign = base("foreign_tokenizer") / "tokenizer/tokenizer.json"
    content = json.loads(foreign.read_text())
    words = content["model"]["vocab"]
    words |= {f"word{i}": len(words) + i for i in range(50)}
    foreign.write_text(json.dumps(content))
    for folder, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        pickled = base(f"pickled_{folder}") / folder
        (pickled / f"{file}.safetensors").unlink()
        shutil.copy("pickle.ckpt", pickled / f"{'pytorch_model' if file == 'model' else file}.bin")
    scheduler = base("v_prediction") / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    make_single_files()
    shutil.rmtree(base("other_unet") / "unet")
    make_unet(text_width=24).save_pretrained("bases/other_unet/unet")


def make_single_files() -> None:
    """Single files of which nothing but the header is ever read."""
    first, text = "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x"
    unet = {first: torch.zeros(2, 4, 3, 3), text: torch.zeros(1)}
    whole = unet | {"first_stage_model.x": torch.zeros(1)}
    save_file(unet, "no_vae.safetensors")
    save_file(whole | {"v_pred": torch.zeros(0)}, "v_pred.safetensors")
    save_file(whole | {first: torch.zeros(2, 9, 3, 3)}, "inpainting.safetensors")
