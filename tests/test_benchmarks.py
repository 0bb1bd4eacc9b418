"""The benchmarks: what is counted, how samples become a verdict, how workers are asked. No time is judged."""

import ast
import contextlib
import functools
import json
import math
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks import arithmetic, commands, evaluation, measuring, ours, profile, report, rows, scaling, steps
from benchmarks.pipe import ROOT, Worker, WorkerError
from medgan_jax.errors import UserError
from medgan_jax.ops import winograd
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import train_step

pytestmark = pytest.mark.slow


def count_flops(jaxpr):
    """FLOP of the convolutions and matrix products of a jaxpr; zeros put between numbers are not multiplied."""
    total = 0
    for equation in jaxpr.eqns:
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                total += count_flops(inner) if hasattr(inner, "eqns") else 0
        if equation.primitive.name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval, equation.invars[1].aval
            numbers = equation.params["dimension_numbers"].rhs_spec
            taps = math.prod(kernel.shape) // kernel.shape[numbers[0]]
            total += 2 * out.size * taps // math.prod(equation.params["lhs_dilation"])
        elif equation.primitive.name == "dot_general":
            left, right = (variable.aval for variable in equation.invars)
            (contracted, _), _ = equation.params["dimension_numbers"]
            if contracted and min(left.ndim, right.ndim) > 1:  # power iterations multiply by vectors
                total += 2 * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
    return total


def test_the_formula_counts_what_a_step_computes(tiny_config, monkeypatch):
    size, channels = 64, 1
    monkeypatch.setattr(winograd, "LOWERING", "native")  # the count is of direct convolutions
    config = tiny_config(image_size=size, channels=channels, gen_features=8, dis_features=8, latent_dim=5)
    networks = build_networks(config)
    state = jax.eval_shape(functools.partial(initial_state, networks, config))
    reals = jax.ShapeDtypeStruct((4, size, size, channels), jnp.uint8)
    traced = jax.make_jaxpr(functools.partial(train_step, networks=networks, config=config))(state, reals)
    expected = arithmetic.step_flops(size, 4, maps=8, latent=5, channels=channels)
    assert count_flops(traced.jaxpr) == expected


def test_the_formula_gives_the_published_networks():
    by_name = {layer.name: layer for layer in arithmetic.layers(64)}
    second = by_name["Discriminator/conv_1"]  # 64 maps of 32x32 to 128 of 16x16, 4x4 taps
    assert second.flops(1) == 8 * 2 * 16 * 16 * (4 * 4 * 64 * 128)
    assert second.traffic(1) == 8 * 4 * (32 * 32 * 64 + 16 * 16 * 128 + 4 * 4 * 64 * 128)
    kernels = sum(layer.kernel for name, layer in by_name.items() if name.startswith("Generator"))
    assert kernels == 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    assert arithmetic.step_flops(64, 16) == pytest.approx(16 * 11 * 0.207e9, rel=0.01)


MORE = report.Bounds(must=1.2, aim=1.8, at_least=True, unit="x")
LESS = report.Bounds(must=5, aim=2, at_least=False, unit="%")


@pytest.mark.parametrize(
    ("bounds", "value", "verdict"),
    [(MORE, 1.8, "aim"), (MORE, 1.79, "must"), (MORE, 1.1, "missed"), (LESS, 2, "aim"), (LESS, 4, "must")]
    + [(LESS, 5.1, "missed"), (LESS, -0.3, "aim")],
)
def test_verdict(bounds, value, verdict):
    assert bounds.verdict(value) == verdict


def test_summary():
    assert report.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3, "quartile_1": 2, "quartile_3": 4, "samples": 5
    }  # fmt: skip
    assert report.summary([0.123456789])["median"] == 0.12346
    assert report.summary([0.123456789])["quartile_3"] == 0.12346
    assert report.summary([]) is None


def canned(name="step64", values=(1.5, 1.4, 1.6), problem=""):
    values = list(values)
    measured = report.Measurement(values, [10 * v for v in values], [10.0] * len(values), "images/s", problem=problem)
    return report.row(name, "SNGAN-64", MORE, measured, date="2026-01-01", command="python -m benchmarks")


def test_table():
    missing = canned("step128", (), measuring.PEER_MISSING)
    lines = report.table([canned(), missing]).splitlines()
    row = "| SNGAN-64 | 15 images/s | 10 images/s | 1.5x (1.45 to 1.55) | 1.2x | 1.8x | must |"
    assert lines[2] == row
    assert lines[3] == f"| SNGAN-64 |  |  |  | 1.2x | 1.8x | {measuring.PEER_MISSING} |"


