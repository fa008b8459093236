"""Makes a Hugging Face Space of a clone: the header of its README and its requirements."""

from pathlib import Path

from melp.notice import NOTICE

README = """---
title: MELP
emoji: 🫀
colorFrom: blue
colorTo: red
sdk: gradio
sdk_version: {version}
app_file: app.py
pinned: false
license: apache-2.0
short_description: Reads 12-lead ECGs. Research software
---

# MELP

{notice}

The app of MELP, Multi-scale ECG-Language Pretraining: see docs/app.md.
"""
REQUIREMENTS = "--extra-index-url https://download.pytorch.org/whl/cpu\n-e .[app,formats]\n"


def write_space(folder: Path) -> str:
    """Writes README.md and requirements.txt of a Space into a folder, and returns what to do next."""
    from importlib.metadata import version

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(README.format(version=version("gradio"), notice=NOTICE), encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    return f"Written: {folder}/README.md, requirements.txt. Next: push them with the clone's files to a Space."
