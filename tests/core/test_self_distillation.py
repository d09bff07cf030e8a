"""What a bank learns from."""

import random

import pytest
import torch
from timm.data import Mixup
from torch import Tensor, nn

from tests.core import zoo
from tocom_core import Bank, CompressedViT, WeightMerger
from tocom_core.bank_header import BankHeader
from tocom_core.self_distillation import (
    Classification,
    CompensatedViT,
    PairSampler,
    SelfDistillation,
    feature_distance,
    set_drop_path,
    soft_target_divergence,
)

K, RANK = 4, 2


def make_bank(model: CompressedViT) -> Bank:
    """A bank that fits the model, with random ``A`` and ``B``."""
    bank = Bank(BankHeader("", model.embed_dim, model.depth, K, RANK))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


@pytest.mark.parametrize(("r_source", "r_target"), [(0, 0), (0, 3), (3, 1), (4, 0), (1, 4)])
@torch.no_grad()
def test_training_s_forward_is_serving_s_forward(r_source: int, r_target: int) -> None:
    """What training computes with the bank is what merged weights compute when served."""
    student_model, served = (
        CompressedViT(zoo.build("test_vit")),
        CompressedViT(zoo.build("test_vit")),
    )
    bank = make_bank(student_model)
    student = CompensatedViT(student_model, bank)
    images = zoo.photos(served.vit)

    merger = WeightMerger(served, bank, r_source)
    merger.set_target(r_target)
    torch.testing.assert_close(
        student(images, r_source, r_target), served(images, r_target), rtol=1e-4, atol=1e-5
    )


def test_only_the_bank_learns() -> None:
    """The backbone is frozen; of the bank, the groups between the degrees get gradients."""
    model = CompressedViT(zoo.build("test_vit"))
    bank = make_bank(model)
    student = CompensatedViT(model, bank)
    assert {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad} == {
        "bank"
    }
    student(zoo.photos(model.vit), 1, 3).sum().backward()
    for layer in range(model.depth):
        for p in "qv":
            gradient = bank.factors(layer, p)[1].grad
            assert gradient is not None
            used = (gradient.abs().sum(dim=0) > 0).tolist()
            assert used == [False] * RANK + [True] * 2 * RANK + [False] * RANK
    assert all(p.grad is None for p in model.parameters())


def test_the_bank_learns_to_bring_the_logits_back() -> None:
    """Forty steps on one pair of degrees win back most of what merging changed."""
    model = CompressedViT(zoo.build("test_vit"))
    bank = Bank(BankHeader("", model.embed_dim, model.depth, K, RANK))
    bank.reset_parameters(torch.Generator().manual_seed(0))
    student = CompensatedViT(model, bank)
    images = zoo.photos(model.vit, 16)
    teacher = model(images, 0).detach()
    optimizer = torch.optim.Adam(student.bank.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = soft_target_divergence()(teacher, student(images, 0, K)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_soft_target_divergence_is_per_image() -> None:
    """``T² KL(teacher ‖ student)`` of each image; zero only for equal distributions."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 7, generator=generator).unbind(0)
    for temperature in (1.0, 3.0):
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        expected = temperature**2 * (p * (p / q).log()).sum(dim=-1)
        torch.testing.assert_close(soft_target_divergence(temperature)(teacher, student), expected)
    assert float(soft_target_divergence()(teacher, teacher + 2.0).abs().max()) < 1e-6


def test_feature_distance_is_the_mean_absolute_difference() -> None:
    """Of each image, over the feature's dimensions."""
    teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert feature_distance(teacher, student).tolist() == [1.5, 0.0]


def test_pairs_are_uniform_over_different_degrees() -> None:
    """Algorithm 1: every ``m ≠ n`` out of ``0…K`` is equally likely."""
    random.seed(0)
    draw = PairSampler(K)
    pairs = [draw() for _ in range(4000)]
    counts = {pair: pairs.count(pair) for pair in pairs}
    assert set(counts) == {(m, n) for m in range(K + 1) for n in range(K + 1) if m != n}
    assert max(counts.values()) < 1.4 * 4000 / len(counts)
    assert min(counts.values()) > 0.6 * 4000 / len(counts)


@pytest.mark.parametrize("anchor", [0, 3])
def test_a_share_of_the_pairs_starts_at_the_anchor(anchor: int) -> None:
    """Half of them, and of the uniform half its due; the target is never the start."""
    random.seed(0)
    draw = PairSampler(K, anchor, 0.5)
    pairs = [draw() for _ in range(4000)]
    share = sum(m == anchor for m, _ in pairs) / len(pairs)
    assert share == pytest.approx(0.5 + 0.5 / (K + 1), abs=0.03)
    assert all(m != n for m, n in pairs)
    assert {n for m, n in pairs if m == anchor} == set(range(K + 1)) - {anchor}


class Recorder(nn.Module):
    """Stands in for the student and writes down what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank(BankHeader("", 8, 1, K, 1))
        self.model = Teacher()
        self.asked: list[tuple[int, int, list[float]]] = []

    def forward(self, images: Tensor, r_source: int, r_target: int) -> Tensor:
        """Answer as the student."""
        self.asked.append((r_source, r_target, images.flatten().tolist()))
        return images.flatten(1)


class Teacher(nn.Module):
    """Stands in for the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, list[float]]] = []

    def forward(self, images: Tensor, r: int) -> Tensor:
        """Answer as the teacher."""
        self.asked.append((r, images.flatten().tolist()))
        return images.flatten(1)


