"""Matching and merging as a graph: the same tokens as PyTorch's, ties included."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

import onnxruntime

from tocom_core.merging import bipartite_soft_matching
from tocom_core.onnx_merging import PLAN_ROW, Merging, merging_plan
from tocom_core.onnx_nodes import Nodes, describe, describe_ints

WIDTH, HEADS, DIM = 6, 2, 4


def session(prefix: int, *, sized: bool) -> onnxruntime.InferenceSession:
    """One block's merging, from keys to tokens."""
    nodes = Nodes()
    merging = Merging(nodes, "plan", 1, prefix, WIDTH)
    metric = merging.metric("key", HEADS, DIM)
    x, size = merging.merge(metric, 0, "x", "size" if sized else None)
    nodes.output(x, "tokens")
    nodes.output(size, "sizes")
    inputs = [describe_ints("plan", PLAN_ROW), describe("key", "B", "N", HEADS * DIM)]
    inputs += [describe("x", "B", "N", WIDTH)]
    inputs += [describe("size", "B", "N", 1)] if sized else []
    outputs = [describe("tokens", "B", "M", WIDTH), describe("sizes", "B", "M", 1)]
    model = nodes.model(inputs, outputs).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
def test_tokens_are_those_of_pytorch(prefix: int, sized: bool) -> None:
    """Odd and even lengths, every r; keys from four directions, so that most are tied exactly."""
    run, generator = session(prefix, sized=sized), torch.Generator().manual_seed(prefix)
    for patches in (2, 5, 8, 11):
        tokens = prefix + patches
        directions = torch.eye(DIM)[torch.randint(0, DIM, (3, tokens), generator=generator)]
        key = torch.cat([directions, 2 * directions], dim=2)
        x = torch.randn(3, tokens, WIDTH, generator=generator)
        size = torch.randint(1, 5, (3, tokens, 1), generator=generator).float()
        for r in range(1, patches // 2 + 1):
            matching = bipartite_soft_matching(directions, r, prefix)
            expected = matching.merge(x, size if sized else None)
            plan = merging_plan([(patches, patches - r)], prefix)
            given = {"plan": np.array(plan), "key": key.numpy(), "x": x.numpy()}
            given |= {"size": size.numpy()} if sized else {}
            for found, wanted in zip(run.run(None, given), expected, strict=True):
                assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-6)


def test_keys_without_length_are_like_nothing() -> None:
    """They have similarity 0 with everybody, as in PyTorch, and give no NaN."""
    key = torch.zeros(1, 7, HEADS * DIM)
    key[:, 1:3] = 1.0
    x = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    matching = bipartite_soft_matching(key.view(1, 7, HEADS, DIM).sum(2), 2)
    expected, _ = matching.merge(x)
    plan = np.array(merging_plan([(6, 4)], 1))
    found = session(1, sized=False).run(None, {"plan": plan, "key": key.numpy(), "x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found[0]), expected, atol=1e-6)
