"""Checkpoints: exact, complete after SIGKILL, best kept, two processes, clear errors.

Run as a script, this file is the process that gets killed, or one of the two.
"""

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2f_jax import storage
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.storage import Unreadable


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    key: Any
    extra: Any


def filled(value: int) -> State:
    """A training state with all kinds of leaves, every number set by `value`."""
    params = {
        "conv_0/kernel": jnp.full((2, 3), value / 3, jnp.float32),
        "half": jnp.full((4,), value, jnp.bfloat16),
    }
    extra = {
        "float64": np.full((5,), value / 3),
        "scalar": np.float64(value / 7),
        "flags": jnp.array([True, value % 2 == 0]),
        "raw_key": jax.random.key_data(jax.random.key(value)),
        "int64": np.array([value, -value]),
        "empty": (),
    }
    opt_state = optax.adam(1e-3).init(params)
    return State(jnp.int32(value), params, opt_state, jax.random.key(value), extra)


def assert_same(got: State, want: State) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def folders(directory) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def save_ranked(checkpoints, step, state, score, metadata=None) -> None:
    checkpoints.save(step, state, metadata)
    checkpoints.rank(score)


@pytest.fixture
def two_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save_ranked(checkpoints, 1, filled(1), 0.5, {"epoch": 1})
        checkpoints.save(2, filled(2), {"epoch": 2})
    return tmp_path


