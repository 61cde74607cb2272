"""Downloading published prompt files, for builders that are asked to; nothing else here uses a network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx

TIMEOUT_S = 60.0
MAX_BYTES = 256 << 20


def fetch(url: str) -> Path:
    """The file behind a URL, in a temporary folder that lives as long as the process.

    Raises:
        ValueError: it cannot be downloaded; says what to do without a network.
    """
    path = Path(tempfile.mkdtemp(prefix="prompts-")) / url.rpartition("/")[2]
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=True) as reply, path.open("wb") as file:
            reply.raise_for_status()
            for chunk in reply.iter_bytes():
                file.write(chunk)
                if file.tell() > MAX_BYTES:
                    raise ValueError(f"{url} is larger than {MAX_BYTES >> 20} MB, which no prompt file is")
    except httpx.HTTPError as error:
        raise ValueError(f"cannot download {url}: {error}; download it elsewhere and give its path") from error
    return path


def fetch_shards(repository: str, split: str) -> list[Path]:
    """The parquet files of one split of a data set on the Hugging Face hub, through the hub's cache.

    Raises:
        ValueError: no network, no such data set, or no such split.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = shards(HfApi().list_repo_files(repository, repo_type="dataset"), split)
        if not names:
            raise ValueError(f"{repository} has no parquet files of the split {split!r}")
        return [Path(hf_hub_download(repository, name, repo_type="dataset")) for name in names]
    except (OSError, httpx.HTTPError) as error:
        raise ValueError(
            f"cannot download {repository}: {error}; download a parquet file of it elsewhere and give --from-parquet"
        ) from error


def shards(names: Sequence[str], split: str) -> list[str]:
    """Those of a repository's files that hold the split: ``data/train-00000-of-00004.parquet``, ``train/0.parquet``."""
    return sorted(
        name
        for name in names
        if name.endswith(".parquet") and any(part == split or part.startswith(f"{split}-") for part in name.split("/"))
    )
