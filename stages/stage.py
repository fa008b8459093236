"""What every stage of training has: a recipe, an accelerator, rows to learn from and held-out rows."""

from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader

from data import get_split, load_prepared, with_reports
from prepare import prepare
from recipe import Recipe

CORPUS = "runs/corpus"


class Stage:
    """What every stage has: a recipe, an accelerator and the prepared folder it learns from."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.rows, self.held_out = self.load_rows()

    def load_rows(self) -> tuple[Dataset, Dataset]:
        """Rows to learn from and held-out rows (maybe none): those with a report."""
        splits = self.load_splits()
        rows = with_reports(get_split(splits, "train", self.data))
        if len(rows) == 0:
            raise ValueError(f"{self.data} has no report to learn from in its split 'train'.")
        return rows, with_reports(splits["validation"]) if "validation" in splits else rows.select([])

    def load_splits(self) -> DatasetDict:
        with self.accelerator.main_process_first():
            self.data = self.data_folder(self.recipe)
        return load_prepared(self.data)

    @staticmethod
    def data_folder(recipe: Recipe) -> Path:
        """The recipe's prepared folder, or the embedded synthetic corpus, made where it is not there yet."""
        if recipe.data is not None:
            return Path(recipe.data)
        folder = Path(f"{CORPUS}-{recipe.corpus_records}-{recipe.corpus_seed}")
        return prepare("synthetic", folder, records=recipe.corpus_records, seed=recipe.corpus_seed)

    @property
    def unwrapped(self):
        """The model without what Accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    def mean_over_batches(self, losses_of, batch_size: int) -> dict[str, float]:
        """Mean of a dict of losses over the held-out rows, one process's share each; `val_` is put before the names.

        A last batch of one row, which has no contrastive loss, joins the batch before it.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        bounds = list(range(0, len(self.held_out), batch_size)) + [len(self.held_out)]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        batches = [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False) if b - a > 1]
        sums, count = {}, 0
        with torch.no_grad():
            for batch in DataLoader(self.held_out, batch_sampler=batches[rank::world], collate_fn=self.eval_collate):
                for name, value in losses_of(batch).items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                count += 1
        counted = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).sum().item()
        if counted == 0:
            return {}
        names = sorted(sums) if count else self.loss_names
        totals = torch.tensor([sums.get(name, 0.0) for name in names], device=self.accelerator.device)
        totals = self.accelerator.reduce(totals, "sum") / counted
        return {f"val_{name}": value for name, value in zip(names, totals.tolist(), strict=True)}

    def held_out_loader(self) -> DataLoader:
        """This process's share of the held-out rows in batches; over all processes each row comes once."""
        rows, size = range(len(self.held_out)), self.recipe.batch_size
        batches = [rows[first : first + size] for first in rows[::size]]
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(self.held_out, batch_sampler=mine, collate_fn=self.eval_collate)

    def after_step(self):
        """Called after each optimizer step."""

    def extra_metrics(self) -> dict[str, float]:
        return {}
