"""Why a recording was not read, in words for whoever ran a command, and for those who are given its output."""

import re

# What a reader's errors call the options, as Python has them; a value may follow.
_READER_OPTION = re.compile(r"\b(sampling_rate|unit|leads|start|seconds|stride|layout)=(?=([\w'\"])?)")
# As `repr` writes texts and bytes, or what is left of one that was shortened; the apostrophe of "file's" opens none.
_QUOTED = re.compile(r"(?<!\w)b?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|['\"].*)")


def reason_of(error: Exception, path: str) -> str:
    """Returns an error's words, with options as the command line has them."""
    reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
    reason = reason.replace("nan_handling='interpolate'", "--interpolate")
    return _READER_OPTION.sub(lambda match: f"--{match[1].replace('_', '-')}{' ' if match[2] else ''}", reason)


def hide_quotations(reason: str) -> str:
    """Returns a reader's reason without what it quotes from a file; its last part says what to do, and stays."""
    blank = _QUOTED.sub(lambda match: "." * len(match[0]), reason)  # a quotation may hold "; " too
    remedy = blank.rfind("; ") if "; " in blank else len(reason)
    return _QUOTED.sub("(not shown)", reason[:remedy]) + reason[remedy:]
