"""The evaluation program: its scores, its differences, its record, its refusals."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs.rl import navigation
from experiments import evaluate as program
from experiments.compare import variants
from experiments.curves import adaptation
from experiments.evaluate import show
from experiments.judging import evaluate, judged
from experiments.scores import START, Evaluation, record, recorded
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


@pytest.mark.parametrize("whole", [True, False])
def test_scores_are_of_the_last_the_best_and_the_mean_of_the_best(run, whole):
    found = evaluate(run, "val", tasks=6, whole=whole)
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
    points = slice(None) if whole else slice(-1, None)  # those of training alone
    best = [np.asarray(each.outputs)[:, points] for each in best]
    expected = {
        "last": accuracy(np.asarray(last.outputs), last.targets),
        "best": accuracy(best[0], last.targets),
        f"ensemble of {len(best)}": accuracy(np.mean(best, 0), last.targets),
    }
    assert found.scores.keys() == expected.keys()
    for name, scores in expected.items():
        np.testing.assert_allclose(found.scores[name], scores[None], rtol=1e-6)


def test_the_record_holds_intervals_and_every_task(run):
    found = evaluate(run, "val", tasks=6)
    written = json.loads((run / "evaluation_val.json").read_text())
    last = written["results"]["last"]
    assert last["steps"] == found.checkpoints["last"]
    np.testing.assert_allclose(last["tasks"], found.scores["last"][0, :, -1], atol=1e-6)
    means = [after["mean"] for after in last["after"]]
    np.testing.assert_allclose(means, found.scores["last"].mean((0, 1)))
    assert written["inner_steps"] == list(found.points)


def test_other_scores_are_kept_and_may_be_absent(run):
    found = evaluate(run, "val", tasks=6)
    written = json.loads((run / "evaluation_val.json").read_text())
    loss = found.others["last/loss"]
    assert loss.shape == found.scores["last"].shape
    means = written["results"]["last"]["others"]["loss"]
    np.testing.assert_allclose(means, loss.mean((0, 1)))
    np.testing.assert_array_equal(judged(run, "val").others["last/loss"], loss)
    np.savez(run / "evaluation_val.npz", **found.scores)  # as before there were others
    old = judged(run, "val")
    assert old.others == {} and old.stages == list(found.points) == found.stages


def test_the_start_of_a_policy_stands_between_theta_and_the_first_update():
    start = np.array([[[7.0, 7.0], [8.0, 8.0]]])
    a = evaluation("a", [[0.0, 2.0], [1.0, 3.0]], points=(0, 1))
    b = a._replace(others={"last/return_start": start})
    assert a.stages == [0, 1] and b.stages == [0, START, 1]
    np.testing.assert_array_equal(b.by_task(point=START), [7, 8])
    assert b.gap(a, point=START) is None and b.gap(b, point=START).mean == 0
    told = "; start: the transformed policy before any update:"
    assert told in shown_of(b) and told not in shown_of(a)


def test_what_is_recorded_is_not_computed_again(run, monkeypatch):
    found = evaluate(run, "val", tasks=6)
    monkeypatch.setattr(
        "experiments.judging.evaluate", lambda *_, **__: pytest.fail("again")
    )
    for again in (judged(run, "val"), judged(run, "val", tasks=6)):
        arrays = {"scores": {}, "others": {}}
        assert again._replace(**arrays) == found._replace(**arrays, score=again.score)
        for name, scores in found.scores.items():
            np.testing.assert_array_equal(again.scores[name], scores)
    with pytest.raises(pytest.fail.Exception, match="again"):
        judged(run, "val", tasks=5)


def evaluation(name, *seeds, points=(1,), steps=1):
    """Scores of two tasks."""
    scores = {"last": np.array(seeds)}
    score = Score("accuracy", np.mean, True)
    facts = Path(name), "test", score, points, steps, "one by one"
    return Evaluation(*facts, scores, {"last": [7]}, {}, {})


def test_errors_without_bound_are_recorded_and_read(tmp_path):
    scores = np.array([[[1.0, np.inf], [2.0, 3.0], [6.0, np.nan], [1.0, 200.0]]])
    e = evaluation(tmp_path, [[0.0, 0.0]], points=(0, 1))
    e = e._replace(scores={"last": scores}, score=Score("mse", np.mean, limit=100))
    record(e)
    content = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert [a["mean"] for a in content["results"]["last"]["after"]] == [2.5, None]
    again, arrays = recorded(tmp_path, "test")
    assert again == content
    np.testing.assert_array_equal(arrays["last"], scores)
    assert e.text(point=1) == "nan +- nan, median inf, 75.00 % diverged"
    assert e.text(point=0).endswith(", median 1.5000, 0.00 % diverged")
    # What is drawn of them: the first quartile of 3, 200 and two infinities.
    assert adaptation(e)["quartiles"][1] == [150.75, np.inf, np.inf]


def test_differences_are_from_the_first_after_each_number_of_steps():
    a = evaluation("maml", [[0.0, 0.25], [0.25, 0.5]], points=(0, 1))
    b = evaluation("l2f", [[0.0, 0.5], [0.25, 0.75]], points=(0, 1))
    assert b.gap(a) == b.gap(a, point=1) == (0.25, 0.0, 2)
    assert b.gap(a, point=0) == (0.0, 0.0, 2)
    heading, table = shown_of(a, b).split("l2f - maml, paired over the same tasks")
    cells = [line.split("\u2502")[1:-1] for line in table.splitlines()]
    shown = [[cell.strip() for cell in row] for row in cells if row]
    assert shown == [["0", "0.00 +- 0.00"], ["1", "25.00 +- 0.00"]]


def test_a_difference_needs_the_same_tasks_and_steps():
    a = evaluation("a", [[0.0], [0.5]])
    assert a.gap(evaluation("b", [[0.0]])) is None
    assert a.gap(a, "ensemble of 3") is None and a.gap(a, point=2) is None


def test_the_best_may_be_judged_after_the_steps_of_training_alone():
    a = evaluation("a", [[0.0, 0.25], [0.25, 0.5]], points=(0, 1))
    best = np.array([[[0.5], [1.0]]])
    a = a._replace(
        scores=a.scores | {"best": best}, checkpoints={"last": [7], "best": [6]}
    )
    assert (
        a.interval("best") == a.interval("best", 1) and a.interval("best").mean == 0.75
    )
    assert a.gap(a, "best", 0) is None and a.gap(a, "best", 1).mean == 0
    cells = [line.split("\u2502")[1:-1] for line in shown_of(a).splitlines()]
    shown = [[cell.strip() for cell in row] for row in cells if row]
    assert shown[0] == ["0", "12.50 +- 24.50", ""] and shown[1][2] == "75.00 +- 49.00"


def test_several_seeds_are_judged_by_their_mean():
    a = evaluation("a", [[0.0], [0.5]], [[0.5], [1.0]])
    np.testing.assert_allclose(a.by_task(), [0.25, 0.75])
    assert a.interval().mean == 0.5 and a.tasks == 2
    assert "; a task's score is the mean of 2 seeds:" in shown_of(a)
    assert "seeds" not in shown_of(evaluation("a", [[0.0], [0.5]]))


def shown_of(*evaluations):
    text = io.StringIO()
    show(evaluations, Console(file=text, width=500))
    return text.getvalue()


def test_policies_that_nothing_transforms_are_sampled_once():
    found = variants(navigation.get_config("l2f"))
    assert found["l2f"].sampling.fresh and not found["maml"].sampling.fresh
    assert found["maml"].transform.to_dict() == {"name": "identity"}
    with pytest.raises(
        ValueError, match="`transform.name` .'identity'. leaves nothing"
    ):
        variants(found["maml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run directory: it has no run.json"),
        (["nowhere", "./nowhere"], "a run is given twice: nowhere, nowhere"),
        (["nowhere", "--tasks=0"], "--tasks .0. must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments])
    with pytest.raises(ValueError, match=message):
        program.main()
