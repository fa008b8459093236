"""Keeps a run's figures and pictures: always in `metrics.jsonl` and `figures/`, and in a tracker of Accelerate's."""

import json
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from melp.training.health import finite
from melp.training.recipe import PACKAGES, Recipe


class RunLog:
    """Writes on the main process; the others may call it and write nothing."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe):
        self.accelerator, self.output, self.tracked = accelerator, Path(recipe.output), recipe.tracker in PACKAGES
        if self.tracked:
            settings = {name: value for name, value in vars(recipe).items() if isinstance(value, (int, float, str))}
            # Weights & Biases would write into the working directory.
            options = {"wandb": {"dir": str(self.output)}}
            accelerator.init_trackers("melp", config=settings, init_kwargs=options)

    def metrics(self, step: int, values: dict):
        """Appends a line to metrics.jsonl, and tells the tracker."""
        if self.accelerator.is_main_process:
            with open(self.output / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **finite(values)}) + "\n")
        if self.tracked:
            self.accelerator.log(values, step=step)

    def warning(self, step: int, text: str):
        """Prints a warning and appends it to metrics.jsonl."""
        if self.accelerator.is_main_process:
            tqdm.write(f"warning: {text}")
            with open(self.output / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "warning": text}) + "\n")

    def pictures(self, step: int, figures: dict):
        """Writes figures by name as PNG files, and to a tracker."""
        if not self.accelerator.is_main_process:
            return
        from PIL import Image  # a dependency of matplotlib

        folder = self.output / "figures"
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"step-{step}-{name}.png"
            figure.savefig(path)
            pixels = np.asarray(Image.open(path).convert("RGB"))
            for tracker in self.accelerator.trackers:
                if tracker.name == "trackio":  # Accelerate sends it no images
                    import trackio

                    tracker.log({f"sample-{name}": trackio.Image(pixels)}, step=step)
                else:
                    options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({f"sample-{name}": pixels[None]}, step=step, **options)

    def close(self):
        """Ends the tracker's run."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
