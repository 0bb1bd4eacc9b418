"""Workdirs written by hand: no training is run."""

import json

import numpy as np
import pytest

from medgan_jax.images import image_grid, write_png
from medgan_jax.report import page
from medgan_jax.workdir import Workdir

CONFIG = {"arch": "sngan", "image_size": 16, "num_steps": 400, "sample_every_steps": 100, "num_sample_images": 4,
          "batch_size": 4, "num_epochs": 1, "monitor_every_steps": 100, "evaluate_every_steps": 100,
          "data": {"source": "phantom"}}  # fmt: skip
ALARM = {
    "step": 200, "since": 150, "alarm": "mode_collapse", "title": "Mode collapse", "sentence": "The fakes are alike.",
    "evidence": "diversity 0.01", "remedies": ["raise latent_dim", "lower lr_dis"], "action": "warned",
}  # fmt: skip
RUN = {"step": 0, "command": "python train.py --workdir=run", "version": "0.5.0", "jax": "0.10", "device": "cpu"}
METRICS = {"loss_gen": 2.0, "score_dis": 0.75, "score_gen": 0.2, "grad_norm_dis": 0.5, "grad_norm_gen": 3.0,
           "images_per_s": 80.0}  # fmt: skip
EVALUATION = {"best_by": "swd", "features": "lite1", "features_description": "weights 2", "kid": 0.25,
              "swd_reals": 40.5, "kid_reals": 0.125}  # fmt: skip
HEALTH = {"norms_gen": [1.5, 2.5], "norms_dis": [1.0, 1.0, 1.0], "diversity": 0.2, "diversity_reals": 0.3,
          "drift": 0.1, "logit_train": 2.5, "logit_held_out": 1.5, "logit_fakes": -2.0}  # fmt: skip
ROLLBACK = {"step": 200, "to_step": 100, "alarm": "mode_collapse", "lr_gen": 2e-4, "lr_dis": 1e-4}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def make(tmp_path):
    """A function that writes a workdir of 400 steps; keyword arguments change the content of files."""

    def write(name="run", *, config=None, labels=None, run=None, alarms=(ALARM,)):
        files = Workdir(tmp_path / name)
        files.samples.mkdir(parents=True)
        random = np.random.default_rng(0)
        for path in (*map(files.picture, range(0, 500, 100)), files.reals):
            write_png(path, image_grid(random.integers(0, 256, (4, 16, 16, 3), np.uint8)))
        files.config.write_text(json.dumps(CONFIG | (config or {})))
        labels = {"benign": 9, "malignant": 3} if labels is None else labels
        files.dataset.write_text(json.dumps({"digest": "d1", "num_images": 12, "labels": labels}))
        steps, hundreds = range(50, 450, 50), range(100, 500, 100)
        write_lines(files.runs, [RUN | (run or {})])
        write_lines(files.metrics, [{"step": s, "epoch": s // 3, "loss_dis": 1 + s / 1000} | METRICS for s in steps])
        write_lines(files.evaluations, [{"step": s, "swd": 90 - s / 10} | EVALUATION for s in hundreds])
        write_lines(files.health, [{"step": s} | HEALTH for s in hundreds])
        write_lines(files.alarms, alarms)
        write_lines(files.rollbacks, [ROLLBACK])
        return files

    return write


@pytest.fixture
def no_plots(monkeypatch):
    """They are tested by themselves, and slow."""
    monkeypatch.setattr(page, "draw_plots", lambda record: {})
