"""Networks that PyTorch saved compute what PyTorch computes; every other state dict is refused by name."""

import functools

import jax
import numpy as np
import published
import pytest
import safetensors.numpy

from medgan_jax.compat.torch.convert import from_state_dict, read_network, to_state_dict
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.resnet import ResidualGenerator
from medgan_jax.torch_files import read_arrays

pytestmark = pytest.mark.slow

ALL = (*published.GENERATORS, *published.DISCRIMINATORS)


@functools.cache
def state(name):
    return read_arrays(published.FOLDER / name)


@functools.cache
def network(name):
    return read_network(published.FOLDER / name)


@functools.cache
def expected():
    with np.load(published.EXPECTED) as file:
        return dict(file)


def inputs(name):
    if name in published.GENERATORS:
        return published.latents()
    return published.images(*published.DISCRIMINATORS[name][:2])


def test_networks_are_recognised():
    for name, fields in published.GENERATORS.items():
        assert (network(name).module, network(name).inputs) == (Generator(*fields), published.LATENT)
    for name, (size, channels, features, spectral_norm, batch_norm) in published.DISCRIMINATORS.items():
        module = Discriminator(size, features, spectral_norm, batch_norm=batch_norm)
        assert (network(name).module, network(name).inputs) == (module, channels)


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in expected()} - {"netG128_parallel.zip"}))
def test_outputs_and_statistics_are_pytorchs(name):
    found = network(name)

    @jax.jit
    def run(variables, x):
        mutable = [collection for collection in variables if collection != "params"]
        evaluated = found.module.apply(variables, x, training=False)
        return evaluated, *found.module.apply(variables, x, training=True, mutable=mutable)

    evaluated, trained, after = run(found.variables, inputs(name))
    for mode, out in (("eval", evaluated), ("train", trained)):
        wanted = expected()[f"{name}/{mode}"]
        out = published.some(out) if name in published.GENERATORS else out
        assert out.shape == wanted.shape
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    updated = to_state_dict(found.module, {**found.variables, **after}).values()
    vectors = [array for array in updated if array.ndim == 1]
    np.testing.assert_allclose(np.concatenate(vectors or [[]]), expected()[f"{name}/after"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_way_back(name):
    """The numbers to the bit, under the published names, in PyTorch's order."""
    ours = to_state_dict(network(name).module, network(name).variables)
    again = from_state_dict(ours)
    assert (again.module, again.inputs) == (network(name).module, network(name).inputs)
    jax.tree.map(np.testing.assert_array_equal, again.variables, network(name).variables)
    renamed = {}
    for given, array in state(name).items():
        given = given.removeprefix("module.").replace("parametrizations.weight.original", "weight_orig")
        renamed[given.replace("parametrizations.weight.0.", "weight")] = array
    assert list(ours) == list(renamed)
    for key, array in renamed.items():
        assert ours[key].flags.c_contiguous
        np.testing.assert_array_equal(ours[key], 0 if "tracked" in key else array, strict="tracked" not in key)
        assert ours[key].dtype == array.dtype


CHECKPOINTS = published.FOLDER.parent / "torch_checkpoints"


@functools.cache
def computed():
    with np.load(CHECKPOINTS / "expected.npz") as file:
        return dict(file)


def images_of(found, *, training=False):
    apply = functools.partial(found.module.apply, training=training, mutable=["batch_stats"])
    return published.some(jax.jit(apply)(found.variables, published.latents())[0])


@pytest.mark.parametrize("name", ["biases", "blocks", "pointwise", "pointwise_transposed"])
def test_generators_as_others_write_them_draw_what_they_draw_in_pytorch(name, tmp_path):
    """With biases, in blocks, with a 1x1 last layer; and so once they were exported and read again."""
    found = read_network(CHECKPOINTS / f"{name}.pth")
    assert found.module.image_size == 16
    for mode in ("eval", "train"):
        images = images_of(found, training=mode == "train")
        np.testing.assert_allclose(images, computed()[f"{name}/{mode}"], rtol=0, atol=1e-5)
    again = from_state_dict(to_state_dict(found.module, found.variables))
    assert again.module == found.module
    jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)


@pytest.mark.parametrize(
    ("file", "key", "taken", "images"),
    [
        ("training.pt", "", "netG_ema", "training/netG_ema"),
        ("training.pt", "netG", "netG", "training/netG"),
        ("lightning.ckpt", "", "state_dict.generator", "lightning/generator"),
        ("lightning.ckpt", "generator", "state_dict.generator", "lightning/generator"),
    ],
)
def test_a_network_of_a_trainings_checkpoint(file, key, taken, images):
    found = read_network(CHECKPOINTS / file, key=key)
    assert found.key == taken
    np.testing.assert_allclose(images_of(found), computed()[images], rtol=0, atol=1e-5)


def test_the_other_networks_of_a_checkpoint():
    for file, key in (("training.pt", "netD"), ("lightning.ckpt", "state_dict.discriminator")):
        found = read_network(CHECKPOINTS / file, kinds=(Discriminator,))
        assert (found.key, found.module) == (key, Discriminator(16, 4))
    with pytest.raises(UserError, match="module.pt: not only tensors: it holds '__main__.Network'; save the state"):
        read_network(CHECKPOINTS / "module.pt")
    with pytest.raises(UserError) as caught:
        read_network(CHECKPOINTS / "training.pt", key="netX")
    assert str(caught.value) == (
        f"{CHECKPOINTS / 'training.pt'}: --key=netX names no network there; give one of netG (a generator of 16 px), "
        "netD (a discriminator of 16 px), netG_ema (a generator of 16 px)"
    )


def written(path, networks):
    """A checkpoint as .safetensors, which knows no dicts: names begin with the key."""
    flat = {f"{key}.{name}": array for key, arrays in networks.items() for name, array in arrays.items()}
    safetensors.numpy.save_file(flat, path)
    return path


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ({"gen_a": "netG16.pth", "gen_b": "netG16.pth"}, "gen_a (a generator of 16 px), gen_b (a gen"),
        ({"D_x": "netD64_critic.zip", "D_y": "netD64_critic.zip"}, "D_x (a discriminator of 64 px without b"),
        (
            {"netG": None, "netD": "netD64_critic.zip"},
            "netD (a discriminator of 64 px without batch norm), netG (no netw",
        ),
    ],
)
def test_of_several_networks_that_can_be_meant_all_are_listed(networks, says, tmp_path):
    unknown = {"main.0.weight": np.zeros((3, 3), np.float32)}
    contents = {key: state(name) if name else unknown for key, name in networks.items()}
    path = written(tmp_path / "several.safetensors", contents)
    with pytest.raises(UserError) as caught:
        read_network(path)
    assert f"{path}: holds {says}" in str(caught.value)
    assert f"; choose one: medgan import-torch {path} --key=KEY --out=FOLDER" in str(caught.value)
    key = list(networks)[1]
    assert read_network(path, key=key).key == key


