"""The base of all stages: a recipe, an accelerator, rows to learn from and held-out rows."""

import contextlib
import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch.utils.data import DataLoader

from melp.data.prepared import get_split, load_prepared, with_reports
from melp.data.stored import REQUIRED_COLUMNS
from melp.prepare.folder import prepare
from melp.training import sharding
from melp.training.recipe import Recipe

CORPUS = "runs/corpus"


class Stage:
    """A recipe, an accelerator and the prepared folder that the stage learns from.

    The loop asks for `rows`, `collate` and `backward`; then for `validate`, `save` and what the log should say.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.folders: list[Path] = []  # prepared folders that are learned from
        self.parts: list[tuple[int, int]] | None = None  # where there are several: rows of each, in it and in an epoch
        self.rows, self.held_out = self.load_rows()
        self.sharded = self.gathered = None

    def prepare(self, optimizer: torch.optim.Optimizer) -> AcceleratedOptimizer:
        """Hands the model and its optimizer to Accelerate."""
        if self.accelerator.is_fsdp2:
            self.sharded = sharding.WholeWeights(self.accelerator, self.model)
        self.model, optimizer = sharding.prepare(self.accelerator, self.model, optimizer)
        return optimizer

    @contextlib.contextmanager
    def whole_weights(self):
        """Makes `unwrapped` of use to each process on its own; entered by every process."""
        if self.sharded is None:
            yield
            return
        self.gathered = self.sharded.gather(self.model)
        try:
            yield
        finally:
            self.gathered = None
            self.sharded.release()

    def load_rows(self) -> tuple[Dataset, Dataset]:
        """Returns rows to learn from and held-out rows (maybe none): those with a report."""
        opened = self.load_splits()
        sources = [self._load_source(*source) for source in zip(self.folders, opened, strict=True)]
        if len(sources) == 1:
            return sources[0]
        rows, held_out = (
            concatenate_datasets([part.select_columns(list(REQUIRED_COLUMNS)) for part in parts])
            for parts in zip(*sources, strict=True)
        )
        self.parts = shares_of_epoch([len(part) for part, _ in sources], getattr(self.recipe, "data_weights", None))
        return rows, held_out

    def _load_source(self, folder: Path, splits: DatasetDict) -> tuple[Dataset, Dataset]:
        recordings = get_split(splits, "train", folder)
        rows = with_reports(recordings)
        if len(rows) < len(recordings):
            left_out = len(recordings) - len(rows)
            self.accelerator.print(f"{left_out:,} of {len(recordings):,} recordings have no report and are left out.")
        if len(rows) == 0:
            raise ValueError(f"{folder} has no report to learn from in its split 'train'.")
        return rows, with_reports(splits["validation"]) if "validation" in splits else rows.select([])

    def load_splits(self) -> list[DatasetDict]:
        """Opens the prepared folders; the main process makes or downloads them first."""
        with self.accelerator.main_process_first():
            self.folders = self.data_folders(self.recipe)
        return [load_prepared(folder) for folder in self.folders]

    @staticmethod
    def data_folders(recipe: Recipe) -> list[Path]:
        """Returns the recipe's prepared folders, or that of the synthetic corpus, made where it is not there yet."""
        if recipe.data is not None:
            return [Path(part.strip()) for part in recipe.data.split(",")]
        folder = Path(f"{CORPUS}-{recipe.corpus_records}-{recipe.corpus_seed}")
        return [prepare("synthetic", folder, records=recipe.corpus_records, seed=recipe.corpus_seed)]

    @property
    def unwrapped(self):
        """Returns the model without what Accelerate puts around it."""
        return self.gathered or self.accelerator.unwrap_model(self.model)

    def lengths(self) -> list[int] | None:
        """Returns what batches of similar length are made by, per row; None for batches in random order."""
        return None

    def record_names(self, rows: list[int]) -> list[str]:
        """Returns the names of training rows, to tell those of a step that went wrong."""
        named = "record" in getattr(self.rows, "column_names", ())
        return list(self.rows.select(rows)["record"]) if named else [f"row {row}" for row in rows]

    def compile(self):
        """Compiles the model in place: names in checkpoints stay as they are."""
        self.unwrapped.compile()

    def num_targets(self, batch: dict) -> torch.Tensor | None:
        """Counts the targets that `losses` is a mean over, where batches differ in it (tokens, for example).

        The mean over micro-batches and processes is then weighted by it. None: each batch counts the same.
        """
        return None

    def backward(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """Computes the gradients of one optimizer step from its micro-batches; returns the named losses of the step.

        Here the losses are means over the micro-batches, which is exact for losses that are means over rows or
        targets, not for contrastive ones, whose negatives are then those of a micro-batch.
        """
        counts = [self.num_targets(batch) for batch in batches]
        shares = [1 / len(batches)] * len(batches) if counts[0] is None else self.shares(counts)
        totals = {}
        for index, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            with self.synchronised(index == len(batches) - 1):
                losses = {name: value * share for name, value in self.losses(batch).items()}
                self.accelerator.backward(losses["loss"])
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
        return totals

    def shares(self, counts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns weights of means over so many targets each that make the processes' mean of sums the global mean."""
        counts = torch.stack(counts).to(self.accelerator.device).float()
        return list(counts / self.accelerator.reduce(counts.sum(), "mean"))

    def synchronised(self, last: bool):
        """Lets processes exchange gradients in the backward pass of the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def held_out_batches(self, batch_size: int) -> list[list[int]]:
        """Returns this process's share of the held-out rows, in batches that do not depend on the number of processes.

        Every row is in one batch. A last batch of one row, which has no contrastive loss, joins the batch before it;
        a split of a single row is no validation.
        """
        bounds = [*range(0, len(self.held_out), batch_size), len(self.held_out)]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        batches = [list(range(a, b)) for a, b in itertools.pairwise(bounds) if b - a > 1]
        return batches[self.accelerator.process_index :: self.accelerator.num_processes]

    def mean_over_batches(self, losses_of, batch_size: int) -> dict[str, float]:
        """Averages named losses over the held-out rows, each process on its share; `val_` is put before the names.

        A batch counts by its rows. Every held-out row is used once, see `held_out_batches`.
        """
        batches = self.held_out_batches(batch_size)
        loader = DataLoader(self.held_out, batch_sampler=batches, collate_fn=self.eval_collate)
        sums, rows = {}, sum(map(len, batches))
        with torch.no_grad():
            for batch, indices in zip(loader, batches, strict=True):
                for name, value in losses_of(batch).items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(indices)
        device = self.accelerator.device
        counted = self.accelerator.reduce(torch.tensor(float(rows), device=device), "sum").item()
        if counted == 0:
            return {}
        names = sorted(sums) if rows else self.loss_names
        totals = torch.tensor([sums.get(name, 0.0) for name in names], device=device)
        totals = self.accelerator.reduce(totals, "sum") / counted
        return {f"val_{name}": value for name, value in zip(names, totals.tolist(), strict=True)}

    def held_out_loader(self) -> DataLoader:
        """Returns this process's share of the held-out rows in batches; over all processes each row comes once."""
        rows, size = range(len(self.held_out)), self.recipe.batch_size
        batches = [rows[first : first + size] for first in rows[::size]]
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(self.held_out, batch_sampler=mine, collate_fn=self.eval_collate)

    def rate_of(self, parameter: str) -> float:
        """Returns a parameter's share of the learning rate."""
        return 1.0

    def after_step(self):
        """Does what follows each optimizer step."""

    def extra_metrics(self) -> dict[str, float]:
        """Returns what the log says of the last step besides the losses."""
        return {}

    def bounds(self) -> dict[str, float]:
        """Returns `chance_loss`, the contrastive loss of a collapsed model, and `max_logit_scale`, if they exist."""
        return {}

    def pictures(self) -> dict:
        """Returns matplotlib figures of held-out rows, by name. Called by every process, after a validation."""
        return {}

    def notes(self) -> dict:
        """Returns what `training.json` in the model folder keeps for a run that starts from it."""
        return {}


def shares_of_epoch(sizes: list[int], weights: str | None) -> list[tuple[int, int]] | None:
    """Returns of each source its rows and how many of an epoch's it gives; None where each gives all it has.

    An epoch has as many rows as all sources together.
    """
    if weights is None:
        return None
    shares = [float(weight) for weight in weights.split(",")]
    ends = [round(sum(sizes) * sum(shares[: index + 1]) / sum(shares)) for index in range(len(shares))]
    return [(size, end - start) for size, end, start in zip(sizes, ends, [0, *ends], strict=False)]
