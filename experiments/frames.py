"""Pictures of the half-cheetah, drawn by MuJoCo in a process of its own.

MuJoCo must be told before it is imported how to draw, and where that is not to be had
its import fails. Run as a script, this file is that process.
"""

import importlib
import io
import json
import os
import subprocess
import sys

import numpy as np

from l2f_jax.envs.physics import body

SIZE = 80, 160  # height and width of a picture, in pixels
CANNOT_DRAW = 3  # an exit status


def frames(positions: np.ndarray) -> np.ndarray | None:
    """Return a picture of each position [n, 9] (m, rad), see `physics.State`.

    On Linux MuJoCo draws by EGL, unless MUJOCO_GL says otherwise; it needs no display.

    Returns:
      [n, *SIZE, 3] uint8, or None where MuJoCo cannot draw.
    """
    headless = {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(positions.tolist()).encode(),
        env={**headless, **os.environ},
        capture_output=True,
    )
    if done.returncode == CANNOT_DRAW:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return np.load(io.BytesIO(done.stdout))


def main() -> None:
    try:
        mujoco = importlib.import_module("mujoco")
        model = body(mujoco)
        renderer = mujoco.Renderer(model, *SIZE)
    except Exception as error:  # of whatever library it is that draws
        print(error, file=sys.stderr)
        sys.exit(CANNOT_DRAW)
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()  # from the side, and no further than it fits in
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    camera.distance, camera.azimuth, camera.elevation = 1.8, 90, -12
    pictures = []
    with renderer:
        for position in json.load(sys.stdin):
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render().copy())
    np.save(sys.stdout.buffer, np.stack(pictures))


if __name__ == "__main__":
    main()
