"""Multi-scale stage: ECG tower, text tower and report decoder aligned by the three losses."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from transformers import AutoModel, AutoTokenizer

from configuration_melp import MelpConfig
from data import MelpCollator, prepare_inputs
from losses_melp import beat_loss, contrastive_loss
from modeling_melp import MelpEcgModel, MelpModel
from processing_melp import MelpFeatureExtractor, MelpProcessor, with_bos
from recipe import Recipe, check_names, load_recipe
from stages.stage import Stage


class _Gather(torch.autograd.Function):
    """Every process's rows, in the order of the ranks, with the gradient of all processes' losses."""

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
    """(batch, ...) of this process to (world * batch, ...); equally many rows a process."""
    return _Gather.apply(tensor) if dist.is_initialized() and dist.get_world_size() > 1 else tensor


class MelpStage(Stage):
    """The three losses at 1 : 2 : 0.2 (paper, section 3); leaves a MELP model folder."""

    loss_names = ["caption_loss", "contrastive_loss", "local_loss", "loss"]

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        super().__init__(recipe, accelerator)
        columns = ["report", "signal", "leads", "gain", "baseline"]
        self.rows, self.held_out = self.rows.select_columns(columns), self.held_out.select_columns(columns)
        if recipe.model is not None:
            if recipe.config or recipe.text_model or recipe.ecg_model:
                raise ValueError("config, text_model and ecg_model have no effect beside model: leave them out.")
            self.model = MelpModel.from_pretrained(recipe.model, dtype=torch.float32)
            self.processor = MelpProcessor.from_pretrained(recipe.model)
        elif recipe.text_model is not None:
            self.model, self.processor = new_model(recipe)
        else:
            raise ValueError(
                "the multi-scale stage needs --model (a MELP folder to go on from) or --text-model (a BERT folder or "
                "Hub id, such as the language stage's output)."
            )
        self.model.freeze_text_layers()
        self.config = self.model.config
        self.collate = MelpCollator(self.processor, crop="random", sentence_augmentation=recipe.sentence_augmentation)
        self.eval_collate = MelpCollator(self.processor)

    def describe(self) -> str:
        return f"{len(self.rows):,} pairs, {self.unwrapped.num_parameters():,} parameters"

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The named losses of the global batch: negatives and the mean over tokens span all processes."""
        config, accelerator = self.config, self.accelerator
        lead_dropout = self.recipe.lead_dropout if self.model.training else 0.0
        batch = prepare_inputs(batch, accelerator.device, config.ecg_config.scaling, lead_dropout)
        outputs = self.model(**batch, return_loss=False)

        num_tokens = batch["attention_mask"][:, 1:].sum().float()
        mean_tokens = accelerator.reduce(num_tokens, "mean")
        losses = {
            "contrastive_loss": contrastive_loss(
                gather(outputs.ecg_embeds), gather(outputs.text_embeds), self.unwrapped.logit_scale.exp()
            ),
            # DDP averages the gradients of the processes, so each weighs its mean by its share of the tokens.
            "caption_loss": outputs.caption_loss * (num_tokens / mean_tokens),
            "local_loss": beat_loss(
                gather(outputs.beat_embeds),
                *self._gather_sentences(outputs),
                attention_scale=config.beat_attention_scale,
                similarity_scale=config.sentence_similarity_scale,
                logit_scale=config.local_logit_scale,
            ),
        }
        losses["loss"] = (
            config.contrastive_loss_weight * losses["contrastive_loss"]
            + config.caption_loss_weight * losses["caption_loss"]
            + config.local_loss_weight * losses["local_loss"]
        )
        return losses

    def _gather_sentences(self, outputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Sentence embeddings and mask of all processes, padded to the report with most sentences among them."""
        embeds, mask = outputs.sentence_embeds, outputs.sentence_mask
        if self.accelerator.num_processes > 1:
            longest = self.accelerator.gather(torch.tensor([mask.shape[1]], device=mask.device)).max().item()
            missing = longest - mask.shape[1]
            embeds = torch.nn.functional.pad(embeds, (0, 0, 0, missing))
            mask = torch.nn.functional.pad(mask, (0, missing))
            mask = self.accelerator.gather(mask)
        return gather(embeds), mask

    def after_step(self):
        self.unwrapped.clamp_logit_scale()

    def extra_metrics(self) -> dict[str, float]:
        return {"logit_scale": self.unwrapped.logit_scale.exp().item()}

    def validate(self) -> dict[str, float]:
        """Mean losses over the held-out pairs, each process on batches of its own."""
        model = self.unwrapped

        def losses_of(batch):
            batch = prepare_inputs(batch, self.accelerator.device, self.config.ecg_config.scaling)
            outputs = model(**batch, return_loss=True)
            return {name: outputs[name] for name in self.loss_names}

        return self.mean_over_batches(losses_of, self.recipe.batch_size)

    def save(self, folder: Path):
        """Weights in bfloat16 (the temperature in float32), configuration, code, processor and tokenizer."""
        model = copy.deepcopy(self.unwrapped).to(torch.bfloat16)
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @staticmethod
    def next_command(output: Path) -> str:
        data = Stage.data_folder(load_recipe(output / "recipe.yaml"))
        return f"python evaluate.py zero-shot --model {output / 'model'} --data {data}"


def new_model(recipe: Recipe) -> tuple[MelpModel, MelpProcessor]:
    """A model whose text tower is the recipe's, its vocabulary extended by [BOS], and everything else drawn."""
    check_names(recipe.config, MelpConfig().to_dict(), "the model's configuration")
    tokenizer = with_bos(AutoTokenizer.from_pretrained(recipe.text_model))
    text_model = AutoModel.from_pretrained(recipe.text_model, add_pooling_layer=False, dtype=torch.float32)
    text_model.resize_token_embeddings(len(tokenizer))
    text_config = text_model.config.to_dict()
    del text_config["dtype"]  # the whole model has one
    sizes = dict(recipe.config)
    ecg_model = None
    if recipe.ecg_model is not None:
        if "ecg_config" in sizes:
            raise ValueError("config's ecg_config has no effect beside ecg_model, whose sizes are given.")
        ecg_model = MelpEcgModel.from_pretrained(recipe.ecg_model, dtype=torch.float32)
        sizes["ecg_config"] = ecg_model.config.to_dict() | {"token_dim": text_config["hidden_size"]}
        for name in ("dtype", "architectures", "auto_map"):  # the whole model's are its own
            sizes["ecg_config"].pop(name, None)
    config = MelpConfig(
        **sizes,
        text_config=text_config,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
    )
    model = MelpModel(config)
    model.text_model.load_state_dict(text_model.state_dict())
    if ecg_model is not None:
        load_ecg_tower(model.ecg_model, ecg_model)
    extractor = MelpFeatureExtractor.for_model(config.ecg_config)
    return model, MelpProcessor(extractor, tokenizer, max_text_length=config.max_text_length)


def load_ecg_tower(ecg_model: MelpEcgModel, source: MelpEcgModel):
    """Weights of a pretrained tower; where the token pooler's width is another text tower's, its own stay."""
    weights = ecg_model.state_dict()
    for name, value in source.state_dict().items():
        if value.shape == weights[name].shape or not name.startswith("token_pooler."):
            weights[name] = value
    ecg_model.load_state_dict(weights)