def test_every_leaf_comes_back_bit_for_bit(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        restored = checkpoints.restore_latest(filled(0))
    assert restored is not None and restored[1] == {"epoch": 2}
    assert_same(restored[0], filled(2))


def test_abstract_like_restores_arrays_of_this_machine(two_saved):
    like = jax.eval_shape(lambda: filled(0).params)
    like = filled(0)._replace(params=like)
    with Checkpoints(two_saved) as checkpoints:
        state, metadata = checkpoints.restore_best(0, like)
    assert metadata == {"epoch": 1}
    assert_same(state, filled(1))


def test_fresh_directory_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(filled(0)) is None
        assert checkpoints.latest is None and checkpoints.best == []


def test_state_may_be_overwritten_while_it_is_being_saved(tmp_path):
    state = {"x": np.ones((256, 256))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state["x"][:] = 0.0
        restored = checkpoints.restore_latest(state)
    assert restored is not None and restored[0]["x"].min() == 1.0


def test_ranking_never_deletes_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep_best=2) as checkpoints:
        for step, score in enumerate([0.3, 0.9, 0.5, 0.4], start=1):
            save_ranked(checkpoints, step, {"x": np.float64(step)}, score)
    assert folders(tmp_path) == ["2", "3", "4"]
    with Checkpoints(tmp_path, keep_best=2) as checkpoints:
        assert checkpoints.latest == 4
        assert checkpoints.best == [(2, 0.9), (3, 0.5)]
        assert checkpoints.restore_best(1, {"x": np.float64(0)})[0]["x"] == 3.0


def test_regular_steps_are_kept_besides_the_best(tmp_path):
    options = {"keep_best": 1, "keep_every": 3}
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step in (1, 2, 3, 4):
            save_ranked(checkpoints, step, {"x": np.float64(step)}, -step)
    with Checkpoints(tmp_path, **options) as checkpoints:  # goes on
        for step in (5, 6, 7):
            save_ranked(checkpoints, step, {"x": np.float64(step)}, -step)
    assert folders(tmp_path) == ["1", "3", "6", "7"]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [1, 3, 6, 7]
        assert checkpoints.restore(3, {"x": np.float64(0)})[0]["x"] == 3.0
        with pytest.raises(ValueError, match=r"`step` \(4\) must be one of \[1, 3, 6,"):
            checkpoints.restore(4, {"x": np.float64(0)})


def test_tables_of_older_programs_are_read(tmp_path):
    with Checkpoints(tmp_path, keep_every=1) as checkpoints:
        checkpoints.save(1, {"x": np.float64(1)})
        checkpoints.save(2, {"x": np.float64(2)})
    record = tmp_path / "2" / "record" / "metadata"
    table = json.loads(record.read_text())
    assert [table.pop(name) for name in ("regular", "previous", "ranked")] == [
        [1, 2],
        [1],
        False,
    ]
    record.write_text(json.dumps(table | {"best": [[2, 0.5]]}))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [2]
        assert checkpoints.ranked and checkpoints.best == [(2, 0.5)]


def test_negative_numbers_of_kept_steps_are_refused(tmp_path):
    for name in ("keep_best", "keep_every"):
        with pytest.raises(ValueError, match=rf"`{name}` \(-1\) must be >= 0"):
            Checkpoints(tmp_path, **{name: -1})


def test_of_equal_scores_the_later_step_wins(tmp_path):
    with Checkpoints(tmp_path, keep_best=2) as checkpoints:
        for step in (1, 2, 3):
            save_ranked(checkpoints, step, {"x": np.float64(step)}, 0.5)
        assert checkpoints.best == [(3, 0.5), (2, 0.5)]


def test_unscored_steps_replace_each_other(tmp_path):
    with Checkpoints(tmp_path, keep_best=0) as checkpoints:
        for step in (1, 2, 3):
            save_ranked(checkpoints, step, {"x": np.float64(step)}, float(step))
        assert checkpoints.best == []
    assert folders(tmp_path) == ["3"]


def test_saving_the_newest_step_again_does_nothing(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        checkpoints.save(2, filled(7))
        restored = checkpoints.restore_latest(filled(0))
    assert restored is not None
    assert_same(restored[0], filled(2))


def test_leftovers_of_a_killed_process_are_removed(two_saved):
    (two_saved / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    # Step 0 was being deleted: not in the table, so neither best nor newest.
    (two_saved / "0" / "record").mkdir(parents=True)
    with Checkpoints(two_saved) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (2, [(1, 0.5)])
        save_ranked(checkpoints, 3, filled(3), 0.25)
    assert folders(two_saved) == ["1", "3"]


def test_best_entry_without_its_folder_is_not_listed(two_saved):
    (two_saved / "1").rename(two_saved.parent / "moved")
    with Checkpoints(two_saved) as checkpoints:
        assert checkpoints.best == []
        with pytest.raises(ValueError, match=r"`rank` \(0\) must be in \[0, 0\)"):
            checkpoints.restore_best(0, filled(0))


def test_read_only_changes_nothing(two_saved):
    (two_saved / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(two_saved, keep_best=0, read_only=True) as checkpoints:
        assert checkpoints.best == [(1, 0.5)]
        assert checkpoints.restore_latest(filled(0)) is not None
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.save(3, filled(3))
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.rank(0.5)
    assert folders(two_saved) == ["1", "2", "3.orbax-checkpoint-tmp"]


def without(state: State, path: str) -> State:
    return state._replace(params={k: x for k, x in state.params.items() if k != path})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(step=np.float32(0)),
            r"2' does not fit: leaf 'step' is int32\[\] there, float32\[\] here$",
        ),
        (
            lambda s: s._replace(key=jax.random.split(s.key)),
            r"leaf 'key' is key<fry>\[\] there, key<fry>\[2\] here$",
        ),
        (
            lambda s: without(s, "half"),
            r"leaf 'params/half' is bfloat16\[4\] there, missing here$",
        ),
        (
            lambda s: s._replace(opt_state=(s.opt_state, jnp.zeros(3))),
            r"leaf 'opt_state/0/0/count' is missing there.*10 other leaves differ",
        ),
    ],
)
def test_state_that_does_not_fit_is_refused_by_leaf(two_saved, change, message):
    with Checkpoints(two_saved) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.restore_latest(change(filled(0)))


def test_a_step_before_the_newest_is_refused(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        with pytest.raises(ValueError, match=r"`step` \(1\) must exceed the newest, 2"):
            checkpoints.save(1, filled(1))


def test_a_step_is_ranked_once_it_is_saved_and_only_once(two_saved, tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.raises(ValueError, match=r"newest step \(None\) awaits no score"):
            checkpoints.rank(0.5)
    with Checkpoints(two_saved) as checkpoints:
        checkpoints.save(3, filled(3))
        with pytest.raises(ValueError, match=r"`score` \(nan\) of step 3 must be fin"):
            checkpoints.rank(float("nan"))
        checkpoints.rank(0.25)
        with pytest.raises(ValueError, match=r"newest step \(3\) awaits no score"):
            checkpoints.rank(0.75)
        assert checkpoints.best == [(1, 0.5), (3, 0.25)]


def test_the_step_before_is_kept_until_the_newest_has_its_score(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        checkpoints.save(3, filled(3))
        assert checkpoints.steps == [1, 2, 3]
    assert folders(two_saved) == ["1", "2", "3"]
    with Checkpoints(two_saved, keep_best=1) as checkpoints:
        assert checkpoints.steps == [1, 2, 3]
        assert checkpoints.restore(2, filled(0)) is not None
        checkpoints.rank(0.75)
        assert checkpoints.steps == [3]
    assert folders(two_saved) == ["3"]


def test_a_step_awaits_its_score_in_the_next_process_too(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        checkpoints.save(3, filled(3))
        assert not checkpoints.ranked
    with Checkpoints(two_saved) as checkpoints:
        assert not checkpoints.ranked and checkpoints.best == [(1, 0.5)]
        checkpoints.rank(0.75)
    with Checkpoints(two_saved, keep_best=1) as checkpoints:
        assert checkpoints.ranked and checkpoints.best == [(3, 0.75)]
        assert checkpoints.restore_best(0, filled(0)) is not None
        checkpoints.save(4, filled(4))
    with Checkpoints(two_saved) as checkpoints:
        assert checkpoints.best == [(3, 0.75)]


def test_metadata_that_json_cannot_hold_leaves_the_tables_alone(two_saved):
    with Checkpoints(two_saved) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(3, filled(3), {"x": object()})
        assert checkpoints.latest == 2 and checkpoints.steps == [1, 2]


def test_wrong_directories_get_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"absent'\) does not exist$"):
        Checkpoints(tmp_path / "absent", read_only=True)
    with pytest.raises(ValueError, match=r"\) holds no checkpoints$"):
        Checkpoints(tmp_path, read_only=True)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no checkpoints but 'notes.txt'$"):
        Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt'\) is a file$"):
        Checkpoints(tmp_path / "notes.txt")


def test_a_step_that_a_running_program_deletes_is_said_to_be_gone(two_saved):
    with Checkpoints(two_saved, read_only=True) as checkpoints:
        step = checkpoints.latest
        (two_saved / str(step)).rename(two_saved.parent / "elsewhere")
        with pytest.raises(ValueError, match=rf"{step}' is gone: the run goes on"):
            checkpoints.restore_latest(filled(0))


def test_a_step_that_is_being_deleted_is_not_called_damaged(two_saved, monkeypatch):
    monkeypatch.setattr(storage, "DELETION_S", 0.3)
    with Checkpoints(two_saved, read_only=True) as checkpoints:
        (two_saved / "1" / "record" / "metadata").unlink()
        end = threading.Timer(0.1, shutil.rmtree, [two_saved / "1"])
        end.start()
        with pytest.raises(ValueError, match="1' is gone: the run goes on"):
            checkpoints.restore_best(0, filled(0))
        end.join()


def test_a_step_that_is_deleted_while_all_are_listed_is_passed_over(
    two_saved, monkeypatch
):
    monkeypatch.setattr(storage, "DELETION_S", 0.0)
    opened, manager = [], storage.ocp.CheckpointManager

    def beside_a_deletion(*arguments, **options):
        opened.append(arguments)
        if len(opened) == 1:
            raise FileNotFoundError(arguments[0] / "1")
        return manager(*arguments, **options)

    monkeypatch.setattr(storage.ocp, "CheckpointManager", beside_a_deletion)
    with Checkpoints(two_saved, read_only=True) as checkpoints:
        assert checkpoints.latest == 2 and len(opened) == 2


@pytest.mark.parametrize("error", [PermissionError("no"), MemoryError("no")])
def test_what_is_no_damage_keeps_its_name(two_saved, monkeypatch, error):
    with Checkpoints(two_saved) as checkpoints:

        def restore(*_, **__):
            raise error

        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(type(error), match="^no$"):
            checkpoints.restore_latest(filled(0))


def test_opening_takes_the_step_that_a_running_program_has_saved_since(
    two_saved, monkeypatch
):
    read = Checkpoints._record

    def after_the_next_save(self, step):
        if step == 2:
            (two_saved / "2").rename(two_saved / "3")
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "_record", after_the_next_save)
    with Checkpoints(two_saved, read_only=True) as checkpoints:
        assert checkpoints.latest == 3
        assert_same(checkpoints.restore_latest(filled(0))[0], filled(2))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("record/metadata", None),
        ("record/metadata", b""),
        ("state/_METADATA", b"{"),
        ("state/manifest.ocdbt", None),
        ("state/d/*", None),
        ("state/d/*", b"{"),
    ],
)
def test_a_damaged_step_is_named_and_the_others_are_there(
    tmp_path, file, content, monkeypatch
):
    monkeypatch.setattr(storage, "DELETION_S", 0.0)
    # One array: those beside a lost one would speak in the tests that follow.
    with Checkpoints(tmp_path) as checkpoints:
        save_ranked(checkpoints, 1, {"x": jnp.full(3, 1.0)}, 0.5)
        checkpoints.save(2, {"x": jnp.full(3, 2.0)})
    (path,) = (tmp_path / "2").glob(file)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    like = {"x": jnp.zeros(3)}
    with warnings.catch_warnings(action="ignore"):
        item = file.split("/")[0]
        expected = rf"the {item} in '.*/2' cannot be read .*; if it is damaged"
        with pytest.raises(Unreadable, match=expected), Checkpoints(tmp_path) as saved:
            saved.restore_latest(like)
        gc.collect()  # what Orbax no longer awaits is said here, not in another test
    shutil.rmtree(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore_latest(like)[0]["x"], 1)


@pytest.mark.parametrize("rest", [b"", b"\xff", b"null", b"5", b"[[2, 0"])
def test_a_table_that_is_lost_is_made_again(two_saved, rest):
    with Checkpoints(two_saved) as checkpoints:
        checkpoints.rank(0.7)
    (two_saved / "2" / "best.json").write_bytes(rest)
    with Checkpoints(two_saved) as checkpoints:
        assert not checkpoints.ranked and checkpoints.best == [(1, 0.5)]
        checkpoints.rank(0.7)
        assert checkpoints.best == [(2, 0.7), (1, 0.5)]


def test_step_of_another_program_is_refused(two_saved):
    (two_saved / "2024").mkdir()
    with pytest.raises(ValueError, match="2024' is not a checkpoint of this program"):
        Checkpoints(two_saved)


def score(step: int) -> float:
    return (7 * step) % 11 / 11


def start(role: str, *arguments) -> subprocess.Popen:
    """Start this file as a script."""
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, __file__, role, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def save_forever(directory: str) -> None:
    with Checkpoints(directory) as checkpoints:
        checkpoints.restore_latest(filled(0))
        first = (checkpoints.latest or 0) + 1
        if not checkpoints.ranked:  # killed between the two calls
            checkpoints.rank(score(first - 1))
        for step in range(first, sys.maxsize):
            save_ranked(checkpoints, step, filled(step), score(step), {"step": step})
            if step == first:
                checkpoints.wait()
                print("started", flush=True)


def test_killed_at_any_moment_the_newest_and_the_best_are_complete(tmp_path):
    delays = random.Random(0)
    newest = 0
    for _ in range(4):
        process = start("save_forever", tmp_path)
        with process:
            assert process.stdout.readline() == "started\n"
            time.sleep(delays.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.latest is not None and checkpoints.latest > newest
            newest = checkpoints.latest
            state, metadata = checkpoints.restore_latest(filled(0))
            assert_same(state, filled(newest))
            assert metadata == {"step": newest}
            last = newest - (not checkpoints.ranked)
            ranked = sorted(((score(s), s) for s in range(1, last + 1)), reverse=True)
            assert checkpoints.best == [(s, a) for a, s in ranked[:3]]
            for rank, (step, _) in enumerate(checkpoints.best):
                assert_same(checkpoints.restore_best(rank, filled(0))[0], filled(step))


def save_together(directory: str, port: str, index: str) -> None:
    """Save twice and restore arrays replicated over two processes of two devices."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = jax.make_mesh((4,), ("tasks",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def state(value):
        tree = {"x": np.full((3,), value, np.float32), "n": np.int32(value)}
        return jax.device_put(tree, everywhere)

    with Checkpoints(directory, keep_best=1) as checkpoints:
        for step in (1, 2, 3):
            save_ranked(checkpoints, step, state(step), -step, {"step": step})
    with Checkpoints(directory, keep_best=1) as checkpoints:
        latest, metadata = checkpoints.restore_latest(state(0))
        best, _ = checkpoints.restore_best(0, state(0))
    assert (int(latest["n"]), metadata, int(best["n"])) == (3, {"step": 3}, 1)
    assert latest["x"].sharding == everywhere
    np.testing.assert_array_equal(latest["x"].addressable_data(1), [3, 3, 3])


def test_two_processes_save_together_and_one_restores(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start("save_together", tmp_path, port, i) for i in range(2)]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert folders(tmp_path) == ["1", "3"]
    like = {
        "x": jax.ShapeDtypeStruct((3,), jnp.float32),
        "n": jax.ShapeDtypeStruct((), jnp.int32),
    }
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(like)
    assert restored is not None and restored[0]["n"] == 3


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
