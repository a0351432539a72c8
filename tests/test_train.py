"""The training loop: exact resume, interruptions, several processes, bad input."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import compare
from experiments import train as training
from experiments.identity import check_complete
from experiments.judging import evaluate
from experiments.locking import alone, held, lock_of
from experiments.recording import read_metrics
from experiments.train import train
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.data.writer import write_bank
from l2f_jax.problems import build
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam

ROOT = Path(__file__).parent.parent
CACHE = str(ROOT / ".jax_cache")  # not the user's
TRAIN = [sys.executable, "experiments/train.py"]
CONFIG = "tests/tiny.py"


def final_state(run: Path, config=None):
    like = build(config or tiny.get_config()).init(0)
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        state, _ = saved.restore_latest(like)
        return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def ranking(run: Path) -> list[tuple[int, float]]:
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        return saved.best


def assert_identical(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def launch(
    run: Path, *arguments: str, config: str = CONFIG, **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [*TRAIN, f"--config={config}", f"--run={run}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": CACHE}
        | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def two_processes(
    run: Path, *arguments: str, devices: int = 1, config: str = CONFIG
) -> Iterator[list[subprocess.Popen]]:
    """Start one run in two processes of so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        launch(
            run,
            *arguments,
            config=config,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
            JAX_NUM_CPU_DEVICES=str(devices),
        )
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: Sequence[subprocess.Popen], code: int = 0) -> list[str]:
    """Wait for all to exit with this code; return what they have said."""
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, messages
    return messages


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    while not any(r["step"] >= step for r in read_metrics(run)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(tiny.get_config(), run)
    return run


def test_resumed_run_is_identical(uninterrupted, tmp_path):
    config = tiny.get_config()
    config.training.iterations = 6
    assert train(config, tmp_path / "run")
    assert train(tiny.get_config(), tmp_path / "run")
    assert_identical(final_state(uninterrupted), final_state(tmp_path / "run"))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path / "run")


@pytest.mark.slow  # starts many programs; .ci/run has it
def test_resumed_run_of_optimised_programs_on_two_devices_is_identical(tmp_path):
    optimised = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_NUM_CPU_DEVICES": "2"}
    for run, iterations in (("parts", 9), ("parts", 12), ("whole", 12)):
        length = f"--config.training.iterations={iterations}"
        second_order = "--config.training.first_order_epochs=0"
        with launch(tmp_path / run, length, second_order, **optimised) as process:
            _, message = process.communicate(timeout=300)
        assert process.returncode == 0, message
        record = json.loads((tmp_path / run / "run.json").read_text())
        assert record["device"].startswith("2 x ")
        again = [9] if (run, iterations) == ("parts", 12) else []
        assert [start["step"] for start in record["resumed"]] == again
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_complete_run_is_left_alone(uninterrupted):
    before = final_state(uninterrupted)
    assert train(tiny.get_config(), uninterrupted)
    assert_identical(before, final_state(uninterrupted))


@pytest.mark.parametrize("step", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_killed_run_resumes_identically(uninterrupted, tmp_path, step):
    with launch(tmp_path / "run") as process:
        wait_for_step(tmp_path / "run", step, process)
        process.kill()
    assert train(tiny.get_config(), tmp_path / "run")
    assert_identical(final_state(uninterrupted), final_state(tmp_path / "run"))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path / "run")


@pytest.mark.parametrize(("step", "logged"), [(6, True), (12, False)])
def test_a_run_killed_while_it_validates_resumes_there(
    uninterrupted, tmp_path, monkeypatch, step, logged
):
    class Killed(Exception):
        pass

    def killed(*arguments):
        if arguments[2] < step:
            return validate(*arguments)
        if logged:  # just before it is ranked
            monkeypatch.setattr(Checkpoints, "rank", killed_here)
            validate(*arguments)
        killed_here()

    def killed_here(*_):
        raise Killed

    validate, run = training.validate, tmp_path / "run"
    with monkeypatch.context() as monkeypatch:
        monkeypatch.setattr(training, "validate", killed)
        with pytest.raises(Killed):
            train(tiny.get_config(), run)
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        assert (saved.latest, saved.ranked) == (step, False)
    if step == 12:
        with pytest.raises(ValueError, match="of step 12 of 12, not validated yet"):
            check_complete(run)
    assert train(tiny.get_config(), run)
    assert_identical(final_state(uninterrupted), final_state(run))
    assert read_metrics(uninterrupted) == read_metrics(run)
    tables = [ranking(uninterrupted), ranking(run)]
    assert tables[0] == tables[1] and len(tables[0]) == 2
    check_complete(run)


def test_interrupted_at_the_end_of_an_epoch_it_validates_when_it_goes_on(
    uninterrupted, tmp_path, monkeypatch
):
    def saved_and_terminated(self, step, *arguments, **options):
        save(self, step, *arguments, **options)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    save = Checkpoints.save
    with monkeypatch.context() as monkeypatch:
        monkeypatch.setattr(Checkpoints, "save", saved_and_terminated)
        assert not train(tiny.get_config(), tmp_path / "run")
    assert [r for r in read_metrics(tmp_path / "run") if r["step"] >= 6] == [
        r for r in read_metrics(uninterrupted) if r["step"] == 6 and "outer/loss" in r
    ]
    assert train(tiny.get_config(), tmp_path / "run")
    assert_identical(final_state(uninterrupted), final_state(tmp_path / "run"))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path / "run")


