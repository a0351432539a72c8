"""What every test runs under: a CPU, no silent promotion, programs compiled fast."""

import os
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).parent.parent / ".jax_cache"
NEW_FUSIONS = "xla_cpu_use_fusion_emitters"  # XLA's option


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "mixed_dtypes: allow them, as Optax's Adam (float ** integer) needs"
    )
    # Of two test runs at once, one may read an entry that the other is writing. It
    # compiles then as if there were none.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error reading persistent compilation cache"
    )
    # An accelerator is for who asks for it, by this variable: its memory would not do
    # for as many processes as there are cores.
    platforms = os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", platforms)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Most of a test's time is compilation, and tiny programs gain nothing from the
    # optimisations that take half of it. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has them.
    # Programs that a test starts compile alike, as their numbers are compared.
    chosen = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", chosen == "1")
    started = config.getoption("numprocesses", None)
    if started and not hasattr(config, "workerinput") and _has_older_fusions():
        # For the processes that run the tests, if any: this one has read the variable.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --{NEW_FUSIONS}=false".strip()


def _has_older_fusions() -> bool:
    """Say whether XLA can fuse as it used to, which takes a third less to compile.

    An option that it does not know, in its variable, would end the process.
    """
    program = jax.jit(lambda x: x).lower(0.0)
    try:
        program.compile(compiler_options={NEW_FUSIONS: False})
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Forget compiled programs after each module; they are gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def dtype_promotion(request):
    """Refuse to mix dtypes, except in modules marked `mixed_dtypes`."""
    mixed = request.node.get_closest_marker("mixed_dtypes")
    with jax.numpy_dtype_promotion("standard" if mixed else "strict"):
        yield


@pytest.fixture
def x64():
    """Run a test in float64; for a module, `pytestmark = usefixtures("x64")`."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
