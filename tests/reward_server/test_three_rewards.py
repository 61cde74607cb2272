"""GenEval, OCR and PickScore in one server from one YAML file: the real scorers, on small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from awm.rewards.table import make_mixture
from reward_server.check import main as check
from tests.reward_server.serving import wait_for
from tests.tiny_clip import save_tiny_clip
from tests.tiny_mask2former import save_tiny_mask2former

CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "text": "HELLO"}


def sign(text: str) -> Tensor:
    """A white image [3, 256, 256] in [0, 1] with black letters."""
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).text((128, 128), text, fill="black", font=ImageFont.load_default(48), anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_three_rewards_of_one_server_mixed_by_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, detector = str(save_tiny_clip(tmp_path / "clip")), str(save_tiny_mask2former(tmp_path / "detector"))
    scorers = {
        "geneval": {"options": {"detector": "hf", "model": detector, "clip": clip}},
        "ocr": {"options": {"engine": "rapidocr"}},
        "pickscore": {"options": {"model": clip, "processor": None}},
    }
    config, url_file = tmp_path / "server.yaml", tmp_path / "url"
    config.write_text(json.dumps({"port": 0, "scorers": scorers}))
    command = [sys.executable, "-m", "reward_server.cli", "--config", str(config), "--url-file", str(url_file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: url_file.exists() or server.poll() is not None, 180)
            url = url_file.read_text().strip()
            check([url])
            reward = make_mixture({"geneval": 1.0, "ocr": 0.5, "pickscore": 0.3, "geneval.strict": 0.0}, [url])
            reward.check()
            images = torch.stack([sign("HELLO"), sign("GOODBYE")])
            rewards = reward(images, ['a red cup that says "HELLO"'] * 2, [CUP] * 2)
        finally:
            server.terminate()
    assert capsys.readouterr().out.count(" ok ") == 3
    assert rewards.valid.all()
    assert rewards.parts["ocr"][0] == 1.0 and rewards.parts["ocr"][1] < 0.5
    expected = rewards.parts["geneval"] + 0.5 * rewards.parts["ocr"] + 0.3 * rewards.parts["pickscore"]
    torch.testing.assert_close(rewards.total, expected)
    assert {"geneval.strict", "ocr.contained", "pickscore.raw"} <= set(rewards.parts)