def test_a_run_does_not_become_shorter_than_it_is(uninterrupted):
    config = tiny.get_config()
    config.training.iterations = 6
    before = (uninterrupted / "run.json").read_bytes()
    with pytest.raises(
        ValueError, match="is trained for 12 iterations already; .* .6."
    ):
        train(config, uninterrupted)
    assert (uninterrupted / "run.json").read_bytes() == before


def test_sigterm_saves_first(tmp_path):
    long = "--config.training.iterations_per_epoch=100000"
    endless = "--config.training.iterations=100000"
    with launch(tmp_path / "run", long, endless) as process:
        wait_for_step(tmp_path / "run", 3, process)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted at" in message
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        assert saved.latest == read_metrics(tmp_path / "run")[-1]["step"]


@pytest.mark.slow  # starts many programs; .ci/run has it
def test_sigterm_to_one_of_two_processes_stops_both(tmp_path):
    first_order = "--config.training.order=1"
    long = "--config.training.iterations_per_epoch=100000"
    endless = "--config.training.iterations=100000"
    with two_processes(tmp_path / "run", first_order, long, endless) as processes:
        wait_for_step(tmp_path / "run", 3, processes[0])
        processes[1].send_signal(signal.SIGTERM)  # the one that records nothing
        finish(processes, 128 + signal.SIGTERM)
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        (step,) = saved.steps
    assert step == read_metrics(tmp_path / "run")[-1]["step"]
    longer = f"--config.training.iterations={step + 6}"
    for run in (tmp_path / "run", tmp_path / "uninterrupted"):
        with two_processes(run, first_order, long, longer) as processes:
            finish(processes)
    a, b = final_state(tmp_path / "uninterrupted"), final_state(tmp_path / "run")
    assert int(a.step) == step + 6
    assert_identical(a, b)
    assert read_metrics(tmp_path / "uninterrupted") == read_metrics(tmp_path / "run")


def test_not_finite_loss_stops_with_step_and_checkpoint(tmp_path):
    config = tiny.get_config()
    train_first_epoch = tiny.get_config()
    train_first_epoch.training.iterations = 6
    train(train_first_epoch, tmp_path / "run")
    config.learner.lr = 1e38  # beyond what float32 can square
    run_json = tmp_path / "run" / "run.json"
    record = json.loads(run_json.read_text())
    record["config"]["learner"]["lr"] = 1e38
    run_json.write_text(json.dumps(record))
    with pytest.raises(FloatingPointError, match="at step 7; .* is step 6"):
        train(config, tmp_path / "run")


def test_not_finite_validation_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def built(config):
        experiment = build(config)

        def scores(predictions):
            found, value = experiment.scores(predictions), next(values)
            return {name: np.full_like(x, value) for name, x in found.items()}

        return experiment._replace(scores=scores)

    values = iter([0.9, 0.1, np.nan, np.nan])
    monkeypatch.setattr(training, "build", built)
    config = tiny.get_config()
    config.evaluation.ensemble, config.training.iterations_per_epoch = 1, 3
    for _ in range(2):  # it validates again when it goes on, and stops as before
        with pytest.raises(FloatingPointError, match="not finite at step 9; .* step 6"):
            train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        assert (saved.steps, saved.best) == ([3, 6, 9], [(3, 0.9)])


def test_a_run_that_is_to_end_where_it_was_interrupted_is_validated(
    tmp_path, monkeypatch
):
    def built(config):
        experiment = build(config)

        def update(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return experiment.update(*arguments)

        return experiment._replace(update=update)

    config = tiny.get_config()
    with monkeypatch.context() as monkeypatch:
        monkeypatch.setattr(training, "build", built)
        assert not train(config, tmp_path / "run")
    config.training.iterations = 3
    with pytest.raises(ValueError, match="of step 3 of 12"):
        check_complete(tmp_path / "run")
    assert train(config, tmp_path / "run")
    assert [step for step, _ in ranking(tmp_path / "run")] == [3]
    check_complete(tmp_path / "run")


def test_another_config_is_refused(uninterrupted):
    config = tiny.get_config()
    config.learner.steps = 3
    with pytest.raises(ValueError, match="learner.steps = 2, not 3"):
        train(config, uninterrupted)


def test_run_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"--run \(.*run\) must be a folder"):
        with alone(tmp_path / "run"):
            pass


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    with held(lock_of(tmp_path / "run")), launch(tmp_path / "run") as process:
        _, message = process.communicate(timeout=300)
    assert process.returncode == 2 and "run) is in use by another process" in message
    assert not (tmp_path / "run").exists()


