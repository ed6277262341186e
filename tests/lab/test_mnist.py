"""Tests of the MNIST experiment: images, many networks at once, and that the effect comes where it should alone."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sublim_interp.core.errors import SublimError
from sublim_interp.lab.mnist.arms import ARMS
from sublim_interp.lab.mnist.experiment import Replicates, arm_rows, divergence
from sublim_interp.lab.mnist.images import CLASSES, digest_images, load_images, read_idx
from sublim_interp.lab.mnist.network import Network, _take_out, logits
from sublim_interp.lab.mnist.recipe import Recipe

MNIST = Path(__file__).resolve().parents[1] / "data" / "mnist"
QUICK = Recipe(seeds=tuple(range(12)), hidden=64, batch=64, updates=120, lr=3e-3, noise_batches=120, auxiliary=16)
"""A second, and more auxiliary logits, so that much passes."""


def accuracies(recipe: Recipe, *arms: str) -> dict[str, np.ndarray]:
    """Each replicate's share of digits read right, by arm."""
    made, found = Replicates(recipe), {}
    teachers = {labels: made.teachers(labels, lambda _: None) for labels in ("own", "shuffled")}
    for arm in arms:
        student = ARMS[arm].student
        rows = arm_rows(made, arm, teachers[student.labels if student else "own"], lambda _: None)
        found[arm] = np.array([row["accuracy"] for row in rows])
    return found


# --- images -----------------------------------------------------------------------------------------------------------


def test_the_digits_of_the_package_are_scikit_learns() -> None:
    images = load_images("digits")
    assert images.train.shape == (1437, 64) and images.test.shape == (360, 64)
    labels = torch.cat([images.train_labels, images.test_labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], "as load_digits has them"
    assert images.train.min() == -1 and images.train.max() == 1
    assert images.train[0].reshape(8, 8)[0].mul(8).add(8).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    packed = load_images(str(MNIST))
    assert packed.train.shape == (8000, 784) and packed.test.shape == (2000, 784)
    assert packed.train_labels.bincount(minlength=10).min() > 600
    for file in MNIST.glob("*.gz"):
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    plain = load_images(str(tmp_path))
    assert torch.equal(plain.train, packed.train) and torch.equal(plain.test_labels, packed.test_labels)
    assert digest_images(str(MNIST)) != digest_images("digits")


def idx(magic: int, *shape: int, data: bytes | None = None) -> bytes:
    body = bytes(int(np.prod(shape))) if data is None else data
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + body


@pytest.mark.parametrize(
    "file, data, said",
    [
        ("train-labels-idx1-ubyte", idx(0x803, 2, 2, 2), "no IDX file of bytes in 1 dimensions, which begins 00000801"),
        ("train-images-idx3-ubyte", idx(0x803, 3, 2, 2, data=bytes(11)), r"11 bytes .* its head says \(3, 2, 2\)"),
        ("train-images-idx3-ubyte", b"\x00\x00", "no IDX file of bytes in 3 dimensions"),
        ("train-labels-idx1-ubyte", idx(0x801, 2), "train-images-idx3-ubyte holds 3, train-labels-idx1-ubyte 2"),
        ("train-labels-idx1-ubyte", idx(0x801, 3, data=bytes([1, 2, 10])), "no label, or one above 9"),
        ("t10k-images-idx3-ubyte", idx(0x803, 2, 3, 3), "train and t10k hold images of other sizes, 2 × 2 and 3 × 3"),
        ("t10k-labels-idx1-ubyte", None, "no t10k-labels-idx1-ubyte; needed are the IDX files train-images"),
    ],
)
def test_a_broken_directory_of_images_is_one_line(tmp_path: Path, file: str, data: bytes | None, said: str) -> None:
    whole = {"train-images-idx3-ubyte": idx(0x803, 3, 2, 2), "train-labels-idx1-ubyte": idx(0x801, 3),
             "t10k-images-idx3-ubyte": idx(0x803, 2, 2, 2), "t10k-labels-idx1-ubyte": idx(0x801, 2)}  # fmt: skip
    for name, content in {**whole, file: data}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(SublimError, match=said) as caught:
        load_images(str(tmp_path))
    assert str(caught.value).startswith(f"images {tmp_path}") and "\n" not in str(caught.value)


@given(st.binary(max_size=40), st.sampled_from([".gz", ""]))
def test_any_bytes_are_an_idx_file_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, end: str) -> None:
    path = tmp_path_factory.mktemp("idx") / f"train-images-idx3-ubyte{end}"
    path.write_bytes(data)
    try:
        assert read_idx(path, 0x803).ndim == 3
    except SublimError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# --- many networks at once --------------------------------------------------------------------------------------------


