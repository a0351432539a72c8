"""Reports of runs: what the page holds, that it needs nothing else, and bad input."""

import copy
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from configs.regression import sinusoid
from configs.rl import navigation
from experiments import diagnostics, panels, report, setting
from experiments.identity import check_comparable
from experiments.judging import evaluate
from experiments.runs import Run, gammas, judge, last_state, open_runs
from experiments.samples import hits, samples
from experiments.scores import Evaluation
from experiments.train import train
from l2f_jax.data.bank import embedded_icons
from l2f_jax.problems.saved import read_record
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam
ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


def trained(run: Path, config) -> Path:
    config.training.update({"iterations": 6, "iterations_per_epoch": 3})
    assert train(config, run)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A run of two epochs, and the same as if it had been stopped after one."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.get_config()
    config.optimiser.lr = config.optimiser.min_lr = (
        0.1  # so that an epoch changes scores
    )
    whole = trained(folder / "whole", config)
    half = Path(shutil.copytree(whole, folder / "half"))
    shutil.rmtree(half / "checkpoints" / "6")
    return [whole, half]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory) -> Path:
    """The folder of a report of both."""
    folder = tmp_path_factory.mktemp("report")
    written(runs, folder / "page.html")
    return folder


def written(runs, out: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.launch, "set_up", lambda *_: None)
        patch.setattr("sys.argv", ["report.py", *map(str, runs), f"--out={out}"])
        report.main()
    return out


@pytest.fixture(scope="module")
def page(folder) -> ElementTree.Element:
    """The page, which a strict parser reads."""
    return ElementTree.fromstring((folder / "page.html").read_text("utf-8"))


def tables(page: ElementTree.Element) -> list[list[list[str]]]:
    """Return the cells of every table."""
    return [
        [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in page.iter("table")
    ]


def table(page: ElementTree.Element, *head: str) -> list[list[str]]:
    (found,) = [t[1:] for t in tables(page) if t[0][: len(head)] == list(head)]
    return found


def evaluation(run: Path) -> dict:
    return json.loads((run / "evaluation_test.json").read_text("utf-8"))


def opened(runs: list[Path]) -> list[Run]:
    return open_runs(runs, complete=False)


def scores(runs: list[Path]) -> list[Evaluation]:
    return [*judge(opened(runs)).values()]


def percent(mean: float, half: float) -> str:
    return f"{100 * mean:.2f} ±\N{NO-BREAK SPACE}{100 * half:.2f}".replace("-", "−")


def test_page_has_its_parts(page):
    assert [h.text for h in page.iter("h2")] == [
        "Runs",
        "Test scores",
        "Curves",
        "Gammas",
        "Conflict",
        "Sample episodes",
        "Environment",
    ]
    svg = "{http://www.w3.org/2000/svg}svg"
    assert [figure[0].tag for figure in page.iter("figure")] == [svg] * 5
    assert "transductive" in "".join(page.itertext())


def test_page_needs_nothing_else(folder, page):
    """No address anywhere but those that name SVG's vocabulary."""
    text = (folder / "page.html").read_text("utf-8")
    names = r'xmlns(:xlink)?="http://www\.w3\.org/[0-9a-z/]*"'
    assert not re.search(r"https?:|file:|//", re.sub(names, "", strip_data(text)))
    assert not list(page.iter("script")) and "@import" not in text
    for element in page.iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.startswith(("data:", "#")), value


def strip_data(text: str) -> str:
    return re.sub(r"data:image/png;base64,[\sA-Za-z0-9+/=]*", "", text)


def test_references_inside_the_page_are_unambiguous(folder):
    text = (folder / "page.html").read_text("utf-8")
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len({*ids})
    assert {*re.findall(r'(?:url\(#|href="#)([^")]*)', text)} <= {*ids}


def test_scores_are_those_of_the_evaluations(runs, page):
    shown = table(page, "run", "checkpoint")
    expected = [
        [run.name, name, percent(last["mean"], last["half"])]
        for run in runs
        for name, found in evaluation(run)["results"].items()
        for last in found["after"][-1:]
    ]
    assert len(expected) == 5  # the half has no ensemble
    assert [[r[0], r[1].partition(" (")[0], r[3]] for r in shown] == expected
    steps = table(page, "run", "0", "1", "2")
    for run, row in zip(runs, steps, strict=True):
        after = evaluation(run)["results"]["last"]["after"]
        assert row == [run.name, *(percent(a["mean"], a["half"]) for a in after)]


def test_differences_are_paired_with_the_first_run(runs, page):
    a, b = (evaluation(run)["results"]["last"]["tasks"] for run in runs)
    gap = np.subtract(b, a)
    assert gap.any()
    expected = percent(gap.mean(), 1.96 * gap.std(ddof=1) / len(gap) ** 0.5)
    rows = [r for r in table(page, "run", "checkpoint") if r[1].startswith("last")]
    assert [row[4] for row in rows] == ["", expected]


def test_run_that_was_stopped_says_so(page):
    rows = table(page, "run", "directory")
    assert [row[2] for row in rows] == ["6 of 6", "3 of 6"]
    assert "all settings in common" in "".join(page.itertext())


def test_settings_that_differ_stand_before_the_whole(runs):
    (a,) = opened(runs[:1])
    record = copy.deepcopy(a.record)
    record["config"]["transform"] = {"name": "identity"}
    record["config"]["seed"] = 7
    _, differing, whole = setting.settings([a, a._replace(name="b", record=record)])
    assert differing.head == ["setting", "whole", "b"]
    assert differing.rows[:3] == [
        ["seed", "0", "7"],
        ["transform.name", "attenuate", "identity"],
        ["transform.affine", "false", "–"],
    ]
    assert json.loads(whole.text) == a.config


def test_markdown_says_the_same(folder, page):
    text = (folder / "page.md").read_text("utf-8")
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line[:1] == "|"]
    shown = [
        [c.replace("\N{NO-BREAK SPACE}", " ") for c in r]
        for t in tables(page)
        for r in t
    ]
    assert [row for row in rows if not row[0].startswith("---")] == shown
    pictures = re.findall(r"^!\[.*\]\[(.*)\]$", text, re.M)
    assert len(pictures) == 5
    assert re.findall(r"^\[(.*)\]: data:image/png;base64,\S+$", text, re.M) == pictures


