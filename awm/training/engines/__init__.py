"""How weights, gradients and optimizer state are spread over the ranks: DDP, FSDP2 or DeepSpeed ZeRO."""

from awm.training.engines.choice import check_installed, choose_engine
from awm.training.engines.interface import Engine

__all__ = ["Engine", "check_installed", "choose_engine"]