def test_a_busy_machine_is_said():
    row = canned() | {"others_busy_percent": 40.2}
    assert report.table([row]).endswith("| must; the machine was busy (40 %) |")


def test_results_of_one_machine_gather(tmp_path):
    def save(*measured, commit="abc", **versions):
        machine = {"name": "Intel(R) Xeon(R) Processor, 2 cores", "cores": 2}
        rows_now = [row | {"commit": commit} for row in measured]
        path = report.save(tmp_path, {"machine": machine, "versions": versions, "rows": rows_now})
        assert path.name == "intel-xeon-processor-2-cores.json"
        return {row["name"]: row["ratio"]["median"] for row in json.loads(path.read_text())["rows"]}

    assert save(canned("a"), canned("b")) == {"a": 1.5, "b": 1.5}
    assert save(canned("b", [2.0] * 3), canned("c")) == {"a": 1.5, "b": 2, "c": 1.5}
    assert save(canned("a", [9.0, 9.0])) == {"a": 1.5, "b": 2, "c": 1.5}  # --quick
    assert save(canned("a", [9.0, 9.0]), commit="def") == {"a": 9, "b": 2, "c": 1.5}
    assert save(canned("a", [8.0, 8.0, 8.0]), commit="def", torch="2.13") == {"a": 8, "b": 2, "c": 1.5}
    (file,) = tmp_path.iterdir()
    assert [row["commit"] for row in json.loads(file.read_text())["rows"]] == ["def", "abc", "abc"]
    assert save(canned("d"), commit="def") == {"a": 8, "b": 2, "c": 1.5, "d": 1.5}
    assert save(canned("d"), commit="def", torch="2.14") == {"d": 1.5}


def test_stored_results_make_a_table():
    paths = sorted((Path(ROOT) / "benchmarks/results").glob("*.json"))
    stored = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    assert {row["title"] for row in stored} <= {row.title for row in rows.ROWS.values()}
    table = report.table(stored)
    assert "| 75.75 images/s | 44.92 images/s | 1.637x (1.62 to 1.67) | 1.2x | 1.8x | must |" in table


WORKER = """
from benchmarks.pipe import serve
def fail(): raise ValueError("no such thing")
def double(x):
    print("noise")
    return {"twice": 2 * x}
serve({"double": double, "fail": fail})
"""


def test_a_worker_answers_and_says_why_it_ended():
    with Worker([sys.executable, "-c", WORKER]) as worker:
        assert worker.ask("double", x=21) == {"twice": 42}
        assert worker.ask("double", x=[1]) == {"twice": [1, 1]}
        with pytest.raises(WorkerError, match="ended with code 1 at 'fail': ValueError: no such thing"):
            worker.ask("fail")


@pytest.mark.parametrize("steps", [0.5, 43, 999, 20000])
def test_a_segment_holds_enough_lines_and_stops(steps):
    segment, log, stop = commands.segment_intervals(steps)
    assert segment % stop == stop % log == 0 and segment // stop >= 2
    assert log <= 50 and stop <= 500


def test_stops_are_told_apart_from_steps():
    batch, step, stop_cost, line_steps = 16, 0.25, 0.75, 5
    lines = []
    for i in range(1, 9):  # lines at 5, 10, ..., 40; a stop after 20
        seconds = line_steps * step + (stop_cost if line_steps * i == 25 else 0) + (9 if i == 1 else 0)
        lines.append({"step": line_steps * i, "images_per_s": line_steps * batch / seconds})
    plain, stop = commands.plain_and_stop(lines, batch=batch, stop=20)
    assert plain == pytest.approx(step)
    assert stop == pytest.approx(stop_cost)


PROGRAM = """HloModule jit_train_step
%moved (p: f32[4,2]) -> f32[2,4] {
  %p = f32[4,2]{1,0} parameter(0)
  ROOT %transpose.1 = f32[2,4]{1,0} transpose(%p), dimensions={1,0}
}
%body (q: (s32[], f32[2])) -> (s32[], f32[2]) {
  ROOT %add.1 = (s32[], f32[2]{0}) add(%q), metadata={op_name="jit(train_step)/add"}
}
ENTRY %main (x: f32[4,2]) -> f32[] {
  %fusion.7 = f32[2,4]{1,0} fusion(%x), calls=%moved, metadata={op_name="jit(train_step)/transpose(jvp(Generator))/conv_1/transpose"}
  %dot.2 = f32[4,4]{1,0} dot(%x, %fusion.7), metadata={op_name="jit(train_step)/jvp(Discriminator)/conv_2/dot_general"}
  %norm.3 = f32[4,4]{1,0} divide(%dot.2), metadata={op_name="jit(train_step)/jvp(Discriminator)/conv_2/spectral_norm/div"}
  ROOT %while.1 = (s32[], f32[2]{0}) while(%norm.3), condition=%body, body=%body, metadata={op_name="jit(train_step)/while"}
}
"""  # noqa: E501


