"""Does a clip sound like what was asked for? A small classifier on frozen embeddings, trained on the user's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from micro_musicgen.errors import MicroMusicGenError

Array = npt.NDArray[np.float64]

STRENGTH = 1e-2
"""Of the pull towards zero. Embeddings have unit variance here, and there are often more dimensions than clips."""
MAX_FOLDS = 5


@dataclass(frozen=True)
class LabelClassifier:
    """Multinomial logistic regression. Invariant: made by `fit_classifier`.

    classes: names of the C labels. weights [D, C], bias [C], on embeddings after (x - mean) / scale.
    """

    classes: tuple[str, ...]
    weights: Array
    bias: Array
    mean: Array
    scale: Array

    def probabilities(self, embeddings: npt.ArrayLike) -> Array:
        """Gives the likelihood of each class, [N, C], of embeddings [N, D]."""
        logits = (np.asarray(embeddings, dtype=np.float64) - self.mean) / self.scale @ self.weights + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def predict(self, embeddings: npt.ArrayLike) -> list[str]:
        """Gives the likeliest label of each of the embeddings [N, D]."""
        return [self.classes[index] for index in self.probabilities(embeddings).argmax(axis=1)]


def fit_classifier(embeddings: npt.ArrayLike, labels: Sequence[str], *, strength: float = STRENGTH) -> LabelClassifier:
    """Gives the classifier that minimises mean cross-entropy + strength / 2 * |weights|^2. The optimum is unique.

    Every class counts alike, however many clips it has.

    Raises:
        MicroMusicGenError: fewer than two classes, another number of labels than embeddings, or NaN.
    """
    rows = _checked(embeddings, labels)
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise MicroMusicGenError(f"the only label is {classes[0]!r}; a classifier needs two or more")
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 1e-9 * max(1e-30, float(scale.max())), scale, 1.0)
    index = np.array([classes.index(label) for label in labels])
    weights, bias = _minimise((rows - mean) / scale, index, len(classes), strength)
    return LabelClassifier(classes, weights, bias, mean, scale)


def _minimise(rows: Array, index: npt.NDArray[np.int64], num_classes: int, strength: float) -> tuple[Array, Array]:
    import torch

    x, y = torch.from_numpy(rows), torch.from_numpy(index)
    per_class = torch.bincount(y, minlength=num_classes).double()
    shares = (len(y) / (num_classes * per_class))[y] / len(y)
    weights = torch.zeros(x.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [weights, bias], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        descent.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ weights + bias, y, reduction="none")
        value = (shares * losses).sum() + strength / 2 * weights.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        descent.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy(), bias.detach().numpy()


def cross_validated(
    embeddings: npt.ArrayLike,
    labels: Sequence[str],
    groups: Sequence[object],
    *,
    seed: int = 0,
    strength: float = STRENGTH,
) -> list[bool]:
    """Says of each clip whether a classifier that heard none of its group recognises its label.

    groups: what hangs together, such as the clips of one track. Folds are drawn by group, each label spread over them.

    Raises:
        MicroMusicGenError: a label with fewer than two groups; see `fit_classifier` for the rest.
    """
    rows = _checked(embeddings, labels)
    if len(groups) != len(rows):
        raise MicroMusicGenError(f"{len(rows)} embeddings and {len(groups)} groups; give one each")
    folds = _folds(labels, groups, seed)
    hits = np.zeros(len(rows), dtype=bool)
    for fold in sorted(set(folds)):
        heard = folds != fold
        model = fit_classifier(rows[heard], [labels[i] for i in np.flatnonzero(heard).tolist()], strength=strength)
        tested = np.flatnonzero(~heard).tolist()
        hits[~heard] = [said == labels[i] for i, said in zip(tested, model.predict(rows[tested]), strict=True)]
    return [bool(hit) for hit in hits]


def _folds(labels: Sequence[str], groups: Sequence[object], seed: int) -> npt.NDArray[np.int64]:
    """Gives the fold of each clip. A group goes where the first of its labels says."""
    label_of: dict[object, str] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of.setdefault(group, label)
    members = {label: [g for g, of in label_of.items() if of == label] for label in sorted(set(labels))}
    poorest = min(members, key=lambda label: len(members[label]))
    if len(members[poorest]) < 2:
        raise MicroMusicGenError(
            f"label {poorest!r} has {len(members[poorest])} track(s); each needs two, one to learn and one to test"
        )
    num_folds = min(MAX_FOLDS, len(members[poorest]))
    rng, fold_of = np.random.default_rng(seed), {}
    for group_list in members.values():
        for place, which in enumerate(rng.permutation(len(group_list))):
            fold_of[group_list[which]] = place % num_folds
    return np.array([fold_of[group] for group in groups])


def _checked(embeddings: npt.ArrayLike, labels: Sequence[str]) -> Array:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(labels) or not len(rows):
        raise MicroMusicGenError(f"embeddings of shape {rows.shape} and {len(labels)} labels; give [N, D] and N labels")
    if not np.isfinite(rows).all():
        raise MicroMusicGenError("embeddings hold NaN or infinity; check the clips that they come from")
    return rows
