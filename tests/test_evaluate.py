"""The evaluation program: its scores, its differences, its record, its refusals."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments import evaluate as program
from experiments.evaluate import Evaluation, evaluate, record, show
from experiments.train import train
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.problems import Score, build
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny.get_config(), path)
    return path


def test_scores_are_of_the_last_the_best_and_the_mean_of_the_best(run):
    found = evaluate(run, "val", tasks=6)
    experiment = build(tiny.get_config())
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        like = experiment.init(0)
        ranked = [saved.restore_best(rank, like)[0] for rank in range(len(saved.best))]
        newest = saved.restore_latest(like)[0]
        assert found.checkpoints["best"] == [saved.best[0][0]]
    assert found.checkpoints["last"] == [int(newest.step)]

    def predict(state):
        return experiment.predict(state.meta, state.stats, "val", 6)

    def accuracy(logits, labels):
        return (logits.argmax(-1) == np.asarray(labels)[:, None]).mean(-1)

    last, *best = map(predict, [newest, *ranked])
    expected = {
        "last": accuracy(np.asarray(last.outputs), last.targets),
        "best": accuracy(np.asarray(best[0].outputs), best[0].targets),
        f"ensemble of {len(best)}": accuracy(
            np.mean([each.outputs for each in best], 0), last.targets
        ),
    }
    assert found.scores.keys() == expected.keys()
    for name, scores in expected.items():
        np.testing.assert_allclose(found.scores[name], scores, rtol=1e-6)


def test_the_record_holds_intervals_and_every_task(run):
    found = evaluate(run, "val", tasks=6)
    record(found)
    written = json.loads((run / "evaluation_val.json").read_text())
    last = written["results"]["last"]
    assert last["steps"] == found.checkpoints["last"]
    np.testing.assert_allclose(last["tasks"], found.scores["last"][:, -1], atol=1e-6)
    means = [after["mean"] for after in last["after"]]
    np.testing.assert_allclose(means, found.scores["last"].mean(0))
    assert written["inner_steps"] == list(found.points)


def test_differences_are_from_the_first(tmp_path):
    low, high = np.array([[0.25], [0.5]]), np.array([[0.5], [0.75]])
    score = Score("accuracy", np.mean, True)

    def judged(name, scores):
        parts = "test", score, (1,), "one by one", {"last": scores}, {"last": [7]}
        return Evaluation(tmp_path / name, *parts)

    text = io.StringIO()
    show([judged("maml", low), judged("l2f", high)], Console(file=text, width=500))
    *_, heading, difference = text.getvalue().splitlines()
    assert heading.startswith(f"{tmp_path / 'l2f'} - {tmp_path / 'maml'}, paired")
    assert difference.strip() == "last: 25.00 +- 0.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory: it has no run.json"),
        (["nowhere", "--tasks=0"], "--tasks .0. must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments])
    with pytest.raises(ValueError, match=message):
        program.main()
