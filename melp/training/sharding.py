"""Launches beyond one process and DDP: FSDP2 and DeepSpeed, as Accelerate's configuration asks for them.

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
        if recipe.accumulation_steps > 1:
            raise ValueError("DeepSpeed steps after each backward pass: --accumulation-steps needs DDP or FSDP2.")
        plugin = accelerator.state.deepspeed_plugin
        if (zero := _zero_stage(accelerator)) not in (1, 2):  # also where a config file says it
            # Without ZeRO it takes steps whose gradient is not finite.
            instead = "FSDP2, which shards the same" if zero == 3 else "DDP"
            raise ValueError(f"DeepSpeed's ZeRO-{zero} is not supported: use {instead}, or ZeRO-1 or 2.")
        if accelerator.mixed_precision == "fp16":
            raise ValueError("mixed_precision fp16 is not supported under DeepSpeed: use bf16.")
        plugin.deepspeed_config.pop("bf16", None)  # autocast here too
        # It would read the batch size from a loader of Accelerate's; ours is its own. It clips in its own step.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = recipe.batch_size
        plugin.deepspeed_config["gradient_clipping"] = recipe.max_grad_norm


def steps_in_backward(accelerator: Accelerator) -> bool:
    """DeepSpeed takes the optimizer's step, or leaves it out, as it propagates."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def _zero_stage(accelerator: Accelerator) -> int:
    if not steps_in_backward(accelerator):
        return 0
    return accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0)


def describe_launch(accelerator: Accelerator) -> str:
    zero = _zero_stage(accelerator)
    sharded = ", FSDP2" if accelerator.is_fsdp2 else f", ZeRO-{zero}" if zero else ""
    return f"{accelerator.num_processes} process(es) on {accelerator.device}{sharded}"


def prepare(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, bf16: bool):
    """Accelerate's `prepare`, and what it takes for these models.

    Units of sharding are the transformer layers; all other weights are the root's. Accelerate would make units of the
    embeddings and the output matrix as well, which fails where they share a bias (BERT's masked-language head) or lie
    in another unit. Parameters without a dimension cannot be sharded and stay whole; DeepSpeed cannot broadcast them.
    """
    scalars = scalar_parameters(model)
    if steps_in_backward(accelerator):
        for scalar in scalars:
            scalar.ds_optim_param = True  # DeepSpeed 0.19 fails to broadcast these, which are the same everywhere
        if bf16:  # Accelerate leaves it to DeepSpeed
            autocast = torch.autocast(accelerator.device.type, dtype=torch.bfloat16)
            model.forward = convert_outputs_to_fp32(autocast(model.forward))
        model, optimizer = accelerator.prepare(model, optimizer)
        for scalar in scalars:
            del scalar.ds_optim_param
        return model, optimizer
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model, optimizer)
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules) - {"BertEmbeddings"})
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
    """What Accelerate does to a model that it does not shard."""
    if accelerator.native_amp:
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))


def scalar_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 0]


def clip_gradients(accelerator: Accelerator, model: torch.nn.Module, max_norm: float) -> torch.Tensor | None:
    """Scales the gradients down to the norm; returns what it was, the same on all processes."""
    if accelerator.is_fsdp2:
        for scalar in scalar_parameters(model):
            scalar.grad = accelerator.reduce(scalar.grad, "mean")
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    if isinstance(norm, DTensor):
        return norm.full_tensor()
    return torch.tensor(norm, device=accelerator.device) if isinstance(norm, float) else norm


def keep_value(accelerator: Accelerator, parameter: torch.nn.Parameter):
    """After a change of a parameter by hand: DeepSpeed would overwrite it with its own copy in the next step."""
    if steps_in_backward(accelerator):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, parameter.detach().float())


class WholeWeights:
    """A plain copy of a model that is about to be sharded; it waits in the host's memory between its uses."""

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module):
        self.accelerator, self.copy = accelerator, copy.deepcopy(model).eval()
        autocast_forward(accelerator, self.copy)

    def gather(self, model: torch.nn.Module) -> torch.nn.Module:
        """The copy, on this process's device, with the weights that `model` has now. Called by every process."""
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        self.copy.to(self.accelerator.device).load_state_dict(weights)
        return self.copy

    def release(self):
        self.copy.to("cpu")
