"""Pictures of the half-cheetah, drawn by MuJoCo in a process of its own.

MuJoCo decides how to draw when it is imported: without a display by EGL, where there is
that; else it cannot even be imported so. Run as a module, this file is that process.
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


def frames(positions: np.ndarray) -> np.ndarray | None:
    """Return a picture of each position [n, 9] (m, rad), see `physics.State`.

    Returns:
      [n, *SIZE, 3] uint8, or None where MuJoCo cannot draw.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(positions.tolist()).encode(),
        env={"MUJOCO_GL": "egl", **os.environ},
        capture_output=True,
    )
    return np.load(io.BytesIO(done.stdout)) if done.returncode == 0 else None


def main() -> None:
    mujoco = importlib.import_module("mujoco")
    model = body(mujoco)
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()  # from the side, and no further than it fits in
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    camera.distance, camera.azimuth, camera.elevation = 1.8, 90, -12
    pictures = []
    with mujoco.Renderer(model, *SIZE) as renderer:
        for position in json.load(sys.stdin):
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render().copy())
    np.save(sys.stdout.buffer, np.stack(pictures))


if __name__ == "__main__":
    main()
