"""From rewards to advantages: returns, the linear feature baseline, GAE.

All functions take the B trajectories of one task, [B, H], with a mask that is 0 after
the end of an episode; rewards are 0 there.
Reference: Duan et al., Benchmarking Deep Reinforcement Learning, ICML 2016; Schulman et
al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016.
"""

import jax
import jax.numpy as jnp

from l2f_jax.types import Array

CLIP = 10.0  # of an observation, in the baseline's features
RIDGE = 1e-5  # relative to the mean square of each feature
TRIES = 5  # with a ridge ten times larger each


def returns_to_go(rewards: Array, discount: float) -> Array:
    """Return G_t = sum over i >= t of discount^(i - t) r_i, [B, H]."""
    return _accumulate(rewards, discount)


def advantages(
    rewards: Array, values: Array, mask: Array, discount: float, decay: float
) -> Array:
    """Estimate how much better each action was than the baseline (GAE), [B, H].

    A_t = sum over i >= t of (discount decay)^(i - t) d_i, with
    d_t = r_t + discount V_{t+1} - V_t and V = 0 after the last step.

    Args:
      values: V [B, H], the baseline.
      decay: lambda in [0, 1]; 1 is the return minus the baseline.
    """
    values = values * mask
    following = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    return _accumulate(
        mask * (rewards + discount * following - values), discount * decay
    )


def standardised(x: Array, mask: Array) -> Array:
    """Scale x [B, H] to mean 0 and deviation 1 over the steps that were taken."""
    mean = masked_mean(x, mask)
    deviation = jnp.sqrt(masked_mean((x - mean) ** 2, mask))
    return mask * (x - mean) / (deviation + 1e-8)


def masked_mean(x: Array, mask: Array) -> Array:
    """Average x [B, H] over the steps that were taken."""
    return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def linear_baseline(observations: Array, targets: Array, mask: Array) -> Array:
    """Fit targets [B, H] by least squares on features of time and state; predict them.

    Features are o, o^2 (o clipped to +-10), t, t^2, t^3 in units of 100 steps, and 1.
    The fit is to the very steps that are predicted, as in MAML's code. The ridge is
    relative to each feature's mean square, so that float32 will do; that code adds 1e-5
    to the sums over all steps, in float64, which weighs hardly at all.

    Args:
      observations: [B, H, o].
    """
    o = jnp.clip(observations, -CLIP, CLIP)
    time = jnp.arange(o.shape[1], dtype=o.dtype) / 100
    powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], axis=-1)
    powers = jnp.broadcast_to(powers, (*o.shape[:2], 4))
    features = jnp.concatenate([o, o**2, powers], axis=-1)
    features = features.reshape(-1, features.shape[-1])
    weight = mask.reshape(-1, 1)
    size = jnp.maximum(weight.sum(), 1.0)
    # Columns of equal size: the normal equations are solved in single precision.
    scale = jnp.sqrt(jnp.sum(weight * features**2, axis=0, keepdims=True) / size)
    features = features / jnp.maximum(scale, 1e-8)
    kept = weight * features
    gram = kept.T @ features / size
    moment = kept.T @ targets.reshape(-1, 1) / size
    return (features @ ridge_solution(gram, moment)).reshape(targets.shape)


def ridge_solution(gram: Array, moment: Array) -> Array:
    """Solve (gram + ridge I) x = moment [n, 1] for the least ridge that works.

    Rounding can leave the Gram matrix of nearly collinear features with a negative
    eigenvalue beyond RIDGE. Then the solution is not finite, and the ridge grows.

    Args:
      gram: [n, n], symmetric.
    """
    identity = jnp.eye(len(gram), dtype=gram.dtype)

    def go_on(attempt: tuple[Array, Array]) -> Array:
        count, solution = attempt
        return ~jnp.isfinite(solution).all() & (count < TRIES)

    def solve(attempt: tuple[Array, Array]) -> tuple[Array, Array]:
        count, _ = attempt
        ridge = RIDGE * 10 ** count.astype(gram.dtype)
        system = gram + ridge * identity
        return count + 1, jax.scipy.linalg.solve(system, moment, assume_a="pos")

    # Not yet an attempt: one solve serves the first try and all others.
    none = jnp.zeros((), jnp.int32), jnp.full_like(moment, jnp.nan)
    return jax.lax.while_loop(go_on, solve, none)[1]


def _accumulate(x: Array, factor: float) -> Array:
    """Return y_t = x_t + factor y_{t+1} along the last axis."""

    def step(later: Array, now: Array) -> tuple[Array, Array]:
        total = now + factor * later
        return total, total

    _, totals = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.T, reverse=True)
    return totals.T
