"""The Triton kernels: what they give, that they compile for real GPUs, and when they are used."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core import zoo
from tocom_core import CompressedViT, bipartite_soft_matching, token_matching
from tocom_core.attention import key_metric
from tocom_core.token_matching import kernels_fit, kernels_work, match_keys

ROOT = Path(__file__).parents[2]
INTERPRETED = "tests/core/interpreted_kernels.py"
triton = pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def forget_trials() -> Iterator[None]:
    """No verdict on the kernels outlives a test."""
    kernels_work.cache_clear()
    yield
    kernels_work.cache_clear()


@pytest.mark.timeout(300)
def test_the_interpreted_kernels_give_what_pytorch_gives() -> None:
    """All of ``interpreted_kernels.py``, in a process that told Triton to interpret."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", INTERPRETED],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_the_kernels_compile_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to machine code, without a GPU: types, shapes and shared memory are right."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tocom_core import merging_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"strength": "*fp32", "partner": "*i32", "rows": "*i64", "size": "*fp32"}
    pointers |= {"key": "*bf16", "x": "*bf16", "merged": "*bf16", "merged_size": "*fp32"}
    kinds = pointers | {"shortest": "fp32"}
    kernels: list[tuple[Any, dict[str, Any]]] = [
        (merging_kernels._find_partners, {"HEADS": 12, "DIM": 80, "WIDTH": 128, "TILE": 32}),
        (merging_kernels._assign_rows, {"WIDTH": 1024, "TILE": 32}),
        (merging_kernels._merge_rows, {"SIZED": True, "WIDTH_A": 128, "WIDTH": 1024}),
    ]
    for kernel, constants in kernels:
        signature = {
            name: "constexpr" if name in constants else kinds.get(name, "i32")
            for name in kernel.arg_names
        }
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget("cuda", 80, 32),
            options={"enable_fp_fusion": False},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 48 * 1024, "any GPU has so much"


@pytest.mark.parametrize(
    ("device", "dtype", "patches", "head_dim", "fit"),
    [
        ("cuda", torch.float32, 196, 64, True),
        ("cuda", torch.bfloat16, 576, 80, True),
        ("cuda", torch.float16, 2048, 128, True),
        ("cuda", torch.float16, 2049, 64, False),
        ("cuda", torch.float16, 196, 129, False),
        ("cuda", torch.float64, 196, 64, False),
        ("cpu", torch.float32, 196, 64, False),
        ("mps", torch.float16, 196, 64, False),
    ],
)
def test_what_the_kernels_are_made_for(
    device: str, dtype: torch.dtype, patches: int, head_dim: int, fit: bool
) -> None:
    """CUDA, single or half precision, no more tokens than one program ranks."""
    assert kernels_fit(device, dtype, patches, head_dim) is fit


def test_without_triton_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Triton, no kernels, and no error."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(token_matching, "kernels_fit", lambda *_: True)
    key = torch.randn(2, 3, 17, 8, generator=torch.Generator().manual_seed(0))
    rows, expected = match_keys(key, 4).rows, bipartite_soft_matching(key_metric(key), 4).rows
    assert rows is not None
    assert expected is not None
    assert torch.equal(rows, expected)


def test_where_triton_fails_pytorch_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that Triton cannot reach is said once, and tokens are matched without it."""
    tries: list[int] = []

    def broken(key: Tensor, r: int, prefix: int) -> Any:
        tries.append(r)
        raise RuntimeError("no compiler found")

    monkeypatch.setattr("tocom_core.merging_kernels.match_keys_fused", broken)
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    monkeypatch.setattr(token_matching, "kernels_fit", lambda *_: True)
    key = torch.randn(2, 3, 17, 8, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert match_keys(key, 4).removed == 4
    assert len(tries) == 1
    assert [record.message for record in caplog.records] == [
        "Triton does not work here, tokens are matched without it: no compiler found"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "prefix", "r"), [(197, 1, 16), (577, 1, 23), (50, 5, 100)])
@torch.no_grad()
def test_kernels_on_a_gpu(dtype: torch.dtype, tokens: int, prefix: int, r: int) -> None:
    """As on the CPU; where near-ties were decided otherwise, at least as similar pairs merged."""
    assert kernels_work(0)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(5, tokens, 3, 12, 64, generator=generator).to(dtype).cuda()
    key = qkv.permute(2, 0, 3, 1, 4)[1]
    x = torch.randn(5, tokens, 768, generator=generator).to(dtype).cuda()
    size = torch.randint(1, 9, (5, tokens, 1), generator=generator).float().cuda()
    fused, plain = match_keys(key, r, prefix), bipartite_soft_matching(key_metric(key), r, prefix)
    assert fused.rows is not None
    assert plain.rows is not None
    assert float((fused.rows == plain.rows).float().mean()) > 0.99
    again = type(plain)(fused.rows, fused.removed, prefix)
    merged, counts = fused.merge(x, size)
    expected, totals = again.merge(x, size)
    assert torch.equal(counts, totals)
    torch.testing.assert_close(merged, expected)
    assert torch.equal(fused.merge(x, size)[0], merged), "the same bits every time"


@pytest.mark.gpu
@torch.no_grad()
def test_kernels_can_be_captured() -> None:
    """A CUDA graph records matching and merging and replays them on other images."""
    vit = zoo.plain()()
    zoo.randomise(vit)
    model = CompressedViT(vit.eval().cuda())
    images = torch.randn(3, 3, 32, 32, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model(images, 3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(images, 3)
    images.copy_(torch.randn(3, 3, 32, 32, device="cuda"))
    graph.replay()
    torch.testing.assert_close(logits, model(images, 3))
