"""What the benchmarks share: where they run, how they time, and how a pair of statements is compared."""

import gc
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROOT = Path(__file__).resolve().parents[2]
LARGE = CUDA or os.environ.get("LIGHTNING_STYLES_LARGE") == "1"


def finished(action: Callable[[], Any]) -> None:
    """Run `action` until the device is done with it."""
    action()
    if CUDA:
        torch.cuda.synchronize()


def reset_peak() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> int:
    """Peak since `reset_peak`, on the CPU since the process began."""
    if CUDA:
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def timed(action: Callable[[], Any], rounds: int) -> float:
    """Median seconds of `action`, after two rounds that do not count."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        finished(action)
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])


def compare(benchmark: Any, rounds: int, make: Callable[[], Callable], make_plain: Callable[[], Callable]) -> None:
    """Time one after the other and note their ratio."""
    reset_peak()
    benchmark.pedantic(finished, (make(),), rounds=rounds, warmup_rounds=2)
    benchmark.extra_info["peak_mb"] = peak_mb()
    reset_peak()
    plain = timed(make_plain(), rounds)
    benchmark.extra_info |= {"plain_s": plain, "plain_peak_mb": peak_mb()}
    benchmark.extra_info["times_faster"] = round(plain / benchmark.stats.stats.median, 2)
    print(benchmark.extra_info)