@pytest.mark.usefixtures("folder")
def test_sample_episodes_are_the_tested_ones(runs):
    found = samples(opened(runs), "test", report.EPISODES)
    for run in runs:
        accuracies = evaluation(run)["results"]["last"]["tasks"][: report.EPISODES]
        labels = [sample.predicted[run.name] for sample in found]
        assert [hits(x) / x.size for x in labels] == pytest.approx(accuracies, abs=1e-6)


def test_sample_episodes_show_the_images_that_were_labelled(runs):
    (run,) = opened(runs[:1])
    state, bank = last_state(run), embedded_icons()
    episodes = run.experiment.measure(
        state.meta, state.stats, "test", report.EPISODES, lambda m, s, episode: episode
    )
    mean, std = bank.provenance["mean"], bank.provenance["std"]
    shown = samples([run], "test", report.EPISODES)
    for i, sample in enumerate(shown):
        assert sample.images.shape == (3, 1 + 2, 28, 28, 1)
        support, query = sample.images[:, :1], sample.images[:, 1:]
        for batch, images in zip(episodes, (support, query), strict=True):
            raw = 255 * (batch.inputs[i] * std + mean)
            np.testing.assert_allclose(raw.reshape(images.shape), images, atol=1e-2)
        for name, images in zip(sample.classes, sample.images, strict=True):
            row = bank.classes.index(name)
            own = bank.images[20 * row : 20 * (row + 1)]  # drawings of an icon
            assert all((own == image).all((1, 2, 3)).any() for image in images)


def test_gammas_are_of_each_judged_task_and_tensor(runs, page):
    (run,) = opened(runs[:1])
    found = gammas(run, 6)
    assert {len(values) for values in found.values()} == {6}
    shown = table(page, "mean (least .. most)", run.name)
    assert [row[0] for row in shown] == sorted(found)
    means = [float(row[1].partition(" ")[0]) for row in shown]
    assert means == pytest.approx([found[row[0]].mean() for row in shown], abs=6e-4)


def test_conflict_is_that_of_figure_3_at_the_last_checkpoint(runs, page):
    shown = table(page, "tensor", "whole")
    (run,) = opened(runs[:1])
    n = panels.conflicts(run, diagnostics.CONFLICTING)
    expected = [*(values[-1] for values in n["layers"].values()), np.mean(n["by_task"])]
    assert [row[0] for row in shown] == [*n["layers"], "all of theta"]
    assert [float(row[1]) for row in shown] == pytest.approx(expected, abs=6e-4)


def test_gammas_of_runs_with_other_tensors_leave_gaps():
    found = {"a": {"w": np.array([0.0, 0.25, 0.5])}, "b": {"v": np.ones((3, 2))}}
    picture, shown = diagnostics.attenuation(found, "test")
    assert shown.rows == [
        ["w", "0.250 (0.000 .. 0.500)", ""],
        ["v", "", "1.000 (1.000 .. 1.000)"],
    ]
    assert ">w<" in picture.svg and ">v<" in picture.svg


