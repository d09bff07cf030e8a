"""What single images say."""

import torch

from tocom_core.image_figures import ImageFigures, kl_divergence, top1


def test_top1_counts_the_right_ones() -> None:
    """The share of images whose highest logit is their class."""
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 1])) == 0.5


def test_kl_divergence_is_per_image() -> None:
    """``Σ p log(p/q)`` of each row, in nats; 0 for equal distributions."""
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = torch.tensor([0.5 * torch.log(torch.tensor(4 / 3)), 0.0])
    torch.testing.assert_close(kl_divergence(p.log(), q.log() + 7), expected, atol=1e-6, rtol=1e-5)


def test_figures_of_batches_are_joined_in_order() -> None:
    """Right, among the best five, and like the reference are three different things."""
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
    reference = logits.clone()
    reference[2, 0] = 10
    labels = torch.tensor([0, 2, 1])
    parts = [
        ImageFigures.of(logits[i : i + 1], reference[i : i + 1], labels[i : i + 1])
        for i in range(3)
    ]
    joined = ImageFigures.joined(parts)
    assert joined.right.tolist() == [True, False, False]
    assert joined.in_top5.tolist() == [True, True, False]
    assert joined.agrees.tolist() == [True, True, False]
    assert joined.kl[:2].tolist() == [0.0, 0.0] and joined.kl[2] > 1
    assert len(joined) == 3


def test_fewer_than_five_classes_are_all_among_the_best() -> None:
    """A two-class model is evaluated too; no label is never right."""
    figures = ImageFigures.of(torch.eye(2), torch.eye(2), torch.tensor([1, -1]))
    assert figures.in_top5.tolist() == [True, False]
    assert figures.right.tolist() == [False, False]