def test_blocks_of_one_network_are_no_networks(tmp_path):
    """The rest of a generator looks like a smaller one; the first layer is apart."""
    arrays = {("head." if name.startswith("main.0.") else "") + name: array for name, array in state(G).items()}
    path = tmp_path / "parts.safetensors"
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match="'head.main.0.weight' and 'main.1.bias' are not of one Sequential"):
        read_network(path)


SAME = {
    "no prefix": lambda name, a: {name.removeprefix("main."): a},
    "DataParallel": lambda name, a: {"module." + name: a},
    "torch.compile": lambda name, a: {"_orig_mod." + name: a},
    "an average": lambda name, a: {"module." + name: a, "n_averaged": np.array(3)},
    "a bias of zeros before a norm": lambda name, a: {name: a, "main.0.bias": np.zeros(16, np.float32)},
    "a long prefix": lambda name, a: {"module.netG.layers_2." + name.removeprefix("main."): a},
    "no counters, as before 0.4.1": lambda name, a: {} if "tracked" in name else {name: a},
    "float16": lambda name, a: {name: a if "tracked" in name else a.astype(np.float16)},  # exact for these weights
    "float64": lambda name, a: {name: a if "tracked" in name else a.astype(np.float64)},
}


@pytest.mark.parametrize("case", SAME)
def test_other_names_and_types_of_the_same_network(case):
    arrays = {}
    for name, array in state("netG64.zip").items():
        arrays |= SAME[case](name, array)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(arrays).variables, network("netG64.zip").variables)


