"""open_clip checkpoints become CLIPModels that compute the same; anything else is refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_server.scorers.clip import Clip
from reward_server.scorers.clip_conversion import config_of, convert_open_clip, convert_weights, load_open_clip
from reward_server.scorers.clip_files import CLIPModel
from reward_server.scorers.hps import HPSv2
from tests.reward_server.test_clip_scorers import batch, logits, scores
from tests.tiny_clip import tiny_tokenizer

IMAGE_SIZE, PATCH, WIDTH, TEXT_WIDTH, DIMENSION, TOKENS = 32, 8, 128, 64, 24, 77
VOCABULARY = len(tiny_tokenizer())
quick_gelu: Callable[[Tensor], Tensor] = lambda x: x * torch.sigmoid(1.702 * x)  # noqa: E731


class Block(nn.Module):
    """A pre-norm transformer layer with open_clip's names for its weights; heads are 64 wide."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)})
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y: Tensor = self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))
        return x + y


class Tower(nn.Module):
    def __init__(self, width: int, layers: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((IMAGE_SIZE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Tower(WIDTH, 3, activation)
        self.proj = nn.Parameter(torch.empty(WIDTH, DIMENSION))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, WIDTH), patches], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        features: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return features


class OpenClip(nn.Module):
    """CLIP written down once more, in plain torch, with the names open_clip gives its weights."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.visual = Visual(activation)
        self.transformer = Tower(TEXT_WIDTH, 2, activation)
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(TOKENS, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.empty(TEXT_WIDTH, DIMENSION))
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim:  # every weight and bias differs from every other
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        later = torch.full((length, length), -torch.inf).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, later))
        ends = x[torch.arange(len(tokens)), tokens.argmax(-1)]  # the end of the text has the largest id
        return self.visual(pixels), ends @ self.text_projection


@pytest.fixture(scope="module")
def reference() -> OpenClip:
    return OpenClip().eval()


@pytest.fixture(scope="module")
def checkpoint(reference: OpenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open_clip") / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 3, "state_dict": reference.state_dict()}, path)
    return path


def inputs() -> tuple[Tensor, Tensor]:
    texts = ["a cat", "two dogs on a bench"]
    tokens = tiny_tokenizer()(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    return torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1)), tokens


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("quick_gelu", quick_gelu)])
@torch.no_grad()
def test_the_converted_model_computes_the_same(
    tmp_path: Path, activation: str, function: Callable[[Tensor], Tensor]
) -> None:
    original, (pixels, tokens) = OpenClip(function).eval(), inputs()
    torch.save(original.state_dict(), tmp_path / "weights.pt")  # without {"state_dict": ...} around it
    model = load_open_clip(tmp_path / "weights.pt", torch.float32, activation=activation)
    images, texts = original(pixels, tokens)
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.get_text_features(tokens).pooler_output, texts, atol=1e-5, rtol=1e-4)
    assert model.logit_scale.item() == pytest.approx(4.6052)
    other = load_open_clip(
        tmp_path / "weights.pt", torch.float32, activation={"gelu": "quick_gelu"}.get(activation, "gelu")
    )
    assert (other.get_text_features(tokens).pooler_output - texts).abs().max() > 1e-3  # the comparison is sharp


def test_every_weight_arrives_exactly_once(reference: OpenClip, checkpoint: Path) -> None:
    model = load_open_clip(checkpoint, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())
    assert set(convert_weights(reference.state_dict())) == set(model.state_dict())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_written_folder_is_a_clip_model_with_its_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    convert_open_clip(checkpoint, tmp_path / "hps", tokenizer=str(tmp_path / "tokenizer"))
    converted, direct = CLIPModel.from_pretrained(tmp_path / "hps"), load_open_clip(checkpoint, torch.float32)
    for name, weight in direct.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
    folder = Clip(str(tmp_path / "hps"), device="cpu")
    file = Clip(str(checkpoint), processor=str(tmp_path / "tokenizer"), device="cpu")
    different = {name for name, value in file.fingerprint().items() if folder.fingerprint()[name] != value}
    assert different == {"model"}


def test_hps_scores_the_same_from_the_checkpoint_and_from_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    convert_open_clip(checkpoint, tmp_path, tokenizer=str(tmp_path))
    from_file = scores(HPSv2(str(checkpoint), processor=str(tmp_path), device="cpu")(batch()))
    assert from_file == scores(HPSv2(str(tmp_path), device="cpu")(batch()))
    assert from_file != pytest.approx((logits(tmp_path, batch()) / 100).tolist(), abs=1e-3)  # crops


def test_the_architecture_of_vit_h_follows_from_its_shapes() -> None:
    with torch.device("meta"):
        weights = {
            "visual.conv1.weight": torch.empty(1280, 3, 14, 14),
            "visual.positional_embedding": torch.empty(257, 1280),
            "visual.proj": torch.empty(1280, 1024),
            "token_embedding.weight": torch.empty(49408, 1024),
            "positional_embedding": torch.empty(77, 1024),
        }
        for prefix, layers, width in (("visual.transformer", 32, 1280), ("transformer", 24, 1024)):
            for layer in range(layers):
                weights[f"{prefix}.resblocks.{layer}.mlp.c_fc.weight"] = torch.empty(4 * width, width)
    config = config_of(weights, activation="gelu")
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1280, 32, 16)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (224, 14, 5120)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (1024, 24, 16)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (49408, 77, 49407)
    assert config.projection_dim == 1024 and vision.hidden_act == text.hidden_act == "gelu"


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_what_is_no_clip_checkpoint_is_refused(reference: OpenClip, tmp_path: Path) -> None:
    weights = reference.state_dict()
    with pytest.raises(ValueError, match=r"there is no file .*missing\.pt"):
        load_open_clip(tmp_path / "missing.pt", torch.float32)
    with pytest.raises(ValueError, match="holds no state dict"):
        load_open_clip(saved(tmp_path / "list.pt", [1, 2]), torch.float32)
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight is missing"):
        load_open_clip(saved(tmp_path / "text.pt", {"ln_final.bias": torch.zeros(3)}), torch.float32)
    with pytest.raises(ValueError, match="logit_bias is no weight of a CLIP model"):
        load_open_clip(saved(tmp_path / "siglip.pt", {**weights, "logit_bias": torch.zeros(1)}), torch.float32)
    less = dict(itertools.islice(weights.items(), len(weights) - 1))
    with pytest.raises(ValueError, match="do not fit"):
        load_open_clip(saved(tmp_path / "less.pt", less), torch.float32)
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load_open_clip(tmp_path / "page.pt", torch.float32)


def test_names_of_a_distributed_run_are_understood(reference: OpenClip, tmp_path: Path) -> None:
    weights = {f"module.{name}": weight for name, weight in reference.state_dict().items()}
    model = load_open_clip(saved(tmp_path / "ddp.pt", weights), torch.bfloat16)
    assert model.visual_projection.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.visual_projection.weight, reference.visual.proj.T.bfloat16())
