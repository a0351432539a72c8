"""Eager PyTorch MAML and L2F: the peer that `benchmark.py` times in turn.

    python experiments/benchmark.py --config=configs/regression/sinusoid.py:l2f,k10 \\
        --config.training.seeds=1 \\
        --peer="python experiments/peer.py sinusoids --threads=2"
    python experiments/benchmark.py --synthetic=84x84x3 \\
        --config=configs/classification/miniimagenet.py:l2f,5shot \\
        --peer="python experiments/peer.py images --threads=2"

The idiom of public PyTorch codes: a Python loop over tasks, `torch.autograd.grad` with
`create_graph` for each inner step, one backward pass for the meta-batch, Adam. Prints a
line of JSON: median, least and most seconds of a meta-iteration, and the peak resident
memory. Needs torch, which but for reading official checkpoints nothing else here does.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

LR = 0.01  # of the inner step
WIDTHS = (1, 40, 40, 1)  # of the network on sinusoids
STAGES = 4  # of Conv4

Params = dict[str, torch.Tensor]


class Problem(NamedTuple):
    """What is learned from what.

    params: the initialisation, adapted in each task.  others: learned, not adapted.
    loss: (params, x, y).  episode: () -> support x, y, query x, y.
    """

    params: Params
    others: list[torch.Tensor]
    loss: Callable[[Params, torch.Tensor, torch.Tensor], torch.Tensor]
    episode: Callable[[], tuple[torch.Tensor, ...]]


def sinusoids(options: argparse.Namespace) -> Problem:
    """Return the regression of `configs/regression/sinusoid.py`."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        params[f"weight_{i}"] = 0.01 * torch.randn(fan_out, fan_in)
        params[f"bias_{i}"] = torch.zeros(fan_out)

    def loss(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for i in range(3):
            x = F.linear(x, params[f"weight_{i}"], params[f"bias_{i}"])
            x = torch.relu(x) if i < 2 else x
        return F.mse_loss(x, y)

    def episode() -> tuple[torch.Tensor, ...]:
        amplitude = 0.1 + 4.9 * torch.rand(())
        frequency, phase = 0.8 + 0.4 * torch.rand(()), math.pi * torch.rand(())
        shots = options.shots
        x = 10 * torch.rand(2 * shots, 1) - 5
        y = amplitude * torch.sin(frequency * x - phase)
        return x[:shots], y[:shots], x[shots:], y[shots:]

    return Problem(params, [], loss, episode)


def images(options: argparse.Namespace) -> Problem:
    """Return Conv4 with batch statistics on noise of the images' size."""
    params, norm = {}, {}
    width, side = options.channels, options.size
    for stage in range(STAGES):
        kernel = torch.empty(options.filters, width, 3, 3, device=options.device)
        params[f"kernel_{stage}"] = torch.nn.init.xavier_uniform_(kernel)
        for name, fill in (("scale", torch.ones), ("shift", torch.zeros)):
            norm[f"{name}_{stage}"] = fill(options.filters, device=options.device)
        width, side = options.filters, side // 2
    head = torch.empty(options.ways, width * side * side, device=options.device)
    params["head"] = torch.nn.init.xavier_uniform_(head)
    params["bias"] = torch.zeros(options.ways, device=options.device)

    def loss(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for stage in range(STAGES):
            x = F.conv2d(x, params[f"kernel_{stage}"], padding=1)
            scale, shift = norm[f"scale_{stage}"], norm[f"shift_{stage}"]
            x = F.batch_norm(x, None, None, scale, shift, training=True)
            x = F.max_pool2d(F.leaky_relu(x), 2)
        return F.cross_entropy(
            F.linear(x.flatten(1), params["head"], params["bias"]), y
        )

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = options.ways * count, options.channels, options.size, options.size
        classes = torch.arange(options.ways, device=options.device)
        noise = torch.randn(shape, device=options.device)
        return noise, classes.repeat_interleave(count)

    held = *draw(options.shots), *draw(options.queries)  # drawing is not timed
    return Problem(params, list(norm.values()), loss, lambda: held)


def gradients(problem: Problem, params: Params, x, y, graph: bool):
    loss = problem.loss(params, x, y)
    return torch.autograd.grad(loss, list(params.values()), create_graph=graph)


def task_loss(problem: Problem, generator, steps: int, second: bool) -> torch.Tensor:
    """Attenuate, adapt, and judge: the loss of one task."""
    x, y, query_x, query_y = problem.episode()
    fast = dict(problem.params)
    if generator is not None:
        means = [g.mean() for g in gradients(problem, fast, x, y, graph=False)]
        gamma = generator(torch.stack(means))
        fast = {k: gamma[i] * v for i, (k, v) in enumerate(fast.items())}
    for _ in range(steps):
        moves = gradients(problem, fast, x, y, graph=second)
        fast = {k: v - LR * g for (k, v), g in zip(fast.items(), moves, strict=True)}
    return problem.loss(fast, query_x, query_y)


def attenuator(size: int) -> torch.nn.Module:
    layers = torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, size)
    return torch.nn.Sequential(*layers, torch.nn.Sigmoid())


PROBLEMS = {"sinusoids": sinusoids, "images": images}
DEFAULTS = {  # those of sinusoids and images, and what both have
    "sinusoids": {"tasks": 25, "shots": 10, "steps": 1, "threads": 1, "repeats": 100},
    "images": {"tasks": 2, "shots": 5, "steps": 5, "threads": 2, "repeats": 5},
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--method", choices=("maml", "l2f"), default="l2f")
    parser.add_argument("--order", type=int, choices=(1, 2), default=2)
    for name in DEFAULTS["images"]:
        parser.add_argument(f"--{name}", type=int)
    sizes = {"ways": 5, "queries": 15, "size": 84, "channels": 3, "filters": 48}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of images")
    parser.add_argument("--device", default="cpu", help="of images")
    options = parser.parse_args()
    if options.problem == "sinusoids" and options.device != "cpu":
        parser.error("--device is of images")
    for name, default in DEFAULTS[options.problem].items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    problem = PROBLEMS[options.problem](options)
    for x in (*problem.params.values(), *problem.others):
        x.requires_grad_()
    generator, learned = None, [*problem.params.values(), *problem.others]
    if options.method == "l2f":
        generator = attenuator(len(problem.params)).to(options.device)
        learned += generator.parameters()
    optimiser = torch.optim.Adam(learned, 1e-3)

    def meta_iteration() -> None:
        optimiser.zero_grad()
        losses = [
            task_loss(problem, generator, options.steps, options.order == 2)
            for _ in range(options.tasks)
        ]
        torch.stack(losses).mean().backward()
        optimiser.step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()

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
