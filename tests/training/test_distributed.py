"""Two processes on one batch compute what one process computes; one of them writes."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vae_edge.data import Dataset
from vae_edge.errors import ConfigError
from vae_edge.training.checkpoint import MODEL, load_checkpoint, read_tensors
from vae_edge.training.distributed import (
    SyncBatchNorm2d,
    convert_sync_batchnorm,
    shard_slice,
)

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]


LAUNCHER += ["--dynamo_backend", "no", "-m", "vae_edge", "train"]


def launch(processes: int, data: Path, out: Path, *options: str, port: int = 29511) -> subprocess.CompletedProcess:
    """`accelerate launch` on the CPU, where several processes need --multi_gpu to be started at all."""
    several = ["--multi_gpu"] if processes > 1 else []
    command = [
        *LAUNCHER[:3],
        *several,
        "--num_processes",
        str(processes),
        "--main_process_port",
        str(port),
        *LAUNCHER[3:],
    ]
    command += ["--data", str(data), "--preset", "tiny", "--epochs", "2", "--batch", "64", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, images=few_digits.train.images, labels=few_digits.train.labels)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--rotation", "none"), ("--rotation", "full"), ("--rotation", "none", "--labels-per-class", "5")],
    ids=["upright", "turned", "few labels"],
)
def test_two_processes_give_the_losses_of_one(data: Path, tmp_path: Path, options: tuple[str, ...]):
    settings = (*options, "--no-bf16", "--learning-rate", "0.0003")  # rounding grows with the steps' size
    for processes, name in ((1, "one"), (2, "two")):
        done = launch(processes, data, tmp_path / name, *settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next: vae-edge export") == 1  # the first process speaks, the others work
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        for name in ours.keys() - {"seconds", "data_seconds"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-3), name
    weights = [read_tensors(tmp_path / name / MODEL)[0]["mu.weight"] for name in ("one", "two")]
    assert (weights[0] - weights[1]).abs().max() < 1e-2 * weights[0].abs().max()
    assert load_checkpoint(tmp_path / "two").result.validation["n"] == 40


@pytest.mark.slow
def test_two_processes_go_on_where_two_processes_stopped(data: Path, tmp_path: Path):
    settings = ("--rotation", "none", "--no-bf16")
    assert launch(2, data, tmp_path / "run", *settings).returncode == 0
    first = read_tensors(tmp_path / "run" / MODEL)[0]
    (tmp_path / "run" / MODEL).unlink()
    again = launch(2, data, tmp_path / "run", *settings, "--resume")
    assert again.returncode == 0, again.stderr
    for name, tensor in read_tensors(tmp_path / "run" / MODEL)[0].items():
        assert torch.equal(tensor, first[name]), name


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_by_every_process(data: Path, tmp_path: Path):
    done = launch(2, data, tmp_path / "run", "--batch", "63")
    assert done.returncode != 0 and "--batch" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_is_sharded_without_gaps():
    assert [shard_slice(12, rank, 3) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(ConfigError, match="shared evenly"):
        shard_slice(10, 0, 3)


FREED_MEMORY = """
import resource
from pathlib import Path
import numpy as np
from vae_edge.training.distributed import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def returned_when_freed():
    block = np.ones(8_000_000)
    before = resident()
    del block
    return before - resident()

with keep_freed_memory():
    print(returned_when_freed())
    during = resident()
print(during - resident())
print(returned_when_freed())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator")
def test_freed_memory_stays_with_the_process_until_training_ends():
    # In a process of its own: in one that has holes in its heap, blocks of 64 MB may lie there, and stay.
    done = subprocess.run([sys.executable, "-c", FREED_MEMORY], capture_output=True, text=True, check=True)
    within, at_the_end, later = map(int, done.stdout.split())
    assert within < 32e6 < at_the_end
    assert later > 32e6


def test_exact_normalization_is_batch_normalization():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).double()
    exact = convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    assert isinstance(exact[1], SyncBatchNorm2d)
    exact.load_state_dict(plain.state_dict())
    for _ in range(3):
        x = torch.randn(16, 3, 9, 9) + 0.5
        inputs = x.clone().requires_grad_(), x.double().requires_grad_()
        ours, theirs = exact(inputs[0]), plain(inputs[1])
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
        for net, y in ((exact, ours), (plain, theirs)):
            net.zero_grad()
            (y * torch.linspace(0, 1, 8)[:, None, None]).square().mean().backward()
        pairs = zip((inputs[0], *exact.parameters()), (inputs[1], *plain.parameters()), strict=True)
        for mine, reference in pairs:
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(exact[1].running_var.double(), plain[1].running_var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact.eval()(x).double(), plain.eval()(x.double()), rtol=1e-5, atol=1e-5)
