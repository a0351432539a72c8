"""Eager PyTorch MAML and L2F on sinusoids: the peer that `benchmark.py` times in turn.

    python experiments/benchmark.py --config=configs/regression/sinusoid.py:l2f,k10 \\
        --config.training.seeds=1 --peer="python experiments/peer_sinusoid.py"

The idiom of public PyTorch codes: a Python loop over tasks, `torch.autograd.grad` with
`create_graph` for each inner step, one backward pass for the meta-batch, Adam. Prints a
line of JSON: median, least and most seconds of a meta-iteration, and the peak resident
memory. Needs torch, which nothing else here does.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F

WIDTHS = (1, 40, 40, 1)
LR = 0.01  # of the inner step


def network() -> dict[str, torch.Tensor]:
    params = {}
    for i, (fan_in, fan_out) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        params[f"weight_{i}"] = 0.01 * torch.randn(fan_out, fan_in)
        params[f"bias_{i}"] = torch.zeros(fan_out)
    return {name: x.requires_grad_() for name, x in params.items()}


def attenuator(size: int) -> torch.nn.Module:
    layers = torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, size)
    return torch.nn.Sequential(*layers, torch.nn.Sigmoid())


def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor):
    for i in range(3):
        x = F.linear(x, params[f"weight_{i}"], params[f"bias_{i}"])
        x = torch.relu(x) if i < 2 else x
    return F.mse_loss(x, y)


def gradients(params, x, y, graph: bool):
    return torch.autograd.grad(
        loss(params, x, y), list(params.values()), create_graph=graph
    )


def episode(shots: int):
    """Draw a sine wave and 2 x shots points of it, as configs/regression does."""
    amplitude = 0.1 + 4.9 * torch.rand(())
    frequency, phase = 0.8 + 0.4 * torch.rand(()), math.pi * torch.rand(())
    x = 10 * torch.rand(2 * shots, 1) - 5
    y = amplitude * torch.sin(frequency * x - phase)
    return x[:shots], y[:shots], x[shots:], y[shots:]


def task_loss(params, generator, shots: int, steps: int):
    x, y, query_x, query_y = episode(shots)
    fast = dict(params)
    if generator is not None:
        means = [g.mean() for g in gradients(fast, x, y, graph=False)]
        gamma = generator(torch.stack(means))
        fast = {k: gamma[i] * v for i, (k, v) in enumerate(fast.items())}
    for _ in range(steps):
        moves = gradients(fast, x, y, graph=True)
        fast = {k: v - LR * g for (k, v), g in zip(fast.items(), moves, strict=True)}
    return loss(fast, query_x, query_y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("maml", "l2f"), default="l2f")
    parser.add_argument("--tasks", type=int, default=25)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    params = network()
    generator = attenuator(len(params)) if options.method == "l2f" else None
    learned = [*params.values(), *(generator.parameters() if generator else ())]
    optimiser = torch.optim.Adam(learned, 1e-3)

    def meta_iteration() -> None:
        optimiser.zero_grad()
        losses = [
            task_loss(params, generator, options.shots, options.steps)
            for _ in range(options.tasks)
        ]
        torch.stack(losses).mean().backward()
        optimiser.step()

    meta_iteration()
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        meta_iteration()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        **vars(options),
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "peak_mib": peak / (2**20 if sys.platform == "darwin" else 1024),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