@pytest.mark.usefixtures("folder")  # whose report has them judged
def test_recorded_scores_are_read_until_they_are_of_an_older_checkpoint(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    content = evaluation(run)
    content["device"] = "another machine"
    (run / "evaluation_test.json").write_text(json.dumps(content))
    (found,) = scores([run])
    assert found.made["device"] == "another machine"
    assert found.protocol == content["protocol"]
    for name, recorded in evaluation(runs[0])["results"].items():
        curve = [value._asdict() for value in found.curve(name)]
        assert curve == recorded["after"]
        assert found.checkpoints[name] == recorded["steps"]
    content["results"]["last"]["steps"] = [3]
    (run / "evaluation_test.json").write_text(json.dumps(content))
    assert scores([run])[0].made["device"] != "another machine"
    assert evaluation(run)["results"] == evaluation(runs[0])["results"]


@pytest.mark.usefixtures("folder")  # whose report has them judged
def test_scores_of_another_evaluation_are_not_taken_for_these(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    content = evaluation(run)
    content["results"]["last"]["after"][-1]["mean"] = 2.0
    (run / "evaluation_test.json").write_text(json.dumps(content))
    scores([run])
    assert evaluation(run)["results"] == evaluation(runs[0])["results"]


def last_scores(run: Path) -> np.ndarray:
    with np.load(run / "evaluation_test.npz") as file:
        return file["last"]


def waves():
    config = sinusoid.get_config("maml,k5")
    config.training.tasks = 2
    return config


def walks():
    config = navigation.get_config("l2f")
    config.env.horizon, config.sampling.trajectories, config.training.tasks = 3, 2, 2
    return config


@pytest.mark.parametrize(
    "config_of", [waves, pytest.param(walks, marks=pytest.mark.slow)]
)
def test_report_of_another_problem_has_the_parts_that_apply(tmp_path, config_of):
    config = config_of()
    config.model.hidden = (4,)
    config.evaluation.update({"validation_tasks": 3, "test_tasks": 5})
    run = trained(tmp_path / "run", config)
    written([run], tmp_path / "page.html")
    page = ElementTree.fromstring((tmp_path / "page.html").read_text("utf-8"))
    gammas = ["Gammas"] if config_of is walks else []
    parts = ["Runs", "Test scores", "Curves", *gammas, "Sample tasks", "Environment"]
    assert [h.text for h in page.iter("h2")] == parts
    assert "not chosen ones" in [f.text for f in page.iter("figcaption")][-1]
    content = evaluation(run)
    at = content["inner_steps"].index(config.learner.steps)
    last = content["results"]["last"]["after"][at]
    shown = f"{last['mean']:.4f} ±\N{NO-BREAK SPACE}{last['half']:.4f}"
    if content["score"] == "mse":
        median = np.median(last_scores(run)[:, :, at])
        shown += f", median {median:.4f}, 0.00 % diverged"
    assert table(page, "run", "checkpoint")[0][3] == shown.replace("-", "−")
    text = "".join(page.itertext())
    assert ("A task's score is the mean of 5 seeds." in text) == (config_of is waves)
    assert ("Start: the transformed policy before" in text) == (config_of is walks)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("config.data.shots", 5, "`data.shots` is 1 in the one, 5 in the other"),
        ("config.problem", "regression", "`problem` is 'classification' in the one"),
        ("data.provenance.source", "photos", "`data.provenance.source` is 'icons"),
        ("data.images", 7, "`data.images` is 6740 in the one, 7 in the other"),
        ("config.evaluation.seed", 1, "`evaluation.seed` is 0 in the one, 1 in"),
    ],
)
def test_runs_with_other_tasks_are_refused(runs, key, value, named):
    a = read_record(runs[0])
    b = copy.deepcopy(a)
    *path, last = key.split(".")
    section = b
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(
        ValueError, match=f"a and b are not judged on the same tasks: {named}"
    ):
        check_comparable({Path("a"): a, Path("b"): b})


def test_evaluations_on_other_numbers_of_tasks_are_refused(runs, folder, tmp_path):
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    evaluate(run, tasks=5)
    with pytest.raises(ValueError, match="judged on 6 tasks, .*run on 5; evaluate.py"):
        scores([runs[0], run])


def foreign(run: Path) -> None:
    (run / "run.json").write_text('{"name": "something else"}')


def torn(run: Path) -> None:
    (run / "run.json").write_text('{"config": ')


def without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def killed_while_saving(run: Path) -> None:
    without_checkpoints(run)
    (run / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)


def damaged(run: Path) -> None:
    for record in (run / "checkpoints").glob("*/record/metadata"):
        record.write_text("")


