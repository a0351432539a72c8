"""What a report says of runs before their scores: tasks, settings, machines."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.identity import differences
from experiments.page import Block, Code, Table, Text
from experiments.runs import Run
from experiments.scores import Evaluation
from l2f_jax.data.bank import SPLITS


def title(runs: Sequence[Run]) -> str:
    """Name the report."""
    names = ", ".join(run.name for run in runs)
    return f"{runs[0].config['problem'].capitalize()}: {names}"


def introduction(runs: Sequence[Run]) -> Iterator[Block]:
    """Say what the runs are about."""
    yield Text(task(runs[0]))
    protocols = {run.name: run.record["protocol"] for run in runs}
    if len({*protocols.values()}) == 1:
        protocols = {"all runs": runs[0].record["protocol"]}
    for name, protocol in protocols.items():
        yield Text(f"Protocol of {name}: {protocol}.")
    yield Table(
        ["run", "directory", "iterations"],
        [[run.name, str(run.path), f"{run.step} of {run.iterations}"] for run in runs],
        names=2,
    )


def task(run: Run) -> str:
    """Describe the task that a run learns."""
    config, facts = run.config, run.record["data"]
    if config["problem"] == "regression":
        shots, judged = (config["data"][key] for key in ("shots", "test_queries"))
        return f"Sinusoid regression from {shots} points, judged on {judged} others."
    if config["problem"] == "reinforcement":
        name = config["env"]["name"].replace("_", "-")
        return f"Reinforcement learning, {name}: judged by returns after each update."
    data, classes = config["data"], facts["classes"]
    counts = (f"{split} {classes[split]}" for split in SPLITS if split in classes)
    size = " × ".join(map(str, facts["shape"]))
    return (
        f"{data['ways']}-way {data['shots']}-shot classification with "
        f"{data['queries']} query images of each class. Data: "
        f"{facts['provenance']['source']}. {facts['images']:,} images of {size}; "
        f"classes: {', '.join(counts)}."
    )


def settings(runs: Sequence[Run]) -> Iterator[Block]:
    """Show in which settings the runs differ, then all of the first run, folded."""
    first, *others = runs
    changes = [differences(first.config, other.config) for other in others]
    found = {key for change in changes for key, *_ in change}
    # The name of a component stands before its options.
    keys = sorted(found, key=lambda key: key.removesuffix("name"))
    if keys:
        yield Text("The settings that differ; all others are the same.")
        rows = [[key, *(_setting(run.config, key) for run in runs)] for key in keys]
        yield Table(["setting", *(run.name for run in runs)], rows, 1 + len(runs))
    elif others:
        yield Text("The runs have all settings in common.")
    yield Code(json.dumps(first.config, indent=2), f"All settings of {first.name}")


def _setting(config: Any, key: str) -> str:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return "–"
        config = config[part]
    return config if isinstance(config, str) else json.dumps(config)


def surroundings(
    runs: Sequence[Run], evaluations: Mapping[str, Evaluation]
) -> Iterator[Block]:
    """Show what the runs were computed with, and by which commands."""
    made = {name: e.made for name, e in evaluations.items()}
    columns = {run.name: _machine(run, made[run.name]) for run in runs}
    if len({*map(str, columns.values())}) == 1:
        columns = {"all runs": columns[runs[0].name]}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[key, *(c.get(key, "") for c in columns.values())] for key in keys]
    yield Table(["", *columns], rows, 1 + len(columns))
    commands = [
        shlex.join(["python", *command])
        for run in runs
        for command in (run.record["command"], made[run.name]["command"])
    ]
    yield Code("\n\n".join(dict.fromkeys(commands)))


def _machine(run: Run, made: Mapping[str, Any]) -> dict[str, str]:
    found = run.record
    return {
        "trained on": found["device"],
        "tested on": made["device"],
        "processes": str(found["processes"]),
        "python": found["python"],
        **found["versions"],
    }
