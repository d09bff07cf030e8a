"""Several processes are one run: two Gloo processes do what one with the whole batch does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core import zoo
from tests.core.pictures import write_folder
from tests.core.ports import free_port
from tocom_core import Bank
from tocom_core.distributed import World, joined_world
from tocom_core.errors import TrainingError
from tocom_core.models import save_model

K = 4


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A small model file with 10 classes."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16)()
    zoo.randomise(vit)
    path = tmp_path / "model.safetensors"
    save_model(path, vit, tuple("0123456789"), model_args={"depth": 2, "img_size": 16})
    return path


def train(arguments: list[str], output: Path, processes: int) -> Bank:
    """``tocom train`` as a user starts it, with ``torchrun`` if there are several processes."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [sys.executable, *(launcher if processes > 1 else [])]
    command += ["-m", "tocom_core.distillation", *arguments, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return Bank.load(output / "bank.safetensors")


def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    backbone: Path, tmp_path: Path
) -> None:
    """Same images per step, same pairs, averaged gradients: the same bank within rounding."""
    digits = write_folder(tmp_path / "digits", 64)
    common = f"--data {digits} --model {backbone} --num-groups {K} --epochs 2 --val-images 16"
    common += " --workers 0 --device cpu --lr 1e-3 --checkpoint-every 4 --accumulate 1"
    one = train([*common.split(), "--batch-size", "16"], tmp_path / "one", 1)
    two = train([*common.split(), "--batch-size", "8"], tmp_path / "two", 2)

    assert one.provenance["steps"] == two.provenance["steps"] == 6
    untrained = Bank(one.header)
    untrained.reset_parameters(torch.Generator().manual_seed(0))
    start = untrained.state_dict()
    for name, expected in one.state_dict().items():
        moved = (expected - start[name]).norm()
        assert moved > 0
        assert (two.state_dict()[name] - expected).norm() < 0.01 * moved, name
    assert two.provenance["score"] == pytest.approx(one.provenance["score"], rel=0.01)
    assert (tmp_path / "two/log.csv").read_text().count("val_score") == 2, "one process writes"


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leads, keeps its device, and has nobody to wait for."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world(torch.device("cpu")) as world:
        assert world == World() and world.is_main
        assert world.total(3.0, torch.device("cpu")) == 3.0
        assert world.share("x") == "x"
        world.wait()


def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the process and what to start it with."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(TrainingError, match="process 1 of 2 cannot reach the others over gloo"),
        joined_world(torch.device("cpu")),
    ):
        pass


def test_each_process_takes_its_own_gpu() -> None:
    """By its number on the machine, unless one was named."""
    world = World(rank=5, size=8, local_rank=1)
    assert world.device(torch.device("cuda")) == torch.device("cuda", 1)
    assert world.device(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert world.device(torch.device("cpu")) == torch.device("cpu")
    assert not world.is_main
