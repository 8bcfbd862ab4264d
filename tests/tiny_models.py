"""Random sentence-transformers models, small enough to make and to train in a moment."""

from __future__ import annotations

import pathlib

import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(700))]


def tiny_model(folder: pathlib.Path, *rest: torch.nn.Module, n_layers: int = 3) -> pathlib.Path:
    """A random BERT, with the given modules after it, saved."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=256, num_hidden_layers=n_layers, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=40, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    bert = modules.Transformer(str(folder), max_seq_length=32)
    sentence_transformers.SentenceTransformer(modules=[bert, *rest], device="cpu").save(str(folder / "st"))
    return folder / "st"
