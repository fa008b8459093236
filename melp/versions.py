"""Versions that a run or an evaluation was computed with."""

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("torch", "transformers", "accelerate", "datasets", "tokenizers"),
    *("numpy", "safetensors", "scikit-learn"),
)


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that figures depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
