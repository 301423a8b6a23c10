"""Putting a SLURM job back into the queue, from where it starts again and goes on."""

import os
import signal
import subprocess

REASONS = (signal.SIGTERM, getattr(signal, "SIGUSR1", None))  # preemption or time limit; SIGINT is a person's wish


def requeue(signum: signal.Signals) -> list[str]:
    """Ask SLURM to start this job again, if it runs in one and `signum` is no wish to end it.

    On preemption too: a job that leaves within its grace time counts as completed and SLURM would not requeue it.

    Returns:
        What came of it, for the log; nothing if there is nothing to requeue.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or signum not in REASONS:
        return []
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"Job {job} could not be requeued: {error}."]
    if done.returncode:
        return [f"Job {job} could not be requeued: {done.stderr.strip() or f'scontrol ended with {done.returncode}'}"]
    return [f"Job {job} is requeued and goes on from there."]
