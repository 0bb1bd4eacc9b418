"""Event files, read back with TensorFlow's definition of them, and what a full disk or a killed process leaves."""

import contextlib
import io
import math
import os
import resource
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from medgan_jax.training.tensorboard import TensorBoard


def masked_crc32c(data):
    """RFC 3720's checksum bit by bit, masked as TFRecord does."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """The whole events of a file; a last one that is cut short is left out."""
    data, place = path.read_bytes(), 0
    while place + 12 <= len(data):
        length, check = struct.unpack_from("<QI", data, place)
        assert check == masked_crc32c(data[place : place + 8])
        content = data[place + 12 : place + 12 + length]
        if place + 16 + length > len(data):
            return
        assert struct.unpack_from("<I", data, place + 12 + length) == (masked_crc32c(content),)
        yield Event.FromString(content)
        place += 16 + length


def shown(folder):
    """Values by tag and step as TensorBoard keeps them: the start of a session drops what comes after it."""
    kept = {}
    for path in sorted(folder.iterdir()):
        for index, event in enumerate(events(path)):
            assert (event.file_version == "brain.Event:2") is (index == 0)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                kept = {key: value for key, value in kept.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in kept
                kept[value.tag, event.step] = value
    return kept


def scalars(folder):
    return {key: value.simple_value for key, value in shown(folder).items()}


def test_numbers_of_all_logs_under_grouped_tags(tmp_path):
    log = TensorBoard(tmp_path / "runs/a", first_step=-1)
    log.add_scalars({"step": 50, "epoch": 8, "loss_gen": math.nan, "score_real": 0.5, "grad_norm_dis": 0.25})
    log.add_scalars({"step": 50, "images_per_s": 81.5})
    log.add_scalars({"step": 100, "diversity": 0.5, "norms_gen": [1.5, 2.5]})
    log.add_scalars({"step": 500, "best_by": "swd", "swd": 109.5, "kid": None})
    log.close()
    expected = {
        ("epoch", 50): 8, ("losses/gen", 50): math.nan, ("scores/real", 50): 0.5, ("gradient_norms/dis", 50): 0.25,
        ("images_per_s", 50): 81.5, ("health/diversity", 100): 0.5, ("spectral_norms/gen_0", 100): 1.5,
        ("spectral_norms/gen_1", 100): 2.5, ("evaluation/swd", 500): 109.5,
    }  # fmt: skip
    assert scalars(tmp_path / "runs/a") == pytest.approx(expected, nan_ok=True)


def test_images_and_texts(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with contextlib.closing(TensorBoard(tmp_path, first_step=-1)) as log:
        log.add_image("fakes", 500, image)
        log.add_text("alarms", 600, "Mode collapse: große Ähnlichkeit")
    values = shown(tmp_path)
    found = values["fakes", 500].image
    assert (found.height, found.width, found.colorspace) == image.shape
    with Image.open(io.BytesIO(found.encoded_image_string)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image)
    text = values["alarms/text_summary", 600]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tensor.string_val[0].decode() == "Mode collapse: große Ähnlichkeit"


def test_steps_that_are_trained_again_are_shown_once(tmp_path):
    """After a crash at step 40, with a checkpoint of step 20; after a rollback to step 10; and without a checkpoint."""
    runs = [(-1, (0, 10, 20, 30, 40)), (20, (30, 40)), (10, (20, 30)), (-1, (0,))]
    for number, (first_step, steps) in enumerate(runs):
        with contextlib.closing(TensorBoard(tmp_path, first_step=first_step)) as log:
            for step in steps:
                log.add_scalars({"step": step, "loss_gen": float(number)})
        if number == 2:
            assert list(scalars(tmp_path).values()) == [0, 0, 2, 2]
    assert scalars(tmp_path) == {("losses/gen", 0): 3}


def test_a_killed_process_loses_at_most_its_last_record(tmp_path):
    log = TensorBoard(tmp_path, first_step=-1)
    for step in range(4):
        log.add_scalars({"step": step, "loss_gen": 0.0})
        assert len(scalars(tmp_path)) == step + 1  # nothing is left in a buffer
    log.close()
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 3)
    assert len(scalars(tmp_path)) == 3


def test_a_full_disk_raises_and_names_the_file(tmp_path):
    """The writer of tensorboardX would end without a word, and block the training."""
    log = TensorBoard(tmp_path, first_step=-1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"events\.out\.tfevents"):
            for step in range(100):
                log.add_scalars({"step": step, "loss_gen": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(scalars(tmp_path)) == step > 10
