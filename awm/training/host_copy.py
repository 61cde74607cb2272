"""Images on their way from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of ``images`` that is begun at once and waited for later, by whoever needs the pixels.

    From a GPU it goes into page-locked memory behind the work that is queued there already, so that the host can queue
    the next batch meanwhile. Elsewhere it is made at once.
    """

    def __init__(self, images: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if images.device.type != "cuda":
            self._images = images.cpu()
            return
        self._images = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
        self._images.copy_(images, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(images.device))

    def wait(self) -> Tensor:
        """The images, once they are there; any thread may ask."""
        if self._done is not None:
            self._done.synchronize()
        return self._images
