"""Linear read-outs, cross-validated by image, in closed form where there is one (fp64).

In: features, what to read out of them, and the image of each row. Out: predictions for every row
by a read-out that has seen no row of its image, and what the training rows' mean would have said.
"""

from collections.abc import Iterator

import numpy as np
import torch

PENALTIES = np.logspace(-4, 4, 17)
WEIGHT_DECAY = 0.1


def split_by_image(images: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(training, test) masks (n,); all rows of an image lie on the same side."""
    names, index = np.unique(images, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(len(names)) % folds
    for fold in range(min(folds, len(names))):
        yield dealt[index] != fold, dealt[index] == fold


def ridge(
    features: np.ndarray, targets: np.ndarray, images: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and training means (n, T) of targets (n, T) from features (n, H); each target's
    penalty is chosen within the training rows, by image again."""
    predicted, means = np.zeros_like(targets), np.zeros_like(targets)
    for train, test in split_by_image(images, folds, seed):
        errors = np.zeros((len(PENALTIES), targets.shape[1]))
        for inner, held in split_by_image(images[train], folds, seed + 1):
            x, y = features[train], targets[train]
            errors += ((_path(x[inner], y[inner], x[held]) - y[held]) ** 2).sum(1)
        path = _path(features[train], targets[train], features[test])
        best = np.broadcast_to(errors.argmin(0)[None, None], (1, *path.shape[1:]))
        predicted[test] = np.take_along_axis(path, best, 0)[0]
        means[test] = targets[train].mean(0)
    return predicted, means


def _path(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predictions (penalties, m, T) for rows `new` by ridge on (x, y), features standardised."""
    x, new = _standardise(x, new)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    mean = y.mean(0)
    turned, spread = u.T @ (y - mean), new @ v.T
    shrunk = [s / (s**2 + penalty * len(x)) for penalty in PENALTIES]
    return np.stack([mean + spread @ (factor[:, None] * turned) for factor in shrunk])


def logistic(
    features: np.ndarray, labels: np.ndarray, images: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted labels (n,) for labels (n,) int by multinomial logistic regression, and the training
    rows' commonest label."""
    predicted, commonest = np.zeros_like(labels), np.zeros_like(labels)
    classes = int(labels.max()) + 1
    for train, test in split_by_image(images, folds, seed):
        predicted[test] = _classify(features[train], labels[train], features[test], classes)
        commonest[test] = np.bincount(labels[train]).argmax()
    return predicted, commonest


def _classify(x: np.ndarray, y: np.ndarray, new: np.ndarray, classes: int) -> np.ndarray:
    """Labels of rows `new`: cross entropy on (x, y) and WEIGHT_DECAY · |weights|² / 2, features
    standardised, minimised to the end (it is convex)."""
    x, new = _standardise(x, new)
    given, wanted = torch.from_numpy(x), torch.from_numpy(y)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(given @ weight + bias, wanted)
        value = value + WEIGHT_DECAY * weight.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return (new @ weight.detach().numpy() + bias.detach().numpy()).argmax(1)


def _standardise(x: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by mean and deviation of `x`; a feature that does not vary in it becomes 0."""
    mean, deviation = x.mean(0), x.std(0)
    scale = np.where(deviation > 1e-12, 1 / np.maximum(deviation, 1e-12), 0.0)
    return (x - mean) * scale, (new - mean) * scale
