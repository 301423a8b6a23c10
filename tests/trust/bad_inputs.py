"""The table of bad inputs: a command line, what its message says, and the exit code.

`{w}` stands for the folder of `bad_files.py`. An input is late when it is found after networks are built or pictures
decoded; a run folder may have been begun then.
"""

from typing import NamedTuple


class Bad(NamedTuple):
    """`words` after the program's name; `says` is a regular expression that the message matches."""

    words: str
    says: str
    code: int = 1
    late: bool = False


TOY, SMS = "fit --config {w}/toy.yaml", "fit --config {w}/sms.yaml"
STYLIZE, STYLE = "stylize {w}/photo.png --style", "--style {w}/sms.ckpt --device cpu"
BASE, LORA = f"{SMS} --model.base {{w}}/bases/", f"{SMS} --model.style_lora {{w}}/"
METRIC = "test --config {w}/sms.yaml --model.metrics."
NO_CHECKPOINT = "cannot be read as a checkpoint"
RUNS_CODE = "opening it could run code; it is refused"
NO_BASE = "is not a Stable Diffusion base( in diffusers layout)? that can be used"

COMMANDS = [
    Bad("fti", "there is no command 'fti': did you mean 'fit'", 2),
    Bad("fit", "arguments are required: fit.model", 2),
    Bad("fit --config", "expected one argument", 2),
    Bad(f"{TOY} word", "unrecognized arguments: word", 2),
    Bad("stylize", "arguments are required: pictures, --style", 2),
    Bad("stylize {w}/photo.png", "arguments are required: --style", 2),
    Bad("stylize {w}/photo.png --stile x", "arguments are required: --style", 2),
    Bad("convert", "arguments are required: input, output, --to", 2),
    Bad("convert {w}/sms.ckpt x --to kohia", "invalid choice: 'kohia'", 2),
    Bad("compare", "arguments are required: FILE", 2),
    Bad("check --confg x", "without a config; add --config FILE"),
    Bad("check extra", "check got extra without a config"),
]
CONFIGS = [
    Bad("fit --config {w}/tou.yaml", "no config file .*did you mean .*toy.yaml"),
    Bad("fit --config {w}", "There is no config file .*: that is a folder; name a YAML file"),
    Bad("fit --config /dev/null", "There is no config file /dev/null: that is no regular file"),
    Bad("check --config nope.yaml", "There is no config file nope.yaml"),
    Bad("fit --config {w}/empty.yaml", "holds nothing, expected keys such as model:"),
    Bad("fit --config {w}/list.yaml", "holds a list, expected keys"),
    Bad("fit --config {w}/syntax.yaml", "syntax.yaml:3:8: not valid YAML"),
    Bad("fit --config {w}/tab.yaml", "tab.yaml:2:1: not valid YAML"),
    Bad("fit --config {w}/latin1.yaml", "no UTF-8 text at byte 9; save it as UTF-8"),
    Bad("fit --config {w}/photo.png", "not valid YAML: no UTF-8 text"),
    Bad("fit --config {w}/code.yaml", "could not determine a constructor for the tag"),
    Bad("fit --config {w}/aliases.yaml", "more than 100000 values once its aliases"),
    Bad("fit --config {w}/deep.yaml", "not valid YAML: maximum recursion depth"),
    Bad("fit --config {w}/no_class.yaml", "arguments are required: fit.model", 2),
    Bad(f"{TOY} --config {{w}}/no_key.yaml", "refers to \\$\\{vars.nope\\}, but there is no key vars.nope"),
    Bad(f"{TOY} --config {{w}}/unclosed.yaml", "cannot be resolved: .*write \\$\\{section.key\\}"),
    Bad(f"{TOY} --config {{w}}/circle.yaml", "vars.lr refers to itself through ..vars.lr.; give it a value"),
    Bad(f"{TOY} --config {{w}}/resolver.yaml", "cannot be resolved: Unsupported interpolation type nothing"),
    Bad(f"{TOY} --config {{w}}/key.yaml", "no key 'trainer.max_stepz'", 2),
    Bad(f"{TOY} --config {{w}}/section.yaml", "no key 'modle.class_path'", 2),
]
VALUES = [
    Bad("fit --config configs/tiny/sdedit.yaml", "SDEdit learns nothing, so there is nothing to fit; run predict"),
    Bad("predict --config configs/tiny/pseudo_paired_stylegan.yaml", "StyleGAN has learned nothing yet: run fit first"),
    Bad("test --config configs/tiny/pseudo_paired_stylegan.yaml --ckpt_path last", "then test with --ckpt_path last"),
    Bad(f"{TOY} --model.learning_rat 3", "Option 'learning_rat' is not accepted", 2),
    Bad(f"{TOY} --trainer.max_step 3", "unrecognized arguments: --trainer.max_step", 2),
    Bad(f"{TOY} --vars.lr fast", "learning_rate: expected float, got fast", 2),
    Bad(f"{TOY} --trainer.max_steps 1.5", "max_steps: expected int, got 1.5", 2),
    Bad(f"{TOY} --trainer.max_steps 0", "max_steps is 0; set it to the number of iterations"),
    Bad(f"{TOY} --trainer.max_steps -5", "must be a non-negative integer or -1"),
    Bad(f"{SMS} --trainer.max_steps -1", "iterations is -1; it must be at least 1"),
    Bad(f"{TOY} --trainer.devices 0", "devices is 0; expected a number of at least 1"),
    Bad(f"{TOY} --trainer.devices -3", "devices is -3; expected a number of at least 1"),
    Bad(f"{TOY} --trainer.devices many", "The trainer refuses its settings: .*devices"),
    Bad(f"{TOY} --trainer.accelerator abacus", "invalid accelerator name: .*Available names are"),
    Bad(f"{TOY} --trainer.precision bf17", "precision: .*'bf16-mixed'.*got bf17", 2),
    Bad(f"{TOY} --trainer.strategy warp", "invalid strategy name"),
    Bad(f"{TOY} --trainer.callbacks callbacks.Prevews", "no attribute 'Prevews'", 2),
    Bad(f"{TOY} --trainer.max_steps 1000000000000000000", "max_steps is 1000000000000000000; expected at most 1e.09"),
    Bad(f"{TOY} --trainer.max_steps 36893488147419103232", "max_steps is 36893488147419103232; expected at most 1e.09"),
    Bad(f"{TOY} --trainer.devices 999", "devices is 999, but this machine runs at most"),
    Bad(f"{TOY} --trainer.log_every_n_steps -3", "trainer.log_every_n_steps is -3; it must be at least 1"),
    Bad(f"{TOY} --trainer.min_steps -5", "trainer.min_steps is -5; it must be at least 0"),
    Bad(f"{TOY} --vars.learning_rate 1", "vars.learning_rate has no effect, because nothing in the config refers to"),
    Bad("fit --trainer.callbacks+=callbacks.Prevews --config {w}/toy.yaml", "no attribute 'Prevews'", 2),
    Bad(
        f"{TOY} --trainer.callbacks+=callbacks.EMA --trainer.callbacks+=callbacks.EMA", "callbacks.EMA twice with equal"
    ),
    Bad(
        f"{TOY} --trainer.callbacks+=callbacks.EMA --trainer.callbacks+=callbacks.EMA --trainer.callbacks.decay 0.5",
        "trainer.callbacks has EMA twice, and a checkpoint holds the state of one",
    ),
    Bad(f"{TOY} --trainer.callbacks '{{ema: {{class_path: callbacks.EMA}}}}'", "'ema.class_path' is not accepted", 2),
    Bad(f"{TOY} --trainer.callbacks+=os.system", "does not correspond to a subclass of Callback", 2),
    Bad(
        f"{TOY} --trainer.callbacks+=callbacks.Previews --trainer.callbacks.every_n_iterations 0",
        "every_n_iterations is 0; it must be at least 1",
    ),
    Bad(
        f"{TOY} --trainer.callbacks+=callbacks.Checkpoints --trainer.callbacks.every_n_iterations -1",
        "every_n_iterations is -1; it must be at least 1",
    ),
    Bad(f"{TOY} --seed_everything -1", "seed_everything: -1 is not in bounds"),
    Bad(f"{TOY} --model.class_path tests.toys.ToyStile", "no attribute 'ToyStile'", 2),
    Bad(f"{TOY} --model.class_path nothing.here.Toy", "No module named 'nothing'", 2),
    Bad(f"{TOY} --model.class_path os.system", "does not correspond to a subclass of LightningModule", 2),
    Bad(f"{SMS} --model.style ''", "style is empty; describe it in words"),
    Bad(f"{SMS} --model.weights.stile 3", "weights has stile; expected style, identity"),
    Bad(f"{SMS} --model.objective smz", "expected one of 'sms', 'vsd'", 2),
    Bad(f"{SMS} --model.lr -0.1", "lr is -0.1; it must be at least 0"),
    Bad(f"{SMS} --model.rank 0", "rank is 0; it must be from 1 to 4096"),
    Bad(f"{SMS} --model.warmup -1", "warmup is -1; it must be at least 0"),
    Bad(f"{SMS} --model.target_prompt '{{stile}}'", "target_prompt is '.stile.'; expected no other places"),
    Bad(f"{SMS} --model.target_prompt '{{style:>3000000000}}'", "expected no other places than .style. and .caption."),
    Bad(f"{SMS} --model.target_prompt '{{'", "target_prompt is '.' .*write .. and .. for braces"),
    Bad(f"{SMS} --model.rank 1000000000", "rank is 1000000000; it must be from 1 to 4096"),
    Bad(f"{SMS} --model.rank 1e20", "rank: expected int, got 1e.20", 2),
    Bad(f"{SMS} --model.weights.identity -5", "weights.identity is -5.0; it must be at least 0"),
    Bad(f"{SMS} --model.weights.identity .nan", "model.weights.identity is nan; expected a finite number"),
    Bad(f"{SMS} --model.lr 1e400", "model.lr is inf; expected a finite number"),
    Bad(f"{SMS} --model.lr 1e30", "model.lr is 1e.30; expected at most 1e.09"),
    Bad(f"{SMS} --data.num_workers 10000", "num_workers is 10000; it must be from 0 to 256"),
    Bad(f"{SMS} --data datamodules.Prompts --data.prompts '[a]'", "SMS cannot fit on Prompts, .* datamodules.Pictures"),
    Bad(f"{SMS} --data null", "SMS has no data to fit: set data.class_path to datamodules.Pictures"),
    Bad(
        "predict --config {w}/sms.yaml --data datamodules.Prompts --data.prompts '[a]'", "SMS cannot predict on Prompts"
    ),
    Bad(
        "test --config {w}/sms.yaml --data datamodules.SceneImages --data.kinds '[portrait]' --data.styles '[photo]' "
        "--data.size 64 --data.batch_size 2",
        "SMS cannot test on SceneImages, which gives image, caption",
    ),
    Bad(f"{SMS} --model.metrics.perceptuel x", "no metric 'perceptuel': did you mean perceptual"),
    Bad("test --config {w}/sms.yaml", "metrics is empty; name what to measure", late=True),
]
PICTURES = [
    Bad(f"{SMS} --data.images nowhere.png", "'nowhere.png' does not exist; expected"),
    Bad(f"{SMS} --data.images {{w}}/text.png", "is not an image that can be read"),
    Bad(f"{SMS} --data.images {{w}}/empty.png", "is not an image that can be read"),
    Bad(f"{SMS} --data.images {{w}}/dot.png", "is 1 x 1 px; expected at least 16 px"),
    Bad(f"{SMS} --data.images {{w}}/bomb.png", "more than 178 million pixels; make it smaller"),
    Bad(f"{SMS} --data.images {{w}}/text_bomb.png", "cannot be read as an image .Decompressed data too large"),
    Bad(f"{SMS} --data.images {{w}}/postscript.png", "is not an image that can be read"),
    Bad(f"{SMS} --data.images {{w}}/pipe.png", "is no regular file but a pipe or a device"),
    Bad(f"{SMS} --data.images {{w}}/narrow.png", "is 16 x 4000 px; expected at most 32 times as long as wide"),
    Bad(f"{SMS} --data.images {{w}}/no_pictures", "holds no picture; expected files ending in"),
    Bad(f"{SMS} --data.images {{w}}/empty_folder", "holds no picture"),
    Bad(f"{SMS} --data.images []", "list of images is empty"),
    Bad(f"{SMS} --data.images scene:portrait", "is no scene; expected scene:portrait/7"),
    Bad(f"{SMS} --data.images scene:unicorn/3", "no kind 'unicorn'; expected one of portrait"),
    Bad(f"{SMS} --data.images scene:portrait/9-3", "is an empty range"),
    Bad(f"{SMS} --data.images scene:portrait/0-999999999", "asks for 1000000000 scenes; expected at most"),
    Bad(f"{SMS} --data.twin_style oilpant", "no style 'oilpant'; expected one of photo"),
    Bad(f"{SMS} --data.resolution null", "scenes have no size of their own"),
    Bad(f"{SMS} --data.resolution 0", "resolution is 0; expected 16 to 8192 px"),
    Bad(f"{SMS} --data.resolution 100000", "resolution is 100000; expected 16 to 8192 px"),
    Bad(f"{SMS} --data.batch_size 0", "batch_size is 0; it must be at least 1"),
    Bad(f"{SMS} --data.num_workers -1", "num_workers is -1; it must be from 0 to 256"),
    Bad(f"{SMS} --data.imagez x", "Option 'imagez' is not accepted", 2),
    Bad(f"{SMS} --data.images {{w}}/cut.png", "cannot be read as an image .image file is truncated"),
    Bad(f"{SMS} --data.images {{w}}/float.tiff", "holds floating-point values", late=True),
    Bad(f"{SMS} --data.images {{w}}/two_sizes", "pictures of one size together, these have 2", late=True),
    Bad(f"{SMS} --data.images {{w}}/all_broken", "none of the 3 pictures could be read", late=True),
    Bad("predict --config {w}/sms.yaml --data.images {w}/all_broken", "none of the pictures could be read", late=True),
    Bad(f"{SMS} --data.images {{w}}/latin1_caption", "caption .*a.txt is no UTF-8 text", late=True),
    Bad(f"{SMS} --data.images {{w}}/long_caption", "caption .*a.txt has 10,001 bytes; expected at most", late=True),
    Bad(f"stylize nowhere {STYLE}", "There is no picture or folder nowhere"),
    Bad(f"stylize {{w}}/text.png {STYLE}", "is not an image that can be read"),
    Bad(f"stylize {{w}}/photo.png {STYLE} --resolution 0", "resolution is 0; expected 16 to 8192"),
    Bad(f"stylize {{w}}/photo.png {STYLE} --batch-size 0", "batch_size is 0; it must be at least 1"),
    Bad(f"stylize {{w}}/photo.png {STYLE} --device gpu7", "--device is gpu7; expected auto, cpu"),
]
CHECKPOINTS = [
    Bad(f"{TOY} --ckpt_path nope.ckpt", "There is no checkpoint nope.ckpt"),
    Bad(f"{TOY} --ckpt_path {{w}}/no_checkpoints", "no checkpoint .* in the folder"),
    *(
        Bad(f"{SMS} --ckpt_path {{w}}/{name}", says)
        for name, says in {
            "empty.ckpt": NO_CHECKPOINT,
            "text.ckpt": NO_CHECKPOINT,
            "photo.png": NO_CHECKPOINT,
            "cut.ckpt": NO_CHECKPOINT,
            "flipped_payload.ckpt": "is damaged .*wrong checksum.*use another checkpoint",
            "flipped_pickle.ckpt": "is damaged .*wrong checksum",
            "flipped_directory.ckpt": NO_CHECKPOINT,
            "bomb.ckpt": "holds packed files, as no checkpoint of PyTorch does",
            "list.ckpt": "is not a training checkpoint; expected one that `fit` wrote",
            "foreign.ckpt": "is not a training checkpoint",
            "plain.ckpt": "is not a training checkpoint",
            "odd_object.ckpt": RUNS_CODE,
            "pickle.ckpt": RUNS_CODE,
            "pickle_legacy.ckpt": NO_CHECKPOINT,
            "pickle_plain.ckpt": NO_CHECKPOINT,
        }.items()
    ),
    Bad(f"{TOY} --ckpt_path {{w}}/sms.ckpt", "holds a lightning_styles.methods.sms.SMS, the config asks for"),
    Bad(f"{SMS} --trainer.max_steps 4 --ckpt_path {{w}}/lightning.ckpt", "not written by lightning_styles", late=True),
    Bad(
        f"{SMS} --trainer.max_steps 4 --ckpt_path {{w}}/lacking.ckpt", "another architecture.*tensors differ", late=True
    ),
    Bad(f"{BASE}flipped_payload --trainer.max_steps 4 --ckpt_path {{w}}/sms.ckpt", "was trained on base", late=True),
    Bad(f"{STYLIZE} {{w}}/pickle.ckpt", RUNS_CODE),
    Bad(f"{STYLIZE} {{w}}/flipped_payload.ckpt", "is damaged"),
    Bad(f"{STYLIZE} {{w}}/lightning.ckpt", "was not written by lightning_styles"),
    Bad(f"{STYLIZE} {{w}}/os_system.ckpt", "wants to import os.system.*add --trust"),
    Bad(f"{STYLIZE} {{w}}/os_system.ckpt --trust", "os.system does not correspond to a subclass", 2),
    Bad(f"{STYLIZE} {{w}}/no_class.ckpt", "no_class.ckpt: .*no attribute 'SMZ'"),
    Bad(f"{STYLIZE} {{w}}/no_lora.safetensors", NO_CHECKPOINT),
    Bad("convert {w}/pickle.ckpt x --to kohya", RUNS_CODE),
    Bad("convert {w}/sms.ckpt x --to kohya", "SMS learns nothing that other tools read, not kohya"),
    Bad("convert nowhere x --to kohya", "no file or folder nowhere"),
]
MODELS = [
    Bad(f"{SMS} --model.base nope", "'nope' is neither a file or folder nor a known name; known are"),
    Bad(f"{SMS} --model.base tiny/lora-cartoon", "is a lora, but a stable-diffusion is needed"),
    Bad(f"{SMS} --model.base runwayml/stable-diffusion-v1-5", "no longer on the hub.* use stable-diffusion-v1-5"),
    Bad(f"{SMS} --model.base stabilityai/stable-diffusion-2-1-base", "no longer on the hub.* or stable-diffusion-xl"),
    Bad(f"{SMS} --model.base stable-diffusion-v1-5", "not on this machine .4.3 GB, CreativeML.*hf download"),
    Bad(f"{SMS} --model.style_lora coolkids-v2.5", "civitai.com/models/67980. Save it as"),
    Bad("test --config {w}/sms.yaml --model.metrics.lpips vgg16-imagenet", "553 MB.*download.pytorch.org"),
    *(
        Bad(f"{SMS} --model.base {{w}}/{name}", f"{NO_BASE}: {says}")
        for name, says in {
            "pickle.ckpt": "it is not a .safetensors file; a pickle may run code",
            "pickle.bin": "it is not a .safetensors file; a pickle may run code",
            "pickle.safetensors": ".* truncated or no safetensors file",
            "no_lora": ".*No such file.*scheduler_config.json",
            "no_lora.safetensors": "it has no tensors of a UNet",
            "v_pred.safetensors": "it says v_pred, .*expected a model that predicts epsilon",
            "no_vae.safetensors": "it has no autoencoder",
            "inpainting.safetensors": "its UNet is for inpainting",
        }.items()
    ),
    Bad(f"{BASE}v_prediction", "its scheduler says prediction_type='v_prediction', expected .* epsilon"),
    Bad(f"{BASE}no_scheduler", f"{NO_BASE}: .*No such file.*scheduler_config.json"),
    *(
        Bad(f"{BASE}{name}", NO_BASE, late=True)
        for name in (
            "no_unet",
            "no_vae",
            "no_text_encoder",
            "no_tokenizer",
            "no_config",
            "broken_json",
            "broken_tokenizer",
            "cut",
            "flipped",
            "pickled_unet",
            "pickled_vae",
            "pickled_text_encoder",
        )
    ),
    Bad(f"{BASE}flipped_name", f"{NO_BASE}: its unet lacks 1 tensors", late=True),
    Bad(f"{BASE}foreign_tokenizer", "has a foreign tokenizer: its words are numbered up to", late=True),
    Bad(f"{BASE}other_unet", "mixes two models: the UNet's text embedding is 24", late=True),
    Bad(f"{SMS} --model.base tiny/stable-diffusion-xl", "is SDXL, which this method does not take yet", late=True),
    Bad(f"{SMS} --model.real tiny/stable-diffusion-xl", "is SDXL, which this method does not take yet", late=True),
    Bad(f"{SMS} --model.real tiny/stable-diffusion", "are of different kinds.*widths 16 and 128", late=True),
    Bad(f"{LORA}no_match.safetensors", "none of its 32 layers exists here", late=True),
    Bad(f"{LORA}half_match.safetensors", "16 of its 32 layers exist here, .* set lora_partial to true", late=True),
    Bad(f"{LORA}wide.safetensors", "is a LoRA for a text embedding of width 32, this .* width 16", late=True),
    *(
        Bad(f"{LORA}{name}", says)
        for name, says in {
            "pickle.pt": "pickles can run code when opened; download the LoRA as .safetensors",
            "pickle.safetensors": "truncated or no safetensors file",
            "cut.safetensors": "truncated or no safetensors file",
            "flipped_header.safetensors": "truncated or no safetensors file",
            "flipped_length.safetensors": "truncated or no safetensors file",
            "flipped_name.safetensors": "is damaged: .* lacks a factor or its alpha",
            "empty.safetensors": "truncated or no safetensors file",
            "no_tensors.safetensors": "holds no LoRA layers",
            "no_lora.safetensors": "holds no LoRA layers",
            "nan.safetensors": "is damaged: .* is no matrix of finite numbers",
            "loha.safetensors": "is a LoHa file, expected a plain LoRA",
            "odd_config.safetensors": "configuration of .* is no JSON",
            "deep_config.safetensors": "configuration of .* is no JSON that can be read .*recursion",
            "slow_pattern.safetensors": "alpha_pattern has .*, expected names of layers",
            "alpha.safetensors": "alpha of .* is nan, expected a number",
            "no_lora": "no LoRA in the folder",
        }.items()
    ),
    Bad(f"{METRIC}lpips {{w}}/pickle.pth", "cannot be read as weights; expected the trunk", late=True),
    Bad(f"{METRIC}inception {{w}}/pickle.pth", "cannot be read as weights; expected .*Inception", late=True),
    Bad(f"{METRIC}art_inception {{w}}/pickle.pth", "art_inception makes ArtFID of LPIPS; add lpips: alexnet-imagenet"),
    Bad(f"{METRIC}style_images {{w}}/gone", "There is no file .*gone; put it there or give its path"),
    Bad(f"{METRIC}perceptual {{w}}/pickle.pth", "is not a whole perceptual network", late=True),
    Bad(f"{METRIC}identity {{w}}/no_lora.safetensors", "is not a whole identity network.*use tiny/identity", late=True),
]
OUTPUTS = [
    Bad(f"stylize {{w}}/photo.png {STYLE} --out {{w}}/text.png", "Nothing can be written into .*Not a directory"),
    Bad(f"stylize {{w}}/photo.png {STYLE} --out /dev/full", "Nothing can be written into /dev/full"),
    Bad(f"stylize {{w}}/photo.png {STYLE} --out /proc/here", "Nothing can be written into /proc/here"),
    Bad(f"{SMS} --trainer.default_root_dir {{w}}/text.png", "Nothing can be written into .*text.png"),
    Bad(
        "predict --config {w}/sms.yaml --trainer.callbacks callbacks.ImageWriter "
        "--trainer.callbacks.output_dir {w}/text.png",
        "Nothing can be written into .*text.png",
        late=True,
    ),
    Bad(f"stylize {{w}}/photo.png {STYLE} --out {{w}}", "photo.png would replace a file that is read", late=True),
    Bad(
        "predict --config {w}/sms.yaml --data.images {w}/two_sizes --trainer.callbacks callbacks.ImageWriter "
        "--trainer.callbacks.output_dir {w}/two_sizes",
        "would lie in .*two_sizes among the pictures themselves",
        late=True,
    ),
    Bad("convert {w}/sms.ckpt {w}/sms.ckpt --to kohya", "sms.ckpt is what is read; write the result to another place"),
    Bad("convert {w}/sms.ckpt {w}/text.png --to kohya", "text.png is there already.*with --overwrite"),
    Bad("compare {w}/rows.yaml --out {w}/text.png", "text.png.*Not a directory; check the path"),
]
COMPARISONS = [
    Bad("compare nope.yaml", "There is no config file nope.yaml"),
    Bad("compare {w}/toy.yaml", "has the key .*; a comparison has config, set, fit, rows"),
    Bad("compare {w}/no_rows.yaml", "has no rows; add rows:"),
    Bad("compare {w}/odd_rows.yaml", "has the key rowz"),
    Bad("compare {w}/number_row.yaml", "row a is 3; expected settings"),
    Bad("compare {w}/rows.yaml --rows b", "There is no row 'b'; the rows are a"),
    Bad("compare {w}/rows.yaml --processes 0", "--processes is 0; it must be at least 1"),
    Bad("compare {w}/rows.yaml extra", "takes one file, found also 'extra'"),
]
ALL = [*COMMANDS, *CONFIGS, *VALUES, *PICTURES, *CHECKPOINTS, *MODELS, *OUTPUTS, *COMPARISONS]