def scores_of_something_else(run: Path) -> None:
    np.savez(run / "evaluation_test.npz", last=np.zeros((1, 5, 2)))
    (run / "evaluation_test.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (shutil.rmtree, "run is not a run directory: it has no run.json"),
        (foreign, "run.json is not the record of a run"),
        (torn, "run.json is not the record of a run"),
        (without_checkpoints, "run has no complete checkpoint yet"),
        (killed_while_saving, "run has no complete checkpoint yet"),
        (damaged, "the record in '.*run/checkpoints/[0-9]+' cannot be read"),
        (scores_of_something_else, "evaluation_test.json is not what evaluate.py"),
    ],
)
def test_directory_that_is_no_trained_run_is_refused(runs, tmp_path, spoil, named):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    spoil(run)
    with pytest.raises(ValueError, match=named):
        written([runs[1], run], tmp_path / "page.html")
    assert not list(tmp_path.glob("page.*"))


def test_run_given_twice_is_refused(runs):
    with pytest.raises(ValueError, match="given twice"):
        open_runs([runs[0], runs[0]])


def test_mistake_on_the_command_line_is_one_line(tmp_path):
    program = [sys.executable, "experiments/report.py", "nowhere"]
    done = subprocess.run(
        [*program, f"--out={tmp_path}/page.html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "nowhere is not a run" in done.stderr and done.stderr.count("\n") == 1


# Has a fault of each kind, to prove that one in the page would be seen.
FRAME = """<!DOCTYPE html><title>frame</title><link rel="icon" href="data:,">
<script>console.error("a fault of the frame")</script>
<img src="http://elsewhere.invalid/a.png"><img src="missing.png">
<iframe src="page.html"></iframe>"""
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--no-proxy-server --enable-logging=stderr"
).split()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_browser_finds_no_fault_and_page_fetches_nothing(folder, tmp_path):
    site = Path(shutil.copytree(folder, tmp_path / "site"))
    (site / "frame.html").write_text(FRAME)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        messages = browse(f"{origin}/frame.html", tmp_path)
        server.shutdown()
    console = re.findall(r"CONSOLE.*source: (\S+)", messages)
    assert f"{origin}/frame.html" in console, messages
    assert f"{origin}/page.html" not in console, messages
    assert requested(tmp_path / "log.json", origin) == {
        f"{origin}/{name}" for name in ("frame.html", "page.html", "missing.png")
    } | {"http://elsewhere.invalid/a.png"}


def chromium(folder: Path, *options: str) -> None:
    """Run Chromium on the page of a folder."""
    address = (folder / "page.html").as_uri()
    profile = f"--user-data-dir={folder}/profile"
    common = [CHROMIUM, *OPTIONS, "--hide-scrollbars", "--window-size=900,900", profile]
    done = subprocess.run(
        [*common, *options, address], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def luminance(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image.convert("L"), float)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_page_is_readable_light_and_dark(folder, tmp_path):
    site = Path(shutil.copytree(folder, tmp_path / "site"))
    for scheme, name in enumerate(("dark", "light")):
        shot = tmp_path / f"{name}.png"
        chosen = f"--blink-settings=preferredColorScheme={scheme}"
        chromium(site, chosen, f"--screenshot={shot}")
        shades = luminance(shot)
        ground = np.median(shades)
        assert ground > 240 if name == "light" else ground < 50
        # Words are far from their ground: more than a thousandth of all dots.
        assert (np.abs(shades - ground) > 150).mean() > 1e-3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.skipif(not shutil.which("pdftoppm"), reason="no pdftoppm is installed")
def test_paper_stays_white_whatever_the_screen_is(folder, tmp_path):
    dark = "--blink-settings=preferredColorScheme=0"
    site = Path(shutil.copytree(folder, tmp_path / "site"))
    chromium(site, dark, f"--print-to-pdf={tmp_path}/page.pdf")
    draw = ["pdftoppm", "-r", "50", "-png", "page.pdf", "page"]
    subprocess.run(draw, cwd=tmp_path, check=True)
    pages = sorted(tmp_path.glob("page-*.png"))
    assert len(pages) > 1
    for page in pages:
        assert np.median(luminance(page)) > 240 and luminance(page).min() < 100


def browse(url: str, folder: Path) -> str:
    """Open an address in Chromium, its network log in a folder; return what it says."""
    places = f"--user-data-dir={folder}/profile", f"--log-net-log={folder}/log.json"
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, *places, url], capture_output=True, text=True, timeout=120
    )
    assert "<iframe" in done.stdout, done.stderr
    return done.stderr


def requested(log: Path, origin: str) -> set[str]:
    """Return what the pages of an origin asked for; the browser's own is left out."""
    content = json.loads(log.read_text("utf-8"))
    start = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [e.get("params", {}) for e in content["events"] if e["type"] == start]
    return {
        job["url"]
        for job in jobs
        if "url" in job  # the end of a job is an event of the same type without
        and (job.get("initiator") == origin or job["url"].startswith(origin))
    }
