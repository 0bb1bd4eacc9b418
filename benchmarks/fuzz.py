"""Damages files at random, and sees that what reads them refuses them in one line, or reads what is left.

nice python -m benchmarks.fuzz                                  20,000 mutations of each format
nice python -m benchmarks.fuzz --formats=png,pth --mutations=500

A fault is an exception other than the documented one, a crash of the process, more than 10 s, or more than 2 GB. Each
is printed, and its file kept in --out. Exit code 1 where there are any. Mutation i of a format is always the same.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from configs import default
from medgan_jax.compat.medimagegan import control_file
from medgan_jax.compat.torch.convert import read_network
from medgan_jax.config import parse_data
from medgan_jax.data.sources import decode_file, inspect_file, open_source
from medgan_jax.errors import UserError, reported
from medgan_jax.image_files import ImageError
from medgan_jax.report.record import read_record
from medgan_jax.sampling import load_latents
from medgan_jax.torch_files import read_arrays, read_state_dicts
from medgan_jax.workdir import Workdir, read_json, read_lines

SECONDS, MEMORY = 10, 2 * 2**30  # at most, of one file
_TORCH = Path(__file__).parents[1] / "tests/oracles"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file that users give.

    Attributes:
      name: of the file, in a folder of its own.
      seeds: returns whole files.
      parse: reads the file as a command does.
      refusals: what it may raise.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    parse: Callable[[Path], Any]
    refusals: type[Exception] | tuple[type[Exception], ...] = UserError


def _pictures(name: str, *modes: str, **options: Any) -> Callable[[], list[bytes]]:
    """Small pictures of these modes, as Pillow writes them."""

    def make() -> list[bytes]:
        random = np.random.default_rng(0)
        files = []
        for mode in modes:
            file = io.BytesIO()
            if mode == "I;16":
                image = Image.fromarray(random.integers(0, 4096, (24, 20)).astype(np.uint16))
            else:
                image = Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8)).convert(mode)
            image.save(file, name, **options)
            files.append(file.getvalue())
        return files

    return make


def _read_picture(path: Path) -> None:
    with contextlib.suppress(ImageError, OSError):  # as where images are listed
        inspect_file(path)
    decode_file(path.read_bytes(), channels=3, min_side=None, window="auto", bits=16, values=None, frame=0)


def _files(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(_TORCH / name).read_bytes() for name in names]


def _saved(save: Callable[..., None], *arrays: Any) -> Callable[[], list[bytes]]:
    def make() -> list[bytes]:
        files = []
        for content in arrays:
            file = io.BytesIO()
            save(file, **content) if isinstance(content, dict) else save(file, content)
            files.append(file.getvalue())
        return files

    return make


def _safetensors() -> list[bytes]:
    arrays = read_arrays(_TORCH / "published/netG16.pth")
    return [safetensors.numpy.save(arrays, {"format": "pt"}), safetensors.numpy.save({"b": np.ones((2, 3), np.uint8)})]


def _dicom() -> list[bytes]:
    """Pydicom's own examples: CT, RLE, JPEG, JPEG 2000, JPEG-LS, a palette, deflated, two frames."""
    from pydicom.data import get_testdata_file

    names = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm")
    names += ("MR_small_jpeg_ls_lossless.dcm", "examples_palette.dcm", "image_dfl.dcm", "SC_rgb_rle_2frame.dcm")
    return [Path(str(get_testdata_file(name))).read_bytes() for name in names]


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def _read_labels(path: Path) -> None:
    """A table of three pictures beside it."""
    pictures = path.parent / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        for letter in "abc":
            Image.new("L", (16, 16)).save(pictures / f"{letter}.png")
    fields = {"source": "csv", "path": str(pictures), "labels_csv": str(path)}
    open_source(parse_data({**default.get_config().data.to_dict(), **fields}))


def _read_config(path: Path) -> None:
    read_json(path)
    read_record(Workdir(path.parent))


def _read_log(path: Path) -> None:
    list(read_lines(path))
    read_record(Workdir(path.parent))