def changed(file, name, change):
    return {**state(file), name: change(state(file)[name])}


def without(file, *names):
    return {name: array for name, array in state(file).items() if name not in names}


def of(value):
    def change(array):
        array = array.copy()
        array.flat[-1] = value
        return array

    return change


G, D, S = "netG64.zip", "netD256.zip", "netD64_spectral.zip"
LAST = 15  # of the discriminator at 256 px, batch normalisation before its last convolution
OTHERS = {
    "nothing": (lambda: {}, "has 0 convolutions"),
    "a classifier": (lambda: {"features.0.weight": np.zeros((64, 3, 11, 11)), "classifier.1.weight": np.zeros((9, 9))},
                     "'features.0.weight' and 'classifier.1.weight' are not of one Sequential"),
    "residual blocks": (lambda: {"conv1.weight": np.zeros((64, 3, 7, 7))}, "'conv1.weight' is of no layer"),
    "8 px": (lambda: {f"main.{n}.weight": np.zeros((2, 2, 4, 4)) for n in (0, 3)}, "has 2 convolutions"),
    "1024 px": (lambda: {f"main.{3 * n}.weight": np.zeros((2, 2, 4, 4)) for n in range(9)}, "has 9 convolutions"),
    "no first layer": (lambda: without(G, "main.0.weight"), "no convolution first"),
    "wide kernel": (lambda: changed(G, "main.3.weight", lambda a: np.pad(a, ((0, 0), (0, 0), (0, 1), (0, 1)))),
                    "'main.3.weight' is of shape (16, 8, 5, 5), and a generator of 64 px of 2 feature maps has "
                    "(16, 8, 4, 4)"),
    "widths that do not halve": (lambda: changed(G, "main.6.weight", lambda a: a[:, :3]), "'main.6.weight' is of"),
    "odd width": (lambda: changed(G, "main.0.weight", lambda a: a[:, :13]), "13 feature maps cannot be halved 3 times"),
    "two channels": (lambda: changed(G, "main.12.weight", lambda a: a[:, :2]), "images of 2 channels"),
    "two channels in": (lambda: changed(D, "main.0.weight", lambda a: a.repeat(2, 1)), "images of 2 channels"),
    "no latent": (lambda: changed(G, "main.0.weight", lambda a: a[:0]), "without numbers"),
    "no maps": (lambda: changed(G, "main.0.weight", lambda a: a[:, :0]), "without numbers"),
    "two scores": (lambda: changed(D, f"main.{LAST + 2}.weight", lambda a: a.repeat(2, 0)), "(2, 32, 4, 4), and a "),
    "bias": (lambda: {**state(D), "main.0.bias": np.zeros(1, np.float32)}, "has the entry 'main.0.bias', and a discr"),
    "bias of others": (lambda: {**state(G), "main.3.bias": np.zeros(9, np.float32)}, "'main.3.bias' is of shape (9,)"),
    "bias in words": (lambda: {**state(G), "main.12.bias": np.zeros(3, int)}, "'main.12.bias' is of int64, not of fl"),
    "1x1 of others": (lambda: changed(G, "main.12.weight", lambda a: a[:1, :, :1, :1]), "'main.12.weight' is of shape "
                      "(1, 3, 1, 1), and a generator of 32 px with a 1x1 last layer of"),
    "another layer": (lambda: {**state(G), "main.14.weight": np.zeros(3, np.float32)}, "the entry 'main.14.weight'"),
    "another counter": (lambda: {**state(G), "main.0.num_batches_tracked": np.zeros(())}, "the entry 'main.0.num_"),
    "an entry twice": (lambda: {**state(G), "main.00.weight": state(G)["main.0.weight"]}, "are the same"),
    "two networks": (lambda: {**state(G), "dis.0.weight": np.zeros((2, 3, 4, 4))}, "are not of one Sequential"),
    "no bias of a norm": (lambda: without(G, "main.4.bias"), "has no entry 'main.4.bias', and a generator of 64 px"),
    "no statistics": (lambda: without(G, "main.4.running_mean", "main.4.running_var"), "entry 'main.4.running_mean'"),
    "one norm less": (lambda: {n: a for n, a in state(D).items() if not n.startswith("main.6.")}, "entry 'main.6.weig"),
    "spectral norm of one": (lambda: without(S, "main.2.weight_u"), "'main.2.weight_u', and a discriminator of 64 px "
                             "with spectral norm has one"),
    "dropout between": (lambda: {n.replace(f".{LAST + 2}.", f".{LAST + 3}."): a for n, a in state(D).items()},
                        f"has the entry 'main.{LAST + 3}.weight'"),
    "not finite": (lambda: changed(G, "main.3.weight", of(np.inf)), "'main.3.weight' is not finite"),
    "beyond float32": (lambda: changed(G, "main.3.weight", lambda a: a.astype(float) + 1e300), "is not finite"),
    "negative variance": (lambda: changed(G, "main.4.running_var", of(-1)), "'main.4.running_var' is negative"),
    "integers": (lambda: changed(G, "main.4.bias", lambda a: a.astype(np.int64)), "is of int64, not of floating"),
    "quantised": (lambda: changed(G, "main.3.weight", lambda a: a.astype(np.int8)), "is of int8, not of floating"),
    "a strange name": (lambda: {"a\n" * 100: np.zeros(3)}, r"'a\na\na\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_networks_are_refused(case):
    make, says = OTHERS[case]
    with pytest.raises(ValueError) as caught:
        from_state_dict(make())
    assert says in str(caught.value)
    assert len(str(caught.value)) < 250


def test_refusals_of_files_name_them_and_the_remedy(tmp_path):
    path = published.FOLDER.parent / "torch_files/zip.pth"
    with pytest.raises(UserError) as caught:
        read_network(path)
    assert str(caught.value) == (
        f"{path}: its entry 'shared.whole' is of no layer of a Sequential; give a generator or discriminator of DCGAN "
        "or SNGAN: one Sequential of 4x4 kernels, 16 to 512 px"
    )


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_a_generator_that_upsamples_is_exported_as_one_with_transposed_convolutions(upsample):
    module = Generator(16, 3, 4, upsample=upsample)
    latents = jax.random.normal(jax.random.key(1), (3, 8))
    variables = jax.jit(lambda: module.init(jax.random.key(0), latents, training=True))()
    found = from_state_dict(to_state_dict(module, variables))
    assert found.module == Generator(16, 3, 4)
    images, same = (
        jax.jit(functools.partial(m.apply, training=False))(v, latents)
        for m, v in ((module, variables), (found.module, found.variables))
    )
    assert float(np.std(images)) > 1e-4
    np.testing.assert_allclose(same, images, rtol=1e-4, atol=1e-8)


def test_networks_that_pytorch_has_no_class_for():
    for module, says in (
        (ResidualGenerator(32), "a ResidualGenerator"),
        (Generator(16, num_classes=2), "a class-conditional"),
    ):
        with pytest.raises(ValueError, match=f"holds {says}"):
            to_state_dict(module, {})
