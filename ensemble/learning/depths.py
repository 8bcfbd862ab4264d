"""Which depths of a model become features, and why?

    tokens -> layer 0 (embeddings) -> ... -> layer L -> pooling, ... -> sentence embedding s
                  |            |         |
                 u_a          u_b       u_c             means over the tokens, each of unit length

    features = [s, u_c / 2, u_b / 2, u_a / 2] / sqrt(1.75)       (n, n_features), of unit length

A sentence embedding is made to keep the meaning and forget the rest. Which member answers best hangs
on the rest too: the lower the layer, the better it tells topic and wording. So a text's features are
blocks side by side: what the model itself makes of it, then the means at three depths below, evenly
spaced. The layers are computed anyway: the blocks take some .1 ms of MiniLM's 2 to 15. What they
bring was measured here: benchmarks/LOG.md.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ensemble.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

DEPTHS = (2 / 3, 1 / 3, 0.0)  # of the layers: hidden states 4, 2, 0 of 6, where 0 is the embeddings
WEIGHT = 0.5  # of each of them, where the sentence embedding has 1


def check_depths(model: SentenceTransformer) -> None:
    """Raise ``ConfigError`` unless ``model``, loaded with ``output_hidden_states``, has them by token."""
    found = []
    if type(model[0]).__name__ == "Transformer":
        state = model[0](dict(model.tokenizer(["a"], return_tensors="pt")))
        found = [tuple(layer.shape) for layer in state.get("all_layer_embeddings", [])]
    if len(set(found)) != 1:
        raise ConfigError(
            "expected a model that starts with a Transformer whose hidden states have one width, one vector "
            f"per token, found {type(model[0]).__name__} with states of shapes {found}. Choose another model."
        )


def blocks(
    model: SentenceTransformer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    inside: contextlib.AbstractContextManager[object] = contextlib.nullcontext(),  # noqa: B008  has no state
) -> dict[str, torch.Tensor]:
    """ "sentence" and the number of each hidden state at ``DEPTHS`` -> (n, width), rows of unit length.

    A model of two layers or one has fewer depths, so fewer blocks. The Transformer itself runs ``inside``
    that context, as where its products are to be rounded; what is made of its states does not.
    """
    import torch

    state = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in model.tokenizer.model_input_names:
        state["token_type_ids"] = torch.zeros_like(input_ids)  # every text is a first sentence
    for number, part in enumerate(model):
        with inside if number == 0 else contextlib.nullcontext():
            state = part(state)
        state["token_embeddings"] = state["token_embeddings"].float()
    layers = state["all_layer_embeddings"]
    numbers = [round(depth * (len(layers) - 1)) for depth in DEPTHS]
    mask = attention_mask.float()[:, None]  # (n, 1, tokens)
    lower = {str(number): layers[number].float() for number in numbers}  # (n, tokens, width) each
    sums = {name: (mask @ layer)[:, 0] for name, layer in lower.items()}  # normalized, a mean as well
    made = {"sentence": state["sentence_embedding"], **sums}
    return {name: torch.nn.functional.normalize(block) for name, block in made.items()}


def side_by_side(sentence: torch.Tensor, *lower: torch.Tensor) -> torch.Tensor:
    """Blocks (n, width) each -> features (n, n_features), rows of unit length."""
    import torch

    joined = torch.cat([sentence, *(WEIGHT * block for block in lower)], dim=1)
    return joined / (1 + len(lower) * WEIGHT**2) ** 0.5
