"""How a process on a CPU treats the memory that a step frees."""

import ctypes
import sys

import torch


def keep_freed_memory(device: torch.device):
    """Lets the allocator of a CPU process reuse what a step frees, instead of giving it back and faulting it in again.

    Every tensor of a step above 32 MB is otherwise mapped anew: 120,000 page faults, a sixth of a step in bfloat16 at
    the paper's size. glibc's only (mallopt: no mapping of its own for a large block, no trimming).
    """
    if device.type == "cpu" and sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