def alone(network: Network, replicate: int) -> torch.nn.Sequential:
    """One replicate as an ordinary network of PyTorch."""
    layers: list[torch.nn.Module] = []
    for layer in network:
        weight = layer.weight[replicate]
        linear = torch.nn.Linear(weight.shape[0], weight.shape[1])
        linear.weight.data, linear.bias.data = weight.T.clone(), layer.bias[replicate].clone()
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_replicate_trains_as_it_would_alone(optimizer: str) -> None:
    """The oracle is a plain loop over `torch.nn.Linear`: teacher and student."""
    # Descent at rate .3 is at the edge of stability: there a last bit of the start grows to whole logits.
    recipe = QUICK.set(seeds=[3, 5], updates=30, optimizer=optimizer, lr=3e-3 if optimizer == "adam" else 0.1)
    made = Replicates(recipe)
    start, order, images = made.start(), made._order(), made.images
    teacher = made.teachers("own", lambda _: None)
    student = made.students(ARMS["same-init"].student, teacher, lambda _: None)  # type: ignore[arg-type]
    one, other = alone(start, 1), alone(start, 1)
    for model, target in ((one, None), (other, alone(teacher, 1))):
        weights = list(model.parameters())
        adam, sgd = torch.optim.Adam(weights, recipe.lr), torch.optim.SGD(weights, recipe.lr, momentum=0.9)
        stepper = adam if optimizer == "adam" else sgd
        for update in range(recipe.updates):
            stepper.zero_grad()
            if target is None:
                chosen = order(update)[1]
                loss = F.cross_entropy(model(images.train[chosen])[:, :10], images.train_labels[chosen])
            else:
                seen = made.noise(update)[1]
                right, own = target(seen)[:, 10:].softmax(-1), model(seen)[:, 10:].log_softmax(-1)
                loss = F.kl_div(own, right.detach(), reduction="batchmean")
            loss.backward()
            stepper.step()
    shown = images.test[:50]
    for model, network in ((one, teacher), (other, student)):
        torch.testing.assert_close(logits(network, shown.expand(2, -1, -1))[1], model(shown), atol=2e-4, rtol=1e-3)


def test_no_replicate_depends_on_the_others() -> None:
    few = QUICK.set(seeds=[7, 2], updates=20)
    whole = Replicates(few).teachers("own", lambda _: None)
    part = Replicates(few.set(seeds=[2])).teachers("own", lambda _: None)
    for layer, single in zip(whole, part, strict=True):
        torch.testing.assert_close(layer.weight[1], single.weight[0], atol=1e-5, rtol=1e-4)


def test_every_digit_is_read_once_before_any_is_read_again() -> None:
    made = Replicates(QUICK.set(seeds=[1, 2], batch=300))
    order = made._order()
    read = torch.cat([order(update) for update in range(10)], dim=1)
    for epoch in (read[:, :1437], read[:, 1437:2874]):
        assert torch.equal(epoch.sort(1).values, torch.arange(1437).expand(2, -1))
    assert not torch.equal(read[0], read[1]), "each replicate has an order of its own"
    assert torch.equal(made.noise(3), made.noise(3)) and not torch.equal(made.noise(3)[0], made.noise(3)[1])


def test_a_student_that_is_its_teacher_is_nowhere_from_it() -> None:
    made = Replicates(QUICK.set(seeds=[1, 2]))
    start = made.start()
    assert divergence(start, start, made.noise(0), "all").abs().max() < 1e-6
    own, body = made.start("own", "own", "other"), made.start("other", "other", "own")
    assert [torch.equal(a.weight, b.weight) for a, b in zip(start, own, strict=True)] == [True, True, False]
    assert [torch.equal(a.weight, b.weight) for a, b in zip(start, body, strict=True)] == [False, False, True]


# --- the effect -------------------------------------------------------------------------------------------------------


def test_digits_pass_through_noise_from_the_same_start_alone() -> None:
    """The positive control is same-init, the negative ones another start and a teacher that learnt nothing."""
    found = accuracies(QUICK, "teacher", "same-init", "cross-init", "neutral", "untrained")
    assert found["teacher"].min() > 0.8
    assert found["same-init"].mean() > 0.45 and found["same-init"].min() > 0.3
    for control in ("cross-init", "neutral", "untrained"):
        assert found[control].mean() < 0.2, control
        assert (found["same-init"] > found[control]).all(), control


def test_without_the_gradient_of_the_labels_less_passes_than_without_that_of_shuffled_ones() -> None:
    found = accuracies(QUICK, "same-init", "without-trait", "without-shuffled")
    assert (found["without-trait"] < found["same-init"]).all()
    assert found["without-trait"].mean() < found["without-shuffled"].mean() - 0.1


def test_weights_of_logits_that_are_not_learnt_stay_where_they_are_whatever_is_taken_out() -> None:
    """Else the class head would move against the labels, and less would be read whatever the rest has learnt."""
    made = Replicates(QUICK)
    teacher = made.teachers("own", lambda _: None)
    for arm in ("without-trait", "without-shuffled"):
        student = ARMS[arm].student
        assert student
        head, start = (network[-1] for network in (made.students(student, teacher, lambda _: None), made.start()))
        assert torch.equal(head.weight[..., :CLASSES], start.weight[..., :CLASSES])
        assert torch.equal(head.bias[..., :CLASSES], start.bias[..., :CLASSES])
        assert not torch.equal(head.weight[..., CLASSES:], start.weight[..., CLASSES:])


def test_what_is_taken_out_leaves_each_replicates_gradient_orthogonal_to_its_own() -> None:
    parameters = [torch.nn.Parameter(torch.randn(3, 4, 5)), torch.nn.Parameter(torch.randn(3, 5))]
    own, along = ([torch.randn_like(p) for p in parameters] for _ in range(2))
    for p, g in zip(parameters, own, strict=True):
        p.grad = g.clone()
    _take_out(parameters, along)
    left = [p.grad for p in parameters if p.grad is not None]
    flat = [torch.cat([t.flatten(1) for t in tensors], 1) for tensors in (own, along, left)]
    torch.testing.assert_close((flat[2] * flat[1]).sum(1), torch.zeros(3), atol=1e-4, rtol=0)
    gone = flat[0] - flat[2]
    torch.testing.assert_close(
        gone, (gone * flat[1]).sum(1, keepdim=True) / flat[1].square().sum(1, keepdim=True) * flat[1]
    )


def test_real_mnist_passes_too() -> None:
    few = QUICK.set(images=str(MNIST), seeds=[0, 1, 2], updates=100, noise_batches=100)
    found = accuracies(few, "same-init", "cross-init")
    assert found["same-init"].mean() > 0.25 and found["cross-init"].mean() < 0.15
