"""`import_torch` and `export_torch`: from a file of PyTorch's to pictures, to a folder of ours, and back."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import published
import pytest

from medgan_jax.checkpoint import Checkpoints, load_discriminator, load_generator, load_networks, save_generator
from medgan_jax.commands import export_torch, import_torch
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Generator
from medgan_jax.models.resnet import ResidualGenerator
from medgan_jax.sampling import sample_to_folder
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.torch_files import read_state_dict

ROOT = Path(__file__).parents[2]
G, D = published.FOLDER / "netG16.pth", published.FOLDER / "netD64_spectral.zip"


def test_a_generator_there_and_back(tmp_path, capsys):
    sharding = replicated(data_mesh())
    folder, back = tmp_path / "run/generator", tmp_path / "new/netG.pth"
    import_torch.main([str(G), f"--out={folder}"])
    out = capsys.readouterr().out
    assert "netG16.pth: a generator of 16 x 16 px, 2 feature maps, latents of 4, 1 channel\n" in out
    assert f"python sample.py --checkpoint={folder} " in out
    export_torch.main([str(tmp_path / "run"), f"--out={back}"])
    assert "torch.load(" in capsys.readouterr().out
    first, second = read_state_dict(G), read_state_dict(back)
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array if "tracked" not in name else 0, second[name])
    samples = []
    for path in (G, folder, back):
        generator = load_generator(path, sharding)
        assert generator.step == 0
        out = tmp_path / f"images{len(samples)}"
        sample_to_folder(generator, out, num_images=4, seed=0, batch_size=4, mesh=data_mesh())
        samples.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert samples[0] == samples[1] == samples[2]
    assert len(samples[0]) == 5
    assert load_generator(G, sharding).about["imported_from"] == "netG16.pth"
    assert load_generator(folder, sharding).about["imported_from"] == "netG16.pth"


def test_a_discriminator_there_and_back(tmp_path, capsys):
    sharding = replicated(data_mesh())
    import_torch.main([str(D), f"--out={tmp_path}/discriminator"])
    out = capsys.readouterr().out
    assert "a discriminator of 64 x 64 px, 2 feature maps, 3 channels, with spectral norm, with batch norm\n" in out
    export_torch.main([str(tmp_path), f"--out={tmp_path}/netD.pth"])
    first, *others = (load_discriminator(tmp_path / path, sharding) for path in (D, "discriminator", "netD.pth"))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first.variables, other.variables)
        assert (other.module, other.channels, other.digest) == (first.module, 3, first.digest)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(other.variables))
    assert list(read_state_dict(tmp_path / "netD.pth")) == list(read_state_dict(D))


def test_which_network_is_exported(tmp_path):
    import_torch.main([str(G), f"--out={tmp_path}/generator"])
    (tmp_path / "discriminator").mkdir()  # as a crash during the first save may leave it
    assert len(load_networks(tmp_path, replicated(data_mesh()))) == 1
    import_torch.main([str(D), f"--out={tmp_path}/discriminator"])
    assert len(load_networks(tmp_path, replicated(data_mesh()))) == 2
    for options, wanted in (([], G), (["--network=generator"], G), (["--network=discriminator"], D)):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        export_torch.main([str(tmp_path), f"--out={out}", *options])
        assert list(read_state_dict(out)) == list(read_state_dict(wanted))
    with pytest.raises(UserError, match="holds a generator and no discriminator"):
        export_torch.main([f"{tmp_path}/generator", f"--out={tmp_path}/x.pth", "--network=discriminator"])
    with pytest.raises(UserError, match="holds no generator or discriminator"):
        export_torch.main([f"{tmp_path}/generator/0", f"--out={tmp_path}/x.pth"])
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(
    ("module", "says"),
    [(ResidualGenerator(32, 3, 2), "a residual network"), (Generator(16, 3, 2, num_classes=2), "a class-conditional")],
)
def test_what_the_published_classes_lack_is_not_exported(module, says, tmp_path):
    labels = np.zeros(1, int) if module.num_classes else None
    variables = jax.jit(lambda: module.init(jax.random.key(0), np.zeros((1, 4)), labels, training=True))()
    checkpoints = Checkpoints(tmp_path / "generator", keep=1)
    save_generator(checkpoints, 1, variables, module, 4, {"classes": ["a", "b"][: module.num_classes]})
    checkpoints.close()
    with pytest.raises(UserError, match=f"holds {says}.*have none; draw its images with sample.py, or train"):
        export_torch.main([str(tmp_path), f"--out={tmp_path}/new/netG.pth"])
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path):
    shutil.copy(G, tmp_path / "netG.pth")
    before = (tmp_path / "netG.pth").read_bytes()
    for out, says in ((tmp_path, "is not empty"), (tmp_path / "netG.pth", "is no folder"), ("", "is no folder")):
        with pytest.raises(UserError, match=f"--out={out}: {says}"):
            import_torch.main([str(G), f"--out={out}"])
    for out in (tmp_path, tmp_path / "netG.pth", ""):
        with pytest.raises(UserError, match=f"--out={out}: exists already"):
            export_torch.main([str(G), f"--out={out}"])
    with pytest.raises(UserError, match="new/: is the name of a folder"):
        export_torch.main([str(G), f"--out={tmp_path}/new/"])
    assert [path.name for path in tmp_path.iterdir()] == ["netG.pth"]
    assert (tmp_path / "netG.pth").read_bytes() == before


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive(description):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as records:
        records.writestr("archive/data.pkl", description)
    return file.getvalue()


REFUSED = {
    "no file": (lambda path: None, "no such f"),
    "text": (lambda path: b"hello", "no file of PyTorch"),
    "cut short": (lambda path: G.read_bytes()[:3000], "damaged or incomplete"),
    "attack": (lambda path: archive(pickle.dumps(Attack(path), 2)), "not only tensors: it holds 'posix.mkdir'"),
    "bare attack": (lambda path: pickle.dumps(Attack(path), 2), "no file of PyTorch"),
    "module": (lambda path: archive(b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81."),
               "it holds 'torch.nn.modules.container.Sequential'; save the state dict alone"),
    "other network": (lambda path: (published.FOLDER.parent / "torch_files/zip.pth").read_bytes(),
                      "is of no layer of a Sequential; give a generator or discriminator"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused(case, tmp_path):
    make, says = REFUSED[case]
    path = tmp_path / "netG.pth"
    data = make(tmp_path / "ran")
    if data is not None:
        path.write_bytes(data)
    for read in (
        lambda: import_torch.main([str(path), f"--out={tmp_path}/out"]),
        lambda: export_torch.main([str(path), f"--out={tmp_path}/out"]),
        lambda: load_generator(path, replicated(data_mesh())),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ")
        assert says in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_the_attack_would_work(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "ran"), 2))
    assert (tmp_path / "ran").exists()


def test_commands_say_what_is_wrong_in_one_line(command_environment, tmp_path):
    (tmp_path / "netG.pth").write_bytes(archive(pickle.dumps(Attack(tmp_path / "ran"), 2)))
    (tmp_path / "netD.zip").write_bytes(D.read_bytes())
    for door, says in (
        (["-m", "medgan_jax.commands.import_torch", "netG.pth", "--out=out"], "netG.pth: not only tensors"),
        ([ROOT / "sample.py", "--checkpoint=netD.zip", "--out=out"], "holds a discriminator and no generator"),
    ):
        environment = command_environment | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *door], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert says in done.stderr
        assert not done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"netG.pth", "netD.zip"}
