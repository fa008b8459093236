"""Losses that run over all rows of a step, on whatever process and in whatever micro-batch they are."""

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
import torch.nn.functional as F

from melp.training.rng import rng_state, set_rng_state
from melp.training.stages.base import Stage


class _Gather(torch.autograd.Function):
    """Joins every process's rows, in the order of the ranks; the gradient is that of all processes' losses."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Joins (batch, ...) of each process to (world * batch, ...); equally many rows per process."""
    return _Gather.apply(tensor) if dist.is_initialized() and dist.get_world_size() > 1 else tensor


def pad_second(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Pads (rows, n, ...) to (rows, length, ...) with zeros."""
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, length - tensor.shape[1]))


def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins embeddings or facts of micro-batches, padded to the longest in their second dimension."""
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].ndim > 1:
            values = [pad_second(value, max(other.shape[1] for other in values)) for value in values]
        joined[name] = torch.cat(values)
    return joined


class JointStage(Stage, ABC):
    """A stage with two kinds of losses.

    Joint ones, such as a contrastive loss, are no sum over rows: they are made of `embeddings`, small tensors of all
    rows of the step. A micro-batch's own losses are means over its rows or targets, and simply accumulate.
    """

    weights: dict[str, float]  # of the named losses in `loss`

    @abstractmethod
    def forward(self, batch: dict, model) -> tuple:
        """Returns the model's outputs for a batch, and facts that the joint losses need: tensors, rows first.

        `targets` (1,) among them is how many targets the batch's own losses are means over.
        """

    def embed(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Returns `embeddings` and facts of a batch alone, drawing the random numbers that a forward draws."""
        outputs, facts = self.forward(batch, self.unwrapped)
        return self.embeddings(outputs), facts

    @abstractmethod
    def embeddings(self, outputs) -> dict[str, torch.Tensor]:
        """Returns what the joint losses are made of, float32 by name; the first dimension: rows or micro-batches."""

    @abstractmethod
    def joint_losses(self, embeddings: dict[str, torch.Tensor], facts: dict[str, torch.Tensor]) -> dict:
        """Computes the named losses over all rows of the step, of all processes."""

    def joint_parameters(self) -> list[torch.nn.Parameter]:
        """Returns the parameters that only the joint losses use."""
        return []

    @abstractmethod
    def own_losses(self, outputs, target_share, row_share) -> dict[str, torch.Tensor]:
        """Computes a micro-batch's losses, means over its targets and rows, weighted by its shares of the step's."""

    def sum_losses(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds the weighted sum of the named losses, `loss`; those that are missing count nothing."""
        return losses | {"loss": sum(weight * losses[name] for name, weight in self.weights.items() if name in losses)}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """Computes the named losses of the global batch: negatives and means over targets span all processes."""
        outputs, facts = self.forward(batch, self.model)
        joint = self.joint_losses(self.embeddings(outputs), facts)
        # DDP averages the gradients of the processes, so each weighs its mean by its share of the targets.
        (share,) = self.shares([facts["targets"][0]])
        return self.sum_losses(joint | self.own_losses(outputs, share, 1.0))

    def backward(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """Computes one large batch's gradients in a micro-batch's memory (Gao et al., GradCache, arXiv 2101.06983).

        Embeddings of all micro-batches are made without a graph; the joint losses give their gradients; then each
        micro-batch is run again with the same random numbers and these gradients are propagated into it. Its own
        losses accumulate.
        """
        if len(batches) == 1:
            return super().backward(batches)
        device, states, embedded = self.accelerator.device, [], []
        with torch.no_grad():
            for batch in batches:
                states.append(rng_state(device))
                embedded.append(self.embed(batch))
        parts, facts = ([part[index] for part in embedded] for index in (0, 1))
        embeddings = {name: value.requires_grad_() for name, value in join(parts).items()}
        totals = self.joint_losses(embeddings, join(facts))
        parameters = self.joint_parameters()
        gradients = torch.autograd.grad(self.sum_losses(totals)["loss"], [*embeddings.values(), *parameters])
        embedding_gradients = dict(zip(embeddings, gradients, strict=False))
        for name, gradient in embedding_gradients.items():
            embedding_gradients[name] = gradient.split([len(part[name]) for part in parts])
        shares = self.shares([fact["targets"][0] for fact in facts])
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            set_rng_state(states[index], device)
            with self.synchronised(last):
                outputs, _ = self.forward(batch, self.model)
                own = self.own_losses(outputs, shares[index], 1 / len(batches))
                surrogate = self.sum_losses(own)["loss"]
                for name, value in self.embeddings(outputs).items():
                    gradient = embedding_gradients[name][index]
                    if value.ndim > 1:
                        gradient = gradient[:, : value.shape[1]]  # joining may have padded
                    surrogate = surrogate + (value * gradient).sum()
                if last:  # the processes exchange these gradients with the others
                    pairs = zip(parameters, gradients[len(embeddings) :], strict=True)
                    surrogate = surrogate + sum(parameter * gradient for parameter, gradient in pairs)
                self.accelerator.backward(surrogate)
            for name, value in own.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
        return {name: value.detach() for name, value in self.sum_losses(totals).items()}
