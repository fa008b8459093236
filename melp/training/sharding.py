"""Launches beyond one process and DDP: FSDP2, as Accelerate's configuration asks for it.

Where weights are sharded, a forward is a matter of all processes at once. Training steps are; validation, saving and
pictures are not: for these each process has a plain copy of the model, into which the whole weights are gathered.
"""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, convert_outputs_to_fp32, disable_fsdp_ram_efficient_loading
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from melp.training.recipe import Recipe


def check_launch(accelerator: Accelerator, recipe: Recipe):
    """Sets what Accelerate leaves to the script.

    Raises:
        ValueError: for what Accelerate can be configured to and MELP cannot be trained with.
    """
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu" and accelerator.scaler is None:
        raise ValueError("mixed_precision fp16 needs a GPU, for its gradients are scaled there only: use bf16.")
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if not accelerator.is_fsdp2:
            raise ValueError("FSDP's first version is not supported: set fsdp_version: 2 for Accelerate.")
        # Every process reads or draws the same weights; the models are small beside a host's memory.
        disable_fsdp_ram_efficient_loading()
        plugin.cpu_ram_efficient_loading = False
        # Autocast over float32 weights, as in DDP, instead of a model that is bfloat16 throughout.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("DeepSpeed is not supported: models of this size need DDP, or FSDP2 where memory is short.")


def describe_launch(accelerator: Accelerator) -> str:
    """Returns the processes and their device in words."""
    sharded = ", FSDP2" if accelerator.is_fsdp2 else ""
    return f"{accelerator.num_processes} process(es) on {accelerator.device}{sharded}"


def prepare(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
    """Hands model and optimizer to Accelerate, with what FSDP2 takes for these models.

    Units of sharding are the transformer layers; all other weights are the root's. Accelerate would make units of the
    embeddings and the output matrix as well, which fails where they share a bias (BERT's masked-language head) or lie
    in another unit. Parameters without a dimension cannot be sharded and stay whole.
    """
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model, optimizer)
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules) - {"BertEmbeddings"})
    scalars = scalar_parameters(model)
    for scalar in scalars:  # the others are moved as they are sharded
        scalar.data = scalar.data.to(accelerator.device)
    plugin.ignored_modules = [torch.nn.ParameterList(scalars)]
    embeddings = ("get_input_embeddings", "get_output_embeddings")
    for name in embeddings:
        setattr(model, name, lambda: None)
    model, optimizer = accelerator.prepare(model, optimizer)
    for name in embeddings:
        delattr(model, name)
    autocast_forward(accelerator, model)
    return model, optimizer


def autocast_forward(accelerator: Accelerator, model: torch.nn.Module):
    """Wraps the model's forward as Accelerate does that of a model that it does not shard."""
    if accelerator.native_amp:
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))


def scalar_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns the parameters without a dimension."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 0]


def clip_gradients(accelerator: Accelerator, model: torch.nn.Module, max_norm: float) -> torch.Tensor:
    """Scales the gradients down to the norm; returns what it was, the same on all processes."""
    if accelerator.is_fsdp2:
        for scalar in scalar_parameters(model):
            scalar.grad = accelerator.reduce(scalar.grad, "mean")
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    if isinstance(norm, DTensor):
        return norm.full_tensor()
    return torch.tensor(norm, device=accelerator.device) if isinstance(norm, float) else norm


class WholeWeights:
    """A plain copy of a model that is about to be sharded; it waits in the host's memory between its uses."""

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module):
        self.accelerator, self.copy = accelerator, copy.deepcopy(model).eval()
        autocast_forward(accelerator, self.copy)

    def gather(self, model: torch.nn.Module) -> torch.nn.Module:
        """Returns the copy, on this process's device, with `model`'s present weights. Called by every process."""
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        self.copy.to(self.accelerator.device).load_state_dict(weights)
        return self.copy

    def release(self):
        """Moves the copy back to the host's memory."""
        self.copy.to("cpu")
