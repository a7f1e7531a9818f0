"""The processes that train one network together, as `torchrun` starts them; or the only one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device('cpu')

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks."""
        return self.rank == 0

    def part(self, joint: int) -> slice:
        """Which of the joint batch's pairs are this process's. Raises ValueError unless all get the same number."""
        if joint % self.world:
            raise ValueError(f'batch: expected a multiple of the {self.world} processes, got {joint}')
        own = joint // self.world
        return slice(self.rank * own, (self.rank + 1) * own)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are those of the joint batch."""
        if self.world == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == 'cuda' else None)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over the processes."""
        if self.world == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.world

    def share(self, count: Tensor) -> Tensor:
        """How much more than its due this process's part of all points weighs: makes the mean over processes of means over points the joint mean."""
        return count / self.mean(count.to(torch.float32)).clamp(min=torch.finfo(torch.float32).tiny)

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of the processes."""
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)


@contextlib.contextmanager
def joined(device: str = 'auto') -> Iterator[Ranks]:
    """The processes of this `torchrun`, joined for the duration; one process without it."""
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('device: cuda was asked for, but there is no accelerator that this torch can use')
    kind = device if device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
    local = torch.device(kind, int(os.environ.get('LOCAL_RANK', 0))) if kind == 'cuda' else torch.device(kind)
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        yield Ranks(device=local)
        return
    if kind == 'cuda':
        torch.cuda.set_device(local)
    distributed.init_process_group('nccl' if kind == 'cuda' else 'gloo')
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local)
    finally:
        distributed.destroy_process_group()
