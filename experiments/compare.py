"""Train L2F and MAML the same way and test them on the same tasks: the main job.

    python experiments/compare.py --run=runs/icons \\
        --config=configs/classification/icons.py

The two runs differ in nothing but the initialisation transform: the config's, and none.
Prints their test tables with the paired difference, and writes comparison.png beside
their checkpoints. Started again, it goes on where it was interrupted.
"""

import signal
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

from experiments import curves, launch
from experiments.evaluate import show
from experiments.judging import judged
from experiments.locking import alone
from experiments.train import check_split, train
from l2f_jax.problems import build


def variants(config: ConfigDict) -> dict[str, ConfigDict]:
    """Return the config as it is ("l2f") and with no transform ("maml")."""
    if config.transform.name == "identity":
        raise ValueError(
            "`transform.name` ('identity') leaves nothing to compare; choose a config "
            "with an attenuation, as FILE:l2f"
        )
    plain = ConfigDict(config.to_dict())
    plain.transform = ConfigDict({"name": "identity"})
    if "sampling" in plain:  # a policy that nothing transforms is sampled once
        plain.sampling.fresh = False
    return {"l2f": config, "maml": plain}


def main() -> None:
    given = launch.config()
    # Asked before the hours of training, not after them.
    check_split(given, build(given), "test", "compare on")
    configs = variants(given)
    folder = Path(flags.FLAGS.run)
    runs = {name: folder / name for name in ("l2f", "maml")}
    with alone(runs["l2f"]), alone(runs["maml"]):
        for name, config in configs.items():
            if not train(config, runs[name]):
                raise SystemExit(128 + signal.SIGTERM)
        tasks = given.evaluation.test_tasks
        # What the others are compared with comes first.
        evaluations = [judged(runs[name], tasks=tasks) for name in ("maml", "l2f")]
    show(evaluations, Console())
    figure = folder / "comparison.png"
    curves.comparison(evaluations, figure)
    print(f"\nfigure: {figure}; checkpoints: {', '.join(map(str, runs.values()))}")


if __name__ == "__main__":
    launch.config_flag()
    flags.DEFINE_string("run", None, "the folder of both runs", required=True)
    launch.run(main)
