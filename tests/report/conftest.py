"""Workdirs written by hand: no training is run."""

import json

import numpy as np
import pytest

from medgan_jax.images import image_grid, write_png
from medgan_jax.workdir import Workdir

CONFIG = {"arch": "sngan", "image_size": 16, "num_steps": 400, "sample_every_steps": 100, "num_sample_images": 4,
          "batch_size": 4, "num_epochs": 1, "monitor_every_steps": 100, "evaluate_every_steps": 100,
          "data": {"source": "phantom"}}  # fmt: skip
ALARM = {
    "step": 200, "since": 150, "alarm": "mode_collapse", "title": "Mode collapse", "sentence": "The fakes are alike.",
    "evidence": "diversity 0.01", "remedies": ["raise latent_dim", "lower lr_dis"], "action": "warned",
}  # fmt: skip


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def make(tmp_path):
    """A function that writes a workdir of 400 steps; keyword arguments replace the content of files."""

    def write(name="run", **changes):
        files = Workdir(tmp_path / name)
        files.samples.mkdir(parents=True)
        random = np.random.default_rng(0)
        for step in range(0, 500, 100):
            write_png(files.picture(step), image_grid(random.integers(0, 256, (4, 16, 16, 3), np.uint8)))
        write_png(files.reals, image_grid(random.integers(0, 256, (4, 16, 16, 3), np.uint8)))
        files.config.write_text(json.dumps(CONFIG | changes.get("config", {})))
        labels = changes.get("labels", {"benign": 9, "malignant": 3})
        files.dataset.write_text(json.dumps({"digest": "d1", "num_images": 12, "labels": labels}))
        run = {
            "step": 0,
            "command": "python train.py --workdir=run",
            "version": "0.5.0",
            "jax": "0.10",
            "device": "cpu",
        }
        write_lines(files.runs, [run | changes.get("run", {})])
        steps = range(50, 450, 50)
        write_lines(
            files.metrics,
            [
                {"step": step, "epoch": step // 3, "loss_dis": 1 + step / 1000, "loss_gen": 2.0, "score_real": 0.7,
                 "score_fake_before": 0.2, "score_dis": 0.75, "score_gen": 0.2, "grad_norm_dis": 0.5,
                 "grad_norm_gen": 3.0, "images_per_s": 80.0}
                for step in steps
            ],
        )  # fmt: skip
        write_lines(
            files.evaluations,
            [
                {
                    "step": step,
                    "best_by": "swd",
                    "swd": 90 - step / 10,
                    "kid": 0.25,
                    "swd_floor": 40.5,
                    "kid_floor": 0.125,
                }
                for step in range(100, 500, 100)
            ],
        )
        look = {"norms_gen": [1.5, 2.5], "norms_dis": [1.0, 1.0, 1.0], "diversity": 0.2, "diversity_reals": 0.3,
                "drift": 0.1, "logit_train": 2.5, "logit_held_out": 1.5, "logit_fakes": -2.0}  # fmt: skip
        write_lines(files.health, [{"step": step} | look for step in range(100, 500, 100)])
        write_lines(files.alarms, changes.get("alarms", [ALARM]))
        write_lines(
            files.rollbacks, [{"step": 200, "to_step": 100, "alarm": "mode_collapse", "lr_gen": 2e-4, "lr_dis": 1e-4}]
        )
        return files

    return write
