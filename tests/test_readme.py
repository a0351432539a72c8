"""What the documents tell a reader to type works: commands, snippets, links."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.train import train
from l2f_jax.data.bank import embedded_icons
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = [ROOT / "README.md", *ROOT.glob("configs/**/*.py")]
SOURCES += ROOT.glob("experiments/*.py")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every command that runs a program of experiments/.

    In README.md and in the docstrings that modules begin with.
    """
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        joined = re.sub(r"\\\n\s*", " ", text)
        command = re.compile(r"python (experiments/\w+\.py .*?)(?:`|#|$)", re.M)
        for line in command.findall(joined):
            found.append(shlex.split(line))
    return found


def declared(path: Path) -> set[str]:
    """Return the options that a module gives to argparse or absl, as it is written."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(args=[ast.Constant(str(name)), *_]) if name[:2] == "--":
                found.add(name[2:])
            case ast.Call(ast.Attribute(attr=function), [ast.Constant(name), *_]):
                if function.startswith("DEFINE_"):
                    found.add(name)
    return found


def test_every_command_names_a_program_and_options_that_it_has():
    assert len(commands()) > 20
    checked = 0
    for program, *words in commands():
        path = ROOT / program
        options = declared(path)
        if "launch.config_flag()" in path.read_text(encoding="utf-8"):
            options |= declared(ROOT / "experiments/launch.py")
        for word in words:
            if word.startswith("--"):
                assert word[2:].split("=")[0].split(".")[0] in options, (program, word)
                checked += 1
    assert checked > 20


def test_every_config_of_a_command_has_the_variants_and_keys_that_it_names():
    checked = set()
    for words in commands():
        chosen = [w[9:] for w in words if re.match(r"--config=\w", w)]
        for choice in chosen:
            name, _, variants = choice.partition(":")
            spec = importlib.util.spec_from_file_location("chosen", ROOT / name)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(*([variants] if variants else []))
            for word in words:
                if word.startswith("--config."):
                    key = word.removeprefix("--config.").split("=")[0]
                    assert key in {k for k, _ in flat(config.to_dict())}, (choice, key)
            checked.add(choice)
    assert len(checked) > 10


def flat(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert "docs/comparison.png" in local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_snippets_run(tmp_path, monkeypatch):
    labelling, library = snippets("python")
    names: dict = {}
    exec(library, names)
    assert names["logits"].shape == (5, 5) and jnp.isfinite(names["logits"]).all()

    monkeypatch.chdir(tmp_path)
    config = tiny.get_config("l2f")
    config.training.iterations = config.training.iterations_per_epoch = 3
    assert train(config, Path("runs/icons/l2f"))
    icons = embedded_icons().only("test").images
    for i, image in enumerate(icons[:60:20].squeeze(-1)):
        folder = Path("my_classes") / f"class {i}"
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "one.png")
    for name, image in zip("ab", icons[1:42:40].squeeze(-1), strict=True):
        Image.fromarray(image).save(f"{name}.png")
    exec(labelling, names)
    np.testing.assert_allclose(names["probabilities"].sum(1), np.ones(2), rtol=1e-5)
    assert names["probabilities"].shape == (2, 3)