def test_teacher_and_student_see_the_same_images() -> None:
    """At the degrees of the pair that was drawn."""
    recorder = Recorder()
    objective = SelfDistillation(
        recorder,  # type: ignore[arg-type]
        lambda images: images.float(),
        lambda: (3, 1),
        feature_distance,
    )
    images = torch.arange(3.0).view(3, 1)
    loss, _ = objective(0, images, torch.zeros(3))
    assert recorder.asked == [(3, 1, [0.0, 1.0, 2.0])]
    assert recorder.model.asked == [(3, [0.0, 1.0, 2.0])]
    assert recorder.training and float(loss) == 0.0


def test_the_loss_is_the_mean_over_images() -> None:
    """Of the student's distance to the teacher."""
    model = CompressedViT(zoo.build("test_vit"))
    student = CompensatedViT(model, make_bank(model))
    images, distance = zoo.photos(model.vit, 5), soft_target_divergence()
    objective = SelfDistillation(student, lambda x: x, lambda: (0, 3), distance)
    loss, _ = objective(0, images, torch.zeros(5))
    with torch.no_grad():
        expected = distance(model(images, 0), student(images, 0, 3)).mean()
    torch.testing.assert_close(loss.detach(), expected)


def test_mixup_shows_teacher_and_student_the_same_mixed_images() -> None:
    """Unlabelled images are mixed too; their mixture is what both see."""
    recorder = Recorder()
    objective = SelfDistillation(
        recorder,  # type: ignore[arg-type]
        lambda images: images.float(),
        lambda: (0, 1),
        feature_distance,
        mixup=Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, num_classes=1),
    )
    images = torch.arange(4.0).view(4, 1, 1, 1)
    objective(0, images, torch.full((4,), -1))
    [(_, _, seen)], [(_, taught)] = recorder.asked, recorder.model.asked
    assert seen == taught
    assert seen != [0.0, 1.0, 2.0, 3.0]


def test_classification_learns_from_the_labels() -> None:
    """The ablation: the mean cross-entropy of the student, hard or mixed labels."""
    model = CompressedViT(zoo.build("test_vit"))
    student = CompensatedViT(model, make_bank(model))
    images, labels = zoo.photos(model.vit, 4), torch.tensor([1, 0, 2, 2])
    loss, _ = Classification(student, lambda x: x, lambda: (0, 3))(0, images, labels)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(student(images, 0, 3), labels)
    torch.testing.assert_close(loss.detach(), expected)

    classes = model.vit.num_classes
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=classes)
    mixed, _ = Classification(student, lambda x: x, lambda: (0, 3), mixup=mixup)(0, images, labels)
    assert torch.isfinite(mixed)


def test_adapter_dropout_acts_between_a_and_b() -> None:
    """Without chance it is the merged weights' forward; with it, outputs vary in training only."""
    model = CompressedViT(zoo.build("test_vit")).eval()
    bank, images = make_bank(model), zoo.photos(model.vit, 2)
    merged = CompensatedViT(model, bank)
    beside = CompensatedViT(model, bank, dropout=1e-12)
    for pair in [(0, 3), (3, 1)]:
        torch.testing.assert_close(
            beside.train()(images, *pair), merged(images, *pair), rtol=1e-4, atol=1e-5
        )
    dropping = CompensatedViT(model, bank, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.allclose(dropping(images, 0, 3), dropping(images, 0, 3))
    dropping.eval()
    assert torch.equal(dropping(images, 0, 3), dropping(images, 0, 3))
    everything = CompensatedViT(model, bank, dropout=1.0)
    torch.testing.assert_close(everything(images, 0, 3), model(images, 3), rtol=1e-5, atol=1e-6)
    assert not model.vit.blocks[0].attn.qkv._forward_hooks, "no hook stays behind"


def test_drop_path_grows_with_depth_and_spares_the_teacher() -> None:
    """From 0 in the first block to the rate in the last; it acts on the student in training."""
    model = CompressedViT(zoo.build("test_vit")).eval()
    images = zoo.photos(model.vit, 2)
    before = model(images, 1)
    student = CompensatedViT(model, make_bank(model), drop_path=0.9)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.vit.blocks]
    assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.9) and rates == sorted(rates)
    torch.manual_seed(0)
    outputs = [student.train()(images, 0, 1) for _ in range(5)]
    assert any(not torch.equal(output, outputs[0]) for output in outputs)
    assert torch.equal(model(images, 1), before), "the teacher is not touched"
    assert torch.equal(student.eval()(images, 0, 1), student(images, 0, 1))
    set_drop_path(model, 0.0)
    assert all(isinstance(block.drop_path1, nn.Identity) for block in model.vit.blocks)


def test_a_frozen_backbone_forgets_nothing() -> None:
    """A batch norm in the stem keeps its statistics, and uses them, while the bank learns."""
    model = CompressedViT(zoo.build("vit_mini_conv4_32"))
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = CompensatedViT(model, make_bank(model)).train()
    images = zoo.photos(model.vit, 4)
    objective = SelfDistillation(student, lambda x: x, lambda: (0, 3), soft_target_divergence())
    objective.train()(0, images, torch.zeros(4))[0].backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(student.train()(images, 0, 3), student.eval()(images, 0, 3))
