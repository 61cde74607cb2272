"""The hf detector and a random Mask2Former of mmdet itself find the same objects, from pixels to scores.

Needs mmdet, so it is skipped in the ordinary environment. In the one train_scripts/setup_mmdet.sh makes, with pytest
added: ``PYTHONPATH=. python -m pytest tests/reward_server/geneval/test_mmdet_parity.py``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

mmdet = pytest.importorskip("mmdet", reason="mmdet is not installed", exc_type=ImportError)
pytest.importorskip("mmcv.ops", reason="mmcv was built without its operators", exc_type=ImportError)
from mmdet.apis import inference_detector, init_detector  # noqa: E402
from mmengine.config import Config  # noqa: E402

from reward_server.scorers.geneval.conversion import convert_mask2former  # noqa: E402
from reward_server.scorers.geneval.instances import Instance, geometry, instances, prepare  # noqa: E402
from reward_server.scorers.geneval.mask2former import load_mask2former  # noqa: E402
from reward_server.scorers.geneval.mmdet_detector import CONFIG  # noqa: E402

WIDTH, HEADS = 32, 4


@pytest.fixture(scope="module")
def original() -> Any:
    """GenEval's network with fewer and narrower layers and random weights."""
    config = Config.fromfile(Path(mmdet.__path__[0], ".mim", "configs", CONFIG))
    backbone, head = config.model.backbone, config.model.panoptic_head
    backbone.embed_dims, backbone.depths, backbone.num_heads = 16, [2, 1, 2, 1], [1, 2, 4, 8]
    head.in_channels, head.feat_channels, head.out_channels, head.num_queries = [16, 32, 64, 128], WIDTH, WIDTH, 12
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = WIDTH // 2
    pixels, queries = head.pixel_decoder.encoder, head.transformer_decoder
    pixels.num_layers, queries.num_layers = 2, 3
    for attention in (
        pixels.layer_cfg.self_attn_cfg,
        queries.layer_cfg.self_attn_cfg,
        queries.layer_cfg.cross_attn_cfg,
    ):
        attention.embed_dims, attention.num_heads = WIDTH, HEADS
    for feed_forward, width in ((pixels.layer_cfg.ffn_cfg, 64), (queries.layer_cfg.ffn_cfg, 48)):
        feed_forward.embed_dims, feed_forward.feedforward_channels = WIDTH, width
    torch.manual_seed(0)  # for the biases, which mmdet draws
    model = init_detector(config, None, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 0.05 if "sampling_offsets" in name else 0.25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.panoptic_head.cls_embed.weight.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def converted(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mmdet")
    torch.save({"meta": {}, "state_dict": original.state_dict()}, folder / "detector.pth")
    convert_mask2former(folder / "detector.pth", folder / "converted")
    return load_mask2former(str(folder / "converted"))


def picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    patches = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize(size[::-1], Image.Resampling.BICUBIC))


def by_mmdet(model: Any, image: NDArray[np.uint8]) -> list[Instance]:
    found = inference_detector(model, [np.ascontiguousarray(image[..., ::-1])])[0].pred_instances
    objects = []
    for label, score, box, mask in zip(found.labels, found.scores, found.bboxes, found.masks.numpy(), strict=True):
        x0, y0, x1, y1 = (int(side) for side in box)
        if mask.any():
            objects.append(Instance(int(label), float(score), (x0, y0, x1, y1), mask[y0:y1, x0:x1]))
    return objects


@pytest.mark.parametrize("size", [(512, 512), (300, 500), (777, 333), (900, 150)])
def test_same_objects(size: tuple[int, int], original: Any, converted: Any) -> None:
    image = picture(size)
    sizes = geometry(*size)
    with torch.no_grad():
        output = converted(pixel_values=prepare(image, sizes, device=torch.device("cpu"))[None])
    found, expected = (
        sorted(objects, key=lambda o: (o.label, o.box, o.score))
        for objects in (
            instances(output.class_queries_logits[0], output.masks_queries_logits[0], sizes, min_score=-1.0),
            by_mmdet(original, image),
        )
    )
    assert [(o.label, o.box) for o in found] == [(o.label, o.box) for o in expected]
    # Not closer: rounding can put a pixel on the border of a query's attention mask on its other side.
    assert [o.score for o in found] == pytest.approx([o.score for o in expected], abs=2e-4)
    assert max(int((a.mask != b.mask).sum()) for a, b in zip(found, expected, strict=True)) <= 4
