"""Makes a checkpoint folder of a generator or discriminator that PyTorch saved.

    medgan import-torch netG.pth --out=generator

Takes a state dict of DCGAN's or SNGAN's generator or discriminator, as `torch.save` or safetensors writes it, or the
zip archive in which it was distributed. Of a training's checkpoint with several networks it takes the generator: its
moving average, where a key says "ema". --key chooses another. PyTorch is not needed, and nothing in the file is
executed. `medgan sample` and `medgan evaluate` also take the file itself.
"""

import shlex
from pathlib import Path

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError
from medgan_jax.files import is_litter


def main(argv: list[str]) -> None:
    """Imports what the command line names; UserError when the file is none of those, or the folder is not empty."""
    parser = ArgumentParser(prog="medgan import-torch", description=__doc__.splitlines()[0])
    parser.add_argument("file", action=PathFlag, help="state dict (.pth, .safetensors), or a .zip of one")
    parser.add_argument("--key", default="", help="which network, of a checkpoint with several: netG, generator, ...")
    parser.add_argument("--out", action=PathFlag, required=True, help="folder to make; refused if not empty")
    args = parser.parse_args(argv)

    from medgan_jax.checkpoint import Checkpoints, save_discriminator, save_generator
    from medgan_jax.compat.torch.convert import described, read_network
    from medgan_jax.models.dcgan import Generator

    path, out = Path(args.file), Path(args.out)
    if not args.out or (out.exists() and not out.is_dir()):
        raise UserError(f"--out={args.out}: is no folder; give the name of one")
    if out.is_dir() and not all(is_litter(entry.name) for entry in out.iterdir()):
        raise UserError(f"--out={args.out}: is not empty; give another folder")
    network = read_network(path, key=args.key)
    module, record = network.module, {"imported_from": path.name}
    checkpoints = Checkpoints(out, keep=1)
    if isinstance(module, Generator):
        save_generator(checkpoints, 0, network.variables, module, network.inputs, record)
        inputs = f"latent_dim={network.inputs}, channels={module.channels}"
        following = "sample --checkpoint={} --out=images --num_images=64"
    else:
        save_discriminator(checkpoints, 0, network.variables, module, network.inputs, record)
        inputs, following = f"channels={network.inputs}", "train ... --config.init_from={}"
    checkpoints.close()
    place = f"{path}, {network.key}" if network.key else str(path)
    print(f"{place}: {described(module)}; features={module.features}, {inputs}")
    print(f"wrote {args.out}; next: medgan {following.format(shlex.quote(args.out))}")
