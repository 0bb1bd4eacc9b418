"""`medgan import-torch` and `medgan export-torch`: from a PyTorch file to images, to a checkpoint, and back."""

import functools
import pickle
import shutil

import jax
import numpy as np
import published
import pytest
import safetensors

from medgan_jax.checkpoint import Checkpoints, load_discriminator, load_generator, load_networks, save_generator
from medgan_jax.commands import export_torch, import_torch
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.torch_files import read_arrays

pytestmark = pytest.mark.slow

G, D = published.FOLDER / "netG16.pth", published.FOLDER / "netD64_spectral.zip"
CHECKPOINTS = published.FOLDER.parent / "torch_checkpoints"
CRITIC = published.FOLDER / "netD64_critic.zip"  # quicker than D


def test_a_generator_there_and_back(tmp_path, capsys):
    sharding = replicated(data_mesh())
    folder, back = tmp_path / "run/generator", tmp_path / "new/netG.pth"
    import_torch.main([str(G), f"--out={folder}"])
    out = capsys.readouterr().out
    assert "netG16.pth: a generator of 16 px; features=2, latent_dim=4, channels=1\n" in out
    assert f"medgan sample --checkpoint={folder} " in out
    export_torch.main([str(tmp_path / "run"), f"--out={back}"])
    assert "torch.load(" in capsys.readouterr().out
    first, second = read_arrays(G), read_arrays(back)
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
    assert "a discriminator of 64 px with spectral norm; features=2, channels=3\n" in out
    export_torch.main([str(tmp_path), f"--out={tmp_path}/netD.pth"])
    first, *others = (load_discriminator(tmp_path / path, sharding) for path in (D, "discriminator", "netD.pth"))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first.variables, other.variables)
        assert (other.module, other.channels, other.digest) == (first.module, 3, first.digest)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(other.variables))
    assert list(read_arrays(tmp_path / "netD.pth")) == list(read_arrays(D))


def test_safetensors_there_and_back(tmp_path, capsys):
    """Written and read by the library; the key of the network that is taken is said."""
    export_torch.main([str(CHECKPOINTS / "training.pt"), f"--out={tmp_path}/netG.safetensors", "--network=generator"])
    out = tmp_path / "netG.safetensors"
    assert f"load_state_dict(safetensors.torch.load_file('{out}'))" in capsys.readouterr().out
    with safetensors.safe_open(out, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("main.0.weight").shape == (4, 8, 4, 4)
    import_torch.main([str(out), f"--out={tmp_path}/one"])
    import_torch.main([str(CHECKPOINTS / "training.pt"), f"--out={tmp_path}/other", "--key=netG"])
    said = capsys.readouterr().out
    assert f"{out}: a generator of 16 px; features=4, latent_dim=4, channels=1\n" in said
    assert "training.pt, netG: a generator of 16 px;" in said
    one, other, averaged = (
        load_generator(path, replicated(data_mesh()))
        for path in (tmp_path / "one", tmp_path / "other", CHECKPOINTS / "training.pt")
    )
    assert one.digest == averaged.digest != other.digest


def test_both_networks_of_a_trainings_checkpoint(caplog):
    networks = load_networks(CHECKPOINTS / "training.pt", replicated(data_mesh()))
    assert [type(network.module) for network in networks] == [Generator, Discriminator]
    assert "training.pt: its netG_ema is taken, a generator of 16 px" in caplog.text
    assert "training.pt: its netD is taken, a discriminator of 16 px" in caplog.text


def test_which_network_is_exported(tmp_path):
    import_torch.main([str(G), f"--out={tmp_path}/generator"])
    (tmp_path / "discriminator").mkdir()  # as a crash during the first save may leave it
    assert len(load_networks(tmp_path, replicated(data_mesh()))) == 1
    import_torch.main([str(CRITIC), f"--out={tmp_path}/discriminator"])
    assert len(load_networks(tmp_path, replicated(data_mesh()))) == 2
    for options, wanted in (([], G), (["--network=generator"], G), (["--network=discriminator"], CRITIC)):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        export_torch.main([str(tmp_path), f"--out={out}", *options])
        assert list(read_arrays(out)) == list(read_arrays(wanted))
    with pytest.raises(UserError, match="holds a generator and no discriminator"):
        export_torch.main([f"{tmp_path}/generator", f"--out={tmp_path}/x.pth", "--network=discriminator"])
    with pytest.raises(UserError, match="holds no generator or discriminator"):
        export_torch.main([f"{tmp_path}/generator/0", f"--out={tmp_path}/x.pth"])
    assert not (tmp_path / "x.pth").exists()


def test_a_conditional_generator_is_not_exported(tmp_path):
    module = Generator(16, 3, 2, num_classes=2)
    init = functools.partial(module.init, training=True)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 4)), np.zeros(1, int))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    checkpoints = Checkpoints(tmp_path / "generator", keep=1)
    save_generator(checkpoints, 1, variables, module, 4, {"classes": ["a", "b"]})
    checkpoints.close()
    with pytest.raises(UserError, match="holds a class-conditional.*have none; draw its images with medgan sample"):
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


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "no such f"),
        (b"hello", "is a text, 'hello'"),
        (pickle.dumps(print, 2), "no file of PyTorch"),
        ((published.FOLDER.parent / "torch_files/zip.pth").read_bytes(), "is of no layer of a Sequential; give a gen"),
    ],
)
def test_other_files_are_refused(data, says, tmp_path):
    path = tmp_path / "netG.pth"
    if data is not None:
        path.write_bytes(data)
    for read in (
        lambda: import_torch.main([str(path), f"--out={tmp_path}/out"]),
        lambda: export_torch.main([str(path), f"--out={tmp_path}/out"]),
        lambda: load_generator(path, replicated(data_mesh())),
    ):
        with pytest.raises(UserError, match=says) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "out").exists()