_CONTROL = """arch: 'SNGAN'
path: '/data/lesions'
out: 'out'
run: 'run_1'
seed: 42
num_epochs: 5
learning_rate: 0.0002
beta_adam: 0.5
batch_size: 16
latent_vector: 100
image_size: 64
number_channels: 3
gen_feature_maps: 64
dis_feature_maps: 64
"""
_LINES = "".join(json.dumps({"step": i, "loss_gen": i / 3, "score_real": None}) + "\n" for i in range(4))

_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # on its side
_TABLES = _texts("image,label\na,x\nb,y\nc,x\n", "a;1\nb;2\nc;2\n", 'image\tlabel\n"a"\tx y\nb\tz\n"c"\tz\n')
_ARRAYS = {"a": np.arange(9), "b": np.ones((2, 3), np.float32)}, {"c": np.zeros(3, bool)}
_CONFIG = json.dumps({"num_steps": 3, "data": {"path": "a", "x": [1, 2.5, None]}}, indent=2)
_LATENTS = functools.partial(load_latents, latent_dim=8)

FORMATS: dict[str, Format] = {
    "jpeg": Format("a.jpg", _pictures("JPEG", "RGB", "L", "CMYK", exif=_EXIF), _read_picture, ImageError),
    "png": Format("a.png", _pictures("PNG", "RGB", "L", "P", "LA", "I;16", "1"), _read_picture, ImageError),
    "bmp": Format("a.bmp", _pictures("BMP", "RGB", "L", "P", "1"), _read_picture, ImageError),
    "tiff": Format("a.tif", _pictures("TIFF", "RGB", "L", "I;16", "F", "RGBA"), _read_picture, ImageError),
    "tiff-lzw": Format("a.tif", _pictures("TIFF", "RGB", "L", compression="tiff_lzw"), _read_picture, ImageError),
    "webp": Format("a.webp", _pictures("WEBP", "RGB", "RGBA"), _read_picture, ImageError),
    "gif": Format("a.gif", _pictures("GIF", "RGB", "L"), _read_picture, ImageError),
    "dicom": Format("a.dcm", _dicom, _read_picture, ImageError),
    "table": Format("labels.csv", _TABLES, _read_labels),
    "yaml": Format("input.yaml", _texts(_CONTROL), lambda path: control_file.load(path, default.get_config())),
    "pth": Format("a.pth", _files("torch_files/zip.pth", "torch_files/legacy.pth"), read_state_dicts),
    "checkpoint": Format("a.ckpt", _files("published/netG16.pth", "torch_checkpoints/training.pt"), read_network),
    "safetensors": Format("a.safetensors", _safetensors, read_network),
    "npz": Format("a.npz", _saved(np.savez_compressed, *_ARRAYS), read_arrays),
    "npy": Format("a.npy", _saved(np.save, np.ones((3, 8), np.float32), np.arange(16).reshape(2, 8)), _LATENTS),
    "json": Format("config.json", _texts(_CONFIG), _read_config),
    "jsonl": Format("metrics.jsonl", _texts(_LINES), _read_log),
}


_TOKENS = (b"\0", b"[", b"{", b'"', b"\n", b",", b"- ", b": ", b"&a *a ", b"9" * 500, b"1e999", b"\xff\xfe")


def mutate(seeds: list[bytes], random: np.random.Generator) -> bytes:
    """A seed with one to four changes: bits, cuts, pieces of the same or another file, lengths, repeats."""
    data = bytearray(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(1, 5)):
        at, end = np.sort(random.integers(0, len(data) + 1, 2)).tolist()
        match random.integers(7):
            case 0:  # single bits
                for position in random.integers(0, max(len(data), 1), random.integers(1, 9)):
                    if data:
                        data[position] ^= 1 << random.integers(8)
            case 1:
                data = data[:at] if random.integers(2) else data[:at] + data[end:]
            case 2:  # a piece of another file
                other = seeds[random.integers(len(seeds))]
                start, stop = np.sort(random.integers(0, len(other) + 1, 2))
                data[at:end] = other[start:stop]
            case 3:  # a number, perhaps a length
                size = 2 ** int(random.integers(4))
                half = 2 ** (8 * size - 1)
                value = (0, 1, half - 1, half, 2 * half - 1)[random.integers(5)]
                data[at : at + size] = value.to_bytes(size, random.choice(["little", "big"]))
            case 4:  # repeats
                data[at:at] = data[at:end][:65536] * int(random.integers(1, 65))
            case 5:
                data[at:at] = random.bytes(int(random.integers(1, 33)))
            case 6:  # what texts are made of
                data[at:at] = _TOKENS[random.integers(len(_TOKENS))] * int(random.choice([1, 1, 3, 2000]))
    return bytes(data)


