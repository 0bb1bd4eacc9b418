"""Event files are read back here by their definition: framing and CRC-32C of TFRecord, then the protocol buffers."""

import contextlib
import io
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from medgan_jax.training.step import METRICS
from medgan_jax.training.tensorboard import TensorBoard


def crc32c(data):
    """RFC 3720, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """The whole events of a file; a last one that is cut short is left out."""
    data, place = path.read_bytes(), 0
    while place + 12 <= len(data):
        length, check = struct.unpack_from("<QI", data, place)
        assert check == masked(data[place : place + 8])
        content = data[place + 12 : place + 12 + length]
        if place + 16 + length > len(data):
            return
        (check,) = struct.unpack_from("<I", data, place + 12 + length)
        assert check == masked(content)
        yield Event.FromString(content)
        place += 16 + length


def shown(folder):
    """Values by tag and step as TensorBoard keeps them: the start of a session makes it forget what comes after."""
    kept = {}
    for path in sorted(folder.iterdir()):
        for index, event in enumerate(events(path)):
            if index == 0:
                assert event.file_version == "brain.Event:2"
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                kept = {key: value for key, value in kept.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in kept
                kept[value.tag, event.step] = value
    return kept


def test_the_checksum_here_is_right():
    assert crc32c(b"123456789") == 0xE3069283


def test_numbers_of_all_logs_under_tags_that_sort_them(tmp_path):
    log = TensorBoard(tmp_path / "runs/a", first_step=0)
    metrics = dict.fromkeys(METRICS, 0.25) | {"loss_gen": math.nan}
    log.line({"step": 50, "epoch": 8, **metrics, "images_per_s": 81.5})
    log.line({"step": 100, "diversity": 0.5, "norms_gen": [1.5, 2.5], "norms_dis": [3.5]})
    log.line({"step": 500, "best_by": "swd", "swd": 109.5, "swd_floor": 45.25, "kid": None})
    log.close()
    values = shown(tmp_path / "runs/a")
    assert {(tag, step): value.simple_value for (tag, step), value in values.items()} == pytest.approx(
        {
            ("epoch", 50): 8,
            ("losses/dis", 50): 0.25,
            ("losses/gen", 50): math.nan,
            ("scores/real", 50): 0.25,
            ("scores/fake_before", 50): 0.25,
            ("scores/fake_after", 50): 0.25,
            ("scores/dis", 50): 0.25,
            ("scores/gen", 50): 0.25,
            ("gradient_norms/dis", 50): 0.25,
            ("gradient_norms/gen", 50): 0.25,
            ("images_per_s", 50): 81.5,
            ("health/diversity", 100): 0.5,
            ("spectral_norms/gen_0", 100): 1.5,
            ("spectral_norms/gen_1", 100): 2.5,
            ("spectral_norms/dis_0", 100): 3.5,
            ("evaluation/swd", 500): 109.5,
            ("evaluation/swd_floor", 500): 45.25,
        },
        nan_ok=True,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_and_texts(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    log = TensorBoard(tmp_path, first_step=0)
    log.picture("fakes", 500, image)
    log.text("alarms", 600, "Mode collapse: große Ähnlichkeit")
    log.close()
    values = shown(tmp_path)
    picture = values["fakes", 500].image
    assert (picture.height, picture.width, picture.colorspace) == (5, 7, channels)
    with Image.open(io.BytesIO(picture.encoded_image_string)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)
    text = values["alarms/text_summary", 600]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tensor.string_val[0].decode() == "Mode collapse: große Ähnlichkeit"


def test_what_is_trained_again_is_shown_once(tmp_path):
    """After a crash at step 40 and a checkpoint of step 20, and then a way back to step 10; at once each time."""
    for number, (first_step, steps) in enumerate([(0, (0, 10, 20, 30, 40)), (20, (30, 40)), (10, (20, 30))]):
        log = TensorBoard(tmp_path, first_step=first_step)
        for step in steps:
            log.line({"step": step, "loss_gen": float(number)})
        log.close()
    assert [(step, value.simple_value) for (_, step), value in shown(tmp_path).items()] == [
        (0, 0), (10, 0), (20, 2), (30, 2),
    ]  # fmt: skip
    with contextlib.closing(TensorBoard(tmp_path, first_step=0)) as log:  # no checkpoint: all again
        log.line({"step": 0, "loss_gen": 9.0})
    assert [(step, value.simple_value) for (_, step), value in shown(tmp_path).items()] == [(0, 9)]


def test_each_record_is_with_the_system_at_once(tmp_path):
    """So that neither `kill -9` nor `os._exit` loses one."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from medgan_jax.training.tensorboard import TensorBoard\n"
        "log = TensorBoard(Path(sys.argv[1]), first_step=0)\n"
        "for step in range(1000):\n"
        "    log.line({'step': step, 'loss_gen': float(step)})\n"
        "    if step >= 2: print(step, flush=True); time.sleep(0.01)\n"
    )
    environment = os.environ | {"PYTHONPATH": "."}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"2\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = [step for _, step in shown(tmp_path)]
    assert written == list(range(len(written))) and len(written) >= 3
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 3)  # a record that was cut short takes no other with it
    assert [step for _, step in shown(tmp_path)] == written[:-1]
    with contextlib.closing(TensorBoard(tmp_path, first_step=1)) as log:
        log.line({"step": 3, "loss_gen": 3.0})
    assert [step for _, step in shown(tmp_path)] == [0, 1, 3]


def test_a_full_disk_names_the_file_and_leaves_no_work_for_later(tmp_path):
    log = TensorBoard(tmp_path, first_step=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"events\.out\.tfevents"):
            for step in range(100):
                log.line({"step": step, "loss_gen": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    written = [step for _, step in shown(tmp_path)]
    assert written == list(range(step)) and step > 10


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        TensorBoard(tmp_path / "file", first_step=0)


def test_files_of_one_second_keep_their_order(tmp_path, monkeypatch):
    moments = iter([17 * 10**8 * 10**9 + 5, 17 * 10**8 * 10**9 + 10**8])
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    for first_step in (0, 7):
        TensorBoard(tmp_path, first_step=first_step).close()
    steps = [[event.step for event in events(path)] for path in sorted(tmp_path.iterdir())]
    assert steps == [[0, 0], [0, 8]]


def test_the_library_is_loaded_when_it_is_needed():
    code = "import sys, medgan_jax.training.tensorboard; assert 'tensorboardX' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "."})
