"""Makes a Hugging Face Space of a clone: the header of its README and its requirements."""

import re
from pathlib import Path

from melp.files import write_atomically
from melp.notice import NOTICE

ROOT = Path(__file__).resolve().parent.parent.parent
README = """---
title: MELP
emoji: 🫀
colorFrom: blue
colorTo: red
sdk: gradio
sdk_version: {version}
python_version: "3.11"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Reads 12-lead ECGs. Research software
---

# MELP

{notice}

The app of MELP, Multi-scale ECG-Language Pretraining: see docs/app.md.
"""
# Without CUDA, which a Space's free hardware lacks.
INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"


def write_space(folder: Path) -> str:
    """Writes README.md and requirements.txt of a Space into a folder, and returns what to do next.

    Raises:
        ValueError: outside a clone, whose pyproject.toml has the requirements.
    """
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    requirements = "\n".join([INDEX, *_requirements("formats")]) + "\n"
    write_atomically(folder / "README.md", README.format(version=version("gradio"), notice=NOTICE))
    write_atomically(folder / "requirements.txt", requirements)
    return (
        f"Written: {folder}/README.md, requirements.txt. With the clone's files they are a Space. Next:\n"
        "    hf repos create OWNER/melp-app --type space --sdk gradio\n"
        "    hf upload OWNER/melp-app . . --type space"
    )


def _requirements(*extras: str) -> list[str]:
    """Returns what pyproject.toml asks for.

    A Space installs it before the files are there: this package is none of it. Gradio is installed by the Space
    itself, in the version of its header.
    """
    import tomlkit  # which Gradio needs as well; Python has a reader from 3.11 only

    if not (ROOT / "pyproject.toml").is_file():
        raise ValueError("--write-space needs a clone of the repository: a Space has its files.")
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]
    asked, waiting = list(project["dependencies"]), list(extras)
    for extra in waiting:
        for requirement in project["optional-dependencies"][extra]:
            if ours := re.fullmatch(r"melp\[(.+)\]", requirement):
                waiting += ours[1].split(",")
            else:
                asked.append(requirement)
    return asked
