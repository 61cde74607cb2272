"""Transformer blocks compiled one by one, for one shape at a time; without compilation where that fails.

Blocks of equal structure share their code, so that a network costs as many compilations as it has kinds of blocks
(three in SD3.5 Medium), for each shape and kind of forward: with gradient, without, without adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

LIMIT = 64
"""Compilations of a block's code in a process; what comes after them runs as it is written.

A run needs about fourteen forwards of different shape or kind, each in three kinds of blocks: training and its last,
smaller micro-batch, anchor, reference, the probe, sampling and evaluation and their last batches. Torch's own limit
of 8 is for all of them together.
"""


class BlockCompiler:
    """Compiles the blocks of networks, and runs forwards of these.

    Args:
        backend: torch.compile's.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend
        self._blocks: list[nn.Module] = []

    @property
    def is_active(self) -> bool:
        """Whether blocks are compiled: some were given, and it has not failed."""
        return bool(self._blocks)

    def add(self, transformer: Any) -> None:
        """Compile the blocks of ``transformer``, each at its first forward."""
        for block in transformer.transformer_blocks:
            block.compile(backend=self._backend, dynamic=False, recompile_limit=LIMIT)
            self._blocks.append(block)

    def __call__(self, forward: Callable[[], Tensor]) -> Tensor:
        """``forward()``; if compiling fails, the same once more without, and all later ones without.

        Only errors of the compiler are caught. What fails while compiled code runs, as for lack of memory, is raised.
        """
        if not self._blocks:
            return forward()
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            with _settings():
                return forward()
        except (TorchDynamoException, InductorError) as error:
            self._give_up(error)
        return forward()

    def _give_up(self, error: Exception) -> None:
        for block in self._blocks:
            block._compiled_call_impl = None
        self._blocks.clear()
        cause: BaseException = error
        while isinstance(inner := getattr(cause, "inner_exception", None), BaseException):
            cause = inner
        reason = next(iter(str(cause).strip().splitlines()), "")
        warnings.warn(
            f"train.compile=True: compiling a transformer block failed ({type(cause).__name__}: {reason}); the run "
            f"goes on without. Often a compiler is missing: a C++ one for CPUs, Triton for GPUs.",
            RuntimeWarning,
            stacklevel=2,
        )


def _settings() -> ExitStack:
    """What compiling in a forward needs of torch, for as long as this lasts."""
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    stack = ExitStack()
    # The backward pass is compiled with the forward, where a failure can still be answered.
    stack.enter_context(functorch.patch(force_non_lazy_backward_lowering=True))
    # DistributedDataParallel's buckets end between blocks anyway.
    stack.enter_context(dynamo.patch(optimize_ddp=False))
    return stack