def test_a_profile_books_operations_by_kind_and_layer():
    program = profile.parse_program(PROGRAM)
    booked = {name: (program[name].kind, program[name].layer, program[name].direction) for name in program}
    assert booked["fusion.7"] == ("data movement", "Generator/conv_1", "backward")
    assert booked["dot.2"] == ("matrix products", "Discriminator/conv_2", "forward")
    assert booked["norm.3"] == ("spectral norm", "Discriminator/conv_2", "forward")
    assert booked["add.1"][:2] == ("outside the networks", "outside the networks")
    times = profile.leaves({"fusion.7": 1.0, "dot.2": 2.0, "while.1": 4.0, "add.1": 5.0, "unknown": 9.0}, program)
    assert times == {"fusion.7": 1.0, "dot.2": 2.0, "add.1": 5.0}
    text = profile.describe(times, program)
    assert "| matrix products | 2.0 | 0.0 | 25.0 % |" in text
    assert "| Generator/conv_1 | 0.0 | 1.0 |" in text


@pytest.mark.parametrize("file", ["pipe.py", "torch_step.py"])
def test_the_peer_needs_nothing_but_torch(file):
    tree = ast.parse((Path(ROOT) / "benchmarks" / file).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {*sys.stdlib_module_names, "torch"}
    assert {name for name in modules if name.split(".")[0] not in allowed} <= {"benchmarks.pipe"}


def test_the_peer_has_our_networks():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[bench]'")
    from benchmarks.torch_step import Training

    peer = Training(size=16, batch=4, latent=8, maps=4)
    ours_state = ours.Training(ours.training_config(size=16, batch=4, latent=8, maps=4), num_images=6).state
    for network, state in ((peer.generator, ours_state.gen), (peer.discriminator, ours_state.dis)):
        numbers = sum(parameter.numel() for parameter in network.parameters())
        assert numbers == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert all(map(math.isfinite, peer.step()))


def test_a_misspelt_row_is_named():
    with pytest.raises(UserError, match="no row 'stepp'"):
        command.main(["--rows=step64,stepp"])


def test_an_interpreter_without_torch_is_refused(tmp_path):
    with pytest.raises(UserError, match="--torch_python=/no/such/python: no such file"):
        measuring.find_torch("/no/such/python")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=f"--torch_python={python}: this interpreter cannot import torch"):
        measuring.find_torch(str(python))


@pytest.mark.parametrize(
    ("main", "flag"),
    [(profile.main, "--steps=0"), (profile.main, "--steps=257"), (scaling.main, "--turn_seconds=0")],
)
def test_bad_flags_are_named(main, flag):
    with pytest.raises(UserError, match=f"{flag}.*: must be "):
        main([flag])


@pytest.fixture(scope="module")
def one_worker():
    """Our side starts once for all, and shares the tests' cache of compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "environment", lambda **options: dict(os.environ))
        with measuring.our_worker(cpu=True) as worker:
            for module in (steps, evaluation):
                patch.setattr(module, "our_worker", lambda **options: contextlib.nullcontext(worker))
            yield


@pytest.mark.usefixtures("one_worker")
def test_a_step_is_measured_without_the_peer():
    said = []
    settings = measuring.Settings(rounds=1, turn_seconds=0.01, maps=4, say=said.append)
    measured = steps.steps_against_torch(settings, size=16, batch=4, dtype="bfloat16")
    assert measured.problem == measuring.PEER_MISSING
    assert measured.value == measured.peer == []
    assert 0 < measured.ours[0] < math.inf
    assert said[0].startswith("  round 1 of 1: ours ")


@pytest.mark.usefixtures("one_worker")
def test_features_are_measured_without_the_peer():
    settings = measuring.Settings(rounds=1, turn_seconds=0.01, say=lambda text: None)
    measured = evaluation.features_against_torch(settings, backward=False, size=32, batch=1)
    assert measured.problem == measuring.PEER_MISSING
    assert 0 < measured.ours[0] < math.inf


@pytest.mark.usefixtures("one_worker")
def test_features_for_evaluation_are_timed():
    (seconds,) = evaluation.seconds_of_features(measuring.Settings(slow_rounds=1), size=16, images=2).value
    assert 0 < seconds < math.inf