def mutation(name: str, index: int) -> bytes:
    """Mutation `index` of a format."""
    return mutate(_seeds(name), np.random.default_rng([zlib.crc32(name.encode()), index]))


@functools.cache
def _seeds(name: str) -> list[bytes]:
    return FORMATS[name].seeds()


def fault(name: str, data: bytes, folder: Path) -> str | None:
    """What is wrong with how a file is read, in one line; None where nothing is. It is written into `folder`."""
    kind = FORMATS[name]
    path = folder / kind.name
    path.write_bytes(data)
    try:
        kind.parse(path)
    except kind.refusals as refusal:
        if isinstance(refusal, UserError) and len(str(refusal).splitlines()) != 1:
            return f"a message of several lines: {refusal}"
        causes = _causes(refusal)
        return "needs more memory" if any(isinstance(cause, MemoryError) for cause in causes) else None
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _work(name: str, first: int, last: int, current: Any, faults: Any) -> None:
    """In a process of its own: the mutations from `first` on. `current` says which is being read."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        fault(name, b"", Path(folder))  # what is imported and compiled at the first call is not the file's
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        for index in range(first, last):
            data = mutation(name, index)
            current.value = index
            started = time.monotonic()
            found = fault(name, data, Path(folder))
            if time.monotonic() - started > SECONDS:
                found = f"takes {time.monotonic() - started:.0f} s"
            if found:
                faults.put((index, found))
    current.value = last


def run(name: str, mutations: int) -> list[tuple[int, str]]:
    """All faults of a format: (mutation, what is wrong)."""
    context = multiprocessing.get_context("spawn")
    found: list[tuple[int, str]] = []
    first = 0
    while first < mutations:
        current, faults = context.Value("q", first - 1), context.Queue()
        process = context.Process(target=_work, args=(name, first, mutations, current, faults), daemon=True)
        process.start()
        seen, since = current.value, time.monotonic()
        while process.is_alive():
            process.join(0.2)
            while not faults.empty():
                found.append(faults.get())
            if current.value != seen:
                seen, since = current.value, time.monotonic()
            elif time.monotonic() - since > (6 * SECONDS if seen < first else 2 * SECONDS):  # at first it imports
                process.kill()
                process.join()
                found.append((max(seen, first), f"takes more than {2 * SECONDS} s"))
        while not faults.empty():
            found.append(faults.get())
        if process.exitcode and process.exitcode > 0:
            raise RuntimeError(f"the worker of {name} failed")
        if process.exitcode and current.value == seen and (not found or found[-1][0] != seen):
            found.append((seen, f"ends the process by signal {-process.exitcode}"))
        first = current.value if current.value == mutations else current.value + 1
    return found


def main(arguments: list[str]) -> None:
    """Runs the formats asked for; exit code 1 where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(FORMATS), help="which; all by default")
    parser.add_argument("--mutations", type=int, default=20_000, help="of each format")
    parser.add_argument("--out", type=Path, default=Path("fuzz_faults"), help="where files with faults are kept")
    options = parser.parse_args(arguments)
    names = options.formats.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"--formats: there is no format {unknown[0]!r}; give some of {','.join(FORMATS)}")
    any_found = False
    for name in names:
        started = time.monotonic()
        found = run(name, options.mutations)
        for index, what in found:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{name}_{index}{Path(FORMATS[name].name).suffix}"
            path.write_bytes(mutation(name, index))
            print(f"  {path}: {what}", flush=True)
        seconds = time.monotonic() - started
        print(f"{name}: {options.mutations:,} mutations, {len(found)} faults, {seconds:.0f} s", flush=True)
        any_found |= bool(found)
    sys.exit(1 if any_found else 0)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