def test_help_names_the_options():
    done = subprocess.run(
        [*TRAIN, f"--config={CONFIG}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--config: the experiment" in done.stdout
    assert "--run: the run directory" in done.stdout


def test_methods_are_compared_on_the_same_tasks(tmp_path, monkeypatch, capsys):
    config = tiny.get_config()
    config.training.iterations = config.training.iterations_per_epoch = 3
    monkeypatch.setattr(compare.launch, "config", lambda: config)
    monkeypatch.setattr(compare.flags, "FLAGS", SimpleNamespace(run=str(tmp_path)))
    compare.main()
    first = capsys.readouterr().out
    evaluate(tmp_path / "maml", tasks=2)
    compare.main()
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("command", [train, lambda config, run: evaluate(run, "val")])
def test_another_data_set_at_the_same_place_is_refused(tmp_path, command):
    config = on_random_numbers(tmp_path / "bank", {})
    config.training.iterations = config.training.iterations_per_epoch = 3
    assert train(config, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_text()
    on_random_numbers(tmp_path / "bank", {"train": (4, 3)}, overwrite=True)
    with pytest.raises(
        ValueError, match="run was trained on: classes of 'train' 3 then, 4"
    ):
        command(config, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_every_epoch_is_kept_if_asked_until_it_is_not(tmp_path):
    config = tiny.get_config()
    config.training.iterations_per_epoch, config.evaluation.ensemble = 3, 1
    config.training.iterations, config.training.keep_every = 9, 1
    assert train(config, tmp_path / "run")
    config.training.iterations, config.training.keep_every = 12, 0
    assert train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        assert saved.steps == [3, 6, 9, 12]


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(ValueError, match="no run.json"):
        train(tiny.get_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


ENOUGH = {"train": (3, 3), "val": (3, 3), "test": (3, 3)}  # for 3 ways, 1 + 2 images


def on_random_numbers(
    bank: Path,
    sizes: dict[str, tuple[int, int]],
    width: int = 28,
    *,
    overwrite: bool = False,
):
    """Return the tiny config on a new bank, {split: (classes, images of each)}."""
    config, random = tiny.get_config(), np.random.default_rng(0)
    config.data.bank = str(bank)
    provenance = {"source": "random numbers"}
    with write_bank(bank, provenance, overwrite=overwrite) as add:
        for split, (classes, images) in (ENOUGH | sizes).items():
            for i in range(classes):
                pixels = random.integers(0, 256, (images, 28, width, 1), np.uint8)
                add(f"{split} {i}", split, pixels)
    return config


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val": (2, 3)}, r"`ways` \(3\) must be at most 2, .* of split 'val'"),
        ({"test": (2, 3)}, r"`ways` \(3\) must be at most 2, .* of split 'test'"),
        ({"val": (3, 2)}, "of split 'val' has 2 images, an episode needs 3"),
        ({"test": (3, 1)}, "of split 'test' has 1 images, an episode needs 3"),
        ({"val": (0, 0)}, r"'val' of at least `data.ways` \(3\).* has 3 classes"),
        ({"train": (0, 0)}, r"`split` \('train'\) must be one of val, test"),
    ],
)
def test_data_set_with_a_split_too_small_is_refused(tmp_path, sizes, message):
    config = on_random_numbers(tmp_path / "bank", sizes)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("width", "data", "message"),
    [
        (
            28,
            {"mean": (0.5,) * 3, "std": (1.0,) * 3},
            r"`data.mean` and `data.std` \(3 numbers",
        ),
        (27, {"augment": ("rotate_classes",)}, "needs square images, not 28 x 27"),
    ],
)
def test_images_that_no_step_could_take_leave_no_run(tmp_path, width, data, message):
    config = on_random_numbers(tmp_path / "bank", {}, width)
    config.data.update(data)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_comparison_without_a_test_split_is_refused_before_training(
    tmp_path, monkeypatch
):
    config = on_random_numbers(tmp_path / "bank", {"test": (0, 0)})
    monkeypatch.setattr(compare.launch, "config", lambda: config)
    with pytest.raises(ValueError, match="hold a split 'test' .*, to compare on; it"):
        compare.main()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["--config=tests/tiny.py", "--config.learner.stepz=3"],
            "--config.learner.stepz: this config has no key 'stepz'",
        ),
        (["--config=tests/tiny.py", "--config.model=conv4"], "model=conv4: a section"),
        (["--config=tests/tiny.py", "--config.learner.steps=many"], "many"),
        (["--config=tests/tiny.py:l3f"], "train.py: variant 'l3f'"),
        (["--config=tests/tiny.py:maml", "--config.transform.scope=x"], "key 'scope'"),
        ([], "--config"),
        (["--config=tests/tiny.py", "--config.data.bank=nowhere"], "nowhere"),
        (["--config=tests/tiny.py", "--config.data.shots=99"], "99"),
        (["--config=tests/tiny.py", "extra"], "extra"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(tmp_path, arguments, named):
    command = [sys.executable, "experiments/train.py", f"--run={tmp_path}/run"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert named in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
