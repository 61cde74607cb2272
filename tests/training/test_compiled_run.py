"""What train.compile promises a run: the numbers of the plain one up to rounding, with torch's own compiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ml_collections import ConfigDict

from awm.building import build_trainer
from awm.training import parity
from awm.training.distributed import Distributed
from awm.training.metrics import read_metrics
from awm.training.stopping import StopRequest


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one_up_to_rounding(
    make_config: Callable[..., ConfigDict], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parity, "IMAGES", 8)
    torch._dynamo.reset()
    lines = []
    for compiled in (False, True):
        config = make_config(
            run_name=f"compiled_{compiled}", eval_freq=0, sample__merge_lora=True, train__compile=compiled
        )
        distributed = Distributed(config.mixed_precision)
        trainer = build_trainer(config, distributed, StopRequest(distributed))
        trainer.train()
        trainer.outputs.finish()
        assert trainer.policy.model._compiler.is_active is compiled  # it did not give up
        lines.append(read_metrics(trainer.outputs.run / "metrics.jsonl"))
    for plain, fast in zip(*lines, strict=True):
        for name in ("reward/mean", "loss/policy", "loss/kl_anchor", "grad_norm", "velocity_norm_ratio"):
            assert fast[name] == pytest.approx(plain[name], rel=0.02, abs=1e-5), name
