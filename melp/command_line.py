"""The command lines of the doors, made of dataclasses by `transformers.HfArgumentParser`."""

import argparse
import copy
import re
from dataclasses import MISSING, field


def option(help: str, default=MISSING, **metadata):
    """Returns a dataclass field with its line of `--help`; without a default it must be given."""
    metadata = {"help": help.replace("%", "%%"), **metadata}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults where they say something, and each option in its usual spelling (--batch-size) only."""

    def _format_usage(self, *arguments):
        return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), super()._format_usage(*arguments))

    def _get_help_string(self, action):
        empty = action.default is None or action.default is False or action.default == []
        return action.help if empty else super()._get_help_string(action)

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [name for name in action.option_strings if "_" not in name]
        if action.nargs == 0 or action.const is True:
            return ", ".join(names)
        return f"{', '.join(names)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
