"""The batches of one optimizer step: micro-batches to accumulate, and reports of similar length together."""

import torch

from melp.data.prepared import TrainingBatches

WINDOW = 50  # batches whose rows are sorted together: enough to save most padding, few enough to keep an epoch random


class StepBatches(TrainingBatches):
    """`[step]` is a list of collated micro-batches; otherwise as its base class.

    With `lengths` (one a row), rows are sorted by length within stretches of 50 batches of the epoch's order, and the
    batches of a stretch come in random order. The rows of a step then stay the same for any number of processes.
    """

    def __init__(self, rows, collate, batch_size, seed, rank=0, world=1, accumulation_steps=1, lengths=None):
        super().__init__(rows, self.micro_batches, batch_size * accumulation_steps, seed, rank, world)
        self.collate_rows, self.micro_batch_size = collate, batch_size
        self.lengths = None if lengths is None else torch.as_tensor(lengths)

    def micro_batches(self, rows: list[dict]) -> list[dict]:
        size = self.micro_batch_size
        return [self.collate_rows(rows[first : first + size]) for first in range(0, len(rows), size)]

    def order(self, epoch: int) -> torch.Tensor:
        order = super().order(epoch)
        if self.lengths is None:
            return order
        generator = torch.Generator().manual_seed(self.seed + epoch)
        whole = self.steps_per_epoch * self.global_batch  # what is left over belongs to no batch
        batches = []
        for stretch in order[:whole].split(WINDOW * self.global_batch):
            stretch = stretch[self.lengths[stretch].argsort(stable=True)].view(-1, self.global_batch)
            batches.append(stretch[torch.randperm(len(stretch), generator=generator)])
        return torch.cat(batches).flatten()
