"""CLIP models and tokenizers in the format of transformers, from a folder or the Hugging Face hub.

The loaders refuse what transformers would accept with a warning: a model with weights missing, and a folder without
a vocabulary. CLIP: https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SMALLEST_VOCABULARY = 256  # CLIP's tokens are built from the bytes


def explain_import_error(error: Exception) -> str:
    """What to do when transformers cannot import CLIP; a torchvision that does not fit torch is the usual reason."""
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as broken:  # ImportError, RuntimeError or OSError, depending on what does not fit
            return (
                f"the installed torchvision does not work with torch {torch.__version__} ({broken}), and that keeps "
                "transformers from importing CLIP. Nothing here needs torchvision; remove it: pip uninstall torchvision"
            )
    return f"transformers {importlib.metadata.version('transformers')} cannot import CLIP: {error}"


try:
    # The aliases make the names public: others import them from here, behind the explanation.
    from transformers import CLIPConfig as CLIPConfig
    from transformers import CLIPModel as CLIPModel
    from transformers import CLIPTokenizer as CLIPTokenizer
except Exception as error:
    raise ImportError(explain_import_error(error)) from error


def load_model(name: str, dtype: torch.dtype, revision: str | None = None) -> Any:
    """The ``CLIPModel`` of a folder or Hugging Face id, frozen, in evaluation mode, on the CPU.

    Raises:
        ValueError: it cannot be loaded, or weights are missing.
    """
    try:
        model, report = CLIPModel.from_pretrained(name, dtype=dtype, revision=revision, output_loading_info=True)
    except Exception as error:  # of transformers, safetensors, the hub, the file system
        raise ValueError(_cannot_load("CLIP model", name, error)) from error
    if report["missing_keys"]:  # transformers has put random numbers there
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(
            f"{name!r} is not a complete CLIP model: it lacks {len(report['missing_keys'])} of the weights, such as "
            f"{some}; give a folder or id of a CLIPModel"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The ``CLIPTokenizer`` of a folder or Hugging Face id.

    Raises:
        ValueError: it cannot be loaded, or there is no vocabulary.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # as above
        raise ValueError(_cannot_load("CLIP tokenizer", name, error)) from error
    if len(tokenizer) < SMALLEST_VOCABULARY:  # without files transformers makes one of the two special tokens
        raise ValueError(_cannot_load("CLIP tokenizer", name, "it has no vocabulary (tokenizer.json, or vocab.json)"))
    return tokenizer


def check_pair(model: Any, tokenizer: Any, model_name: str, tokenizer_name: str) -> None:
    """Raise ValueError if the tokenizer's tokens mean something else to the model."""
    text = model.config.text_config
    end, size = tokenizer.eos_token_id, len(tokenizer)
    # Configs written before transformers 4.31 say 2 whatever the end token is; then the model goes by the largest id.
    known_end = end == size - 1 if text.eos_token_id == 2 else end == text.eos_token_id
    if size > text.vocab_size or not known_end:
        raise ValueError(
            f"the tokenizer of {tokenizer_name!r} ({size} tokens, end of text {end}) does not belong to the model "
            f"{model_name!r} ({text.vocab_size} tokens, end of text {text.eos_token_id}); set processor to the model's"
        )


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, formats, shapes and bytes of the weights, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cannot_load(kind: str, name: str, cause: object) -> str:
    return (
        f"cannot load the {kind} {name!r}: give a folder in the format of transformers, or the id of a model on the "
        f"Hugging Face hub. On a machine without internet, copy it there first (hf download {name}). Cause: {cause}"
    )
