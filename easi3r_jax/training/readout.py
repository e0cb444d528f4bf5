"""Fits a read-out of the attention moments (`motion.Readout`) by logistic regression on tokens of known motion."""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.arrays import Bool, Float
from easi3r_jax.core.errors import ConfigError, InputError

_STEPS = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of clips, as `motion.centred_moments` gives them.

    Attributes:
      moments: (N, C) float32.
      dynamic: (N,) bool.
      hard: (N,) bool, static tokens of objects that move in another clip (the twin's): a score that answers to the
        object instead of its motion is wrong here.
    """

    moments: Float[np.ndarray, "N C"]
    dynamic: Bool[np.ndarray, "N"]
    hard: Bool[np.ndarray, "N"]


def joined(parts: list[Tokens]) -> Tokens:
    """The tokens of several clips."""
    return Tokens(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Tokens)))


def fit_readout(
    tokens: Tokens, *, hard_weight: float = 0.6, regularisation: float = 1e-3
) -> tuple[Float[np.ndarray, "C"], float]:
    """Weights and bias of the logistic regression, in units of the moments.

    Dynamic tokens and the other static tokens have the same total weight; hard ones have `hard_weight` of everything.

    Args:
      tokens: of the clips to fit.
      hard_weight: fraction in [0, 1) of the weight; ignored if there are no hard tokens.
      regularisation: of the squared weights, relative to moments of unit variance.

    Raises:
      ConfigError: a weight outside [0, 1), or a negative regularisation.
      InputError: no dynamic or no static tokens.
    """
    if not 0 <= hard_weight < 1 or not regularisation >= 0:
        raise ConfigError(f"hard_weight={hard_weight}, regularisation={regularisation}: out of range.")
    hard = tokens.hard & ~tokens.dynamic
    easy = ~tokens.dynamic & ~hard
    if not tokens.dynamic.any() or not easy.any():
        what = "moves" if not tokens.dynamic.any() else "is static"
        raise InputError(f"Nothing {what} in the clips: calibration needs clips with masks of both.")
    shares = [(1 - hard_weight) / 2 if hard.any() else 0.5] * 2 + [hard_weight]
    weight = np.zeros(len(hard))
    for members, share in zip((tokens.dynamic, easy, hard), shares, strict=True):
        weight[members] = share / max(members.sum(), 1)
    # In units of their deviation, so that one regularisation suits all.
    scale = np.maximum(tokens.moments.std(axis=0, dtype=np.float64), 1e-12)
    x, y = tokens.moments / scale.astype(np.float32), tokens.dynamic.astype(np.float32)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w = parameters[:-1]
        logit = x @ w.astype(np.float32) + np.float32(parameters[-1])
        value = np.sum(weight * (np.logaddexp(0, logit) - y * logit)) + 0.5 * regularisation * w @ w
        error = weight * (1 / (1 + np.exp(-logit)) - y)
        return float(value), np.concatenate([x.T @ error + regularisation * w, [error.sum()]])

    from scipy import optimize

    start = np.zeros(x.shape[1] + 1)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return found[:-1] / scale, float(found[-1])
