"""Make a small tokenizer in the real CLIP format (byte-level BPE, vocab.json and merges.txt) from captions."""

import json
from collections.abc import Iterable
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
# The word pattern of CLIP's tokenizer: special tokens, contractions, letters, single digits, other symbols.
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_clip_tokenizer(captions: Iterable[str], folder: Path, vocabulary: int, length: int) -> None:
    """Learn merges from `captions` and save a CLIPTokenizer to `folder`.

    Args:
        captions: text to learn from.
        folder: where vocab.json, merges.txt and the tokenizer's configuration are written.
        vocabulary: number of learned entries at most; the 2 x 256 byte symbols and two special tokens come on top.
        length: tokens of a padded prompt, start and end included.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + 2 * len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    entries = alphabet + [symbol + "</w>" for symbol in alphabet] + ["".join(m) for m in merges] + [START, END]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    folder.mkdir(parents=True, exist_ok=True)
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length).save_pretrained(folder)  # type: ignore[arg-type]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
