"""Weights that go on top of an SD3 checkpoint: any diffusers LoRA, or a fully fine-tuned transformer.

They are found by what a folder holds, compared with the checkpoint's architecture by names and shapes alone, and
only then loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from awm.models.checkpoint_folder import resolve_sd3
from awm.models.lora import count_lora

TRANSFORMER = "SD3Transformer2DModel"
LORA_PREFIXES = ("transformer.", "text_encoder.", "text_encoder_2.")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights are.

    Attributes:
        kind: "lora" or "transformer".
        files: the safetensors that hold them; one for a LoRA.
        shapes: of every tensor in them, by its name in the file.
        is_float32: whether they are stored in full precision.
    """

    kind: Literal["lora", "transformer"]
    files: tuple[Path, ...]
    shapes: Shapes
    is_float32: bool

    @property
    def folder(self) -> Path:
        """The folder they are in."""
        return self.files[0].parent


def find_weights(path: Path) -> Weights | None:
    """The weights at ``path``, or None if there is nothing that looks like any.

    Args:
        path: a LoRA file, a LoRA folder, a ``transformer`` folder as ``save_pretrained`` wrote it, or its parent.

    Raises:
        ValueError: they are damaged, pickled, of another model or not the only ones.
    """
    if path.is_file():
        return _lora(path)
    if (path / LORA_WEIGHT_NAME_SAFE).is_file():
        return _lora(path / LORA_WEIGHT_NAME_SAFE)
    for folder in (path, path / "transformer"):
        if _class_in(folder / "config.json") is not None:
            return _transformer(folder)
    files = sorted(path.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds several weight files ({names}); give the path of one.")
    if not files and (pickled := sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.ckpt")])):
        raise ValueError(
            f"{pickled[0]} is a pickle, which can run code when it is read; save the weights as safetensors."
        )
    return _lora(files[0]) if files else None


def find_transformer(path: str, model: str, revision: str | None) -> Weights | None:
    """The transformer that takes the place of the one in ``model``; None for ``path`` "".

    Raises:
        ValueError: ``path`` holds none, or one of another architecture.
    """
    if not path:
        return None
    weights = find_weights(Path(path))
    if weights is None or weights.kind != "transformer":
        found = "a LoRA, which train.lora_path starts from" if weights else "no weights"
        raise ValueError(
            f"pretrained.transformer={path} holds {found}; give a folder with the transformer/ that full fine-tuning "
            f"or save_pretrained wrote."
        )
    check_fit(weights, model, revision)
    return weights


def check_fit(weights: Weights, model: str, revision: str | None) -> None:
    """Compare names and shapes with the architecture of ``model``; reads only its ``config.json``.

    Raises:
        ValueError: the weights belong to another model.
    """
    location, _ = resolve_sd3(model, revision=revision or None)
    settings = SD3Transformer2DModel.load_config(location, subfolder="transformer", revision=revision or None)
    with torch.device("meta"):
        network = SD3Transformer2DModel.from_config(settings)
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    problem = _lora_problem(weights.shapes, ours) if weights.kind == "lora" else _problem(weights.shapes, ours)
    if problem:
        raise ValueError(f"{weights.folder} does not fit {model}: {problem}. Give the model it was trained on.")


def load_any_lora(pipeline: Any, weights: Weights) -> None:
    """``load_lora_weights``, which says nothing about layers it finds no place for; here they are an error."""
    (file,) = weights.files
    pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    wanted = {_module(name) for name in weights.shapes if name.startswith("transformer.")}
    if (bound := count_lora(pipeline.transformer)) < len(wanted):
        raise ValueError(f"{file} adapts {len(wanted)} layers, but only {bound} of them are in this model.")


@torch.no_grad()
def load_transformer(transformer: Any, weights: Weights) -> None:
    """Overwrite the weights in place, in the precision they are held in."""
    ours = transformer.state_dict()
    for file in weights.files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                value: Tensor = tensors.get_tensor(name)
                ours[name].copy_(value)


def _lora(file: Path) -> Weights:
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} is no .safetensors file; give a LoRA folder, or the .safetensors in it.")
    shapes, is_float32 = _header(file)
    for name in shapes:
        if not name.startswith(LORA_PREFIXES) or ".lora" not in name:
            raise ValueError(
                f"{file} is no LoRA of an SD3 pipeline in diffusers' format: it holds {name}, where names such as "
                f"transformer.transformer_blocks.0.attn.to_q.lora_A.weight are expected."
            )
    if not shapes:
        raise ValueError(f"{file} is empty; give a LoRA that was trained.")
    return Weights("lora", (file,), shapes, is_float32)


def _transformer(folder: Path) -> Weights:
    found = _class_in(folder / "config.json")
    if found != TRANSFORMER:
        raise ValueError(f"{folder} holds {found}, but {TRANSFORMER} is needed; give weights of an SD3 model.")
    files = _parts(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    is_float32 = True
    for file in files:
        of_file, full = _header(file)
        shapes |= of_file
        is_float32 &= full
    return Weights("transformer", files, shapes, is_float32)


def _parts(folder: Path) -> tuple[Path, ...]:
    """The files ``save_pretrained`` wrote: one, or several with an index."""
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    names = ["diffusion_pytorch_model.safetensors"]
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ValueError(f"{folder} lacks {', '.join(missing) or 'its weights'}; copy the whole folder again.")
    return tuple(folder / name for name in names)


def _header(file: Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Shapes by name, and whether all are float32; a truncated file is noticed without reading its tensors."""
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return shapes, all(part.get_dtype() == "F32" for part in slices.values())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or no safetensors file ({error}); copy it again.") from error


def _lora_problem(shapes: Shapes, ours: Shapes) -> str:
    """What of a LoRA has no place in the network; "" if all has."""
    for name, shape in shapes.items():
        if not name.startswith("transformer."):
            continue
        layer = _module(name).removeprefix("transformer.")
        if f"{layer}.weight" not in ours:
            return f"it adapts {layer}, which that model does not have"
        outputs, inputs = ours[f"{layer}.weight"][:2]
        is_down = any(part in name for part in (".lora_A.", ".lora.down.", ".lora_down."))
        if len(shape) >= 2 and (shape[1] != inputs if is_down else shape[0] != outputs):
            return f"{name} is {list(shape)}, but the layer maps {inputs} to {outputs} features there"
    return ""


def _problem(shapes: Shapes, ours: Shapes) -> str:
    """What distinguishes two networks; "" if nothing does."""
    if shapes.keys() != ours.keys():
        name = min(shapes.keys() ^ ours.keys())
        return f"{name} is only in {'the file' if name in shapes else 'that model'}"
    for name, shape in shapes.items():
        if shape != ours[name]:
            return f"{name} is {list(shape)}, there {list(ours[name])}"
    return ""


def _module(name: str) -> str:
    """The layer a LoRA tensor belongs to."""
    return name.partition(".lora")[0]


def _class_in(file: Path) -> str | None:
    """The class a ``config.json`` of diffusers names; None if this is none."""
    name = _json(file).get("_class_name") if file.is_file() else None
    return None if name is None else str(name)


def _json(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again.") from error
    return values
