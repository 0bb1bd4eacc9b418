"""A network that PyTorch trained, as a folder of ours.

    python -m medgan_jax.commands.import_torch netG.pth --out=generator

Takes a state dict of DCGAN's or SNGAN's generator or discriminator, as `torch.save` writes it, or the zip archive in
which it was distributed. PyTorch is not needed, and nothing in the file is executed. `sample.py` and `evaluate.py` also
take the file itself.
"""

import os
import shlex
from pathlib import Path

from medgan_jax import cli
from medgan_jax.errors import ArgumentParser, UserError


def main(argv: list[str] | None = None) -> None:
    """Imports what the command line names."""
    parser = ArgumentParser(prog="python -m medgan_jax.commands.import_torch", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=os.path.expanduser, help="state dict (.pth), or a .zip of one")
    parser.add_argument("--out", type=os.path.expanduser, required=True, help="folder to make; refused if not empty")
    args = parser.parse_args(argv)

    from medgan_jax.checkpoint import Checkpoints, save_discriminator, save_generator
    from medgan_jax.compat.torch.convert import read_network
    from medgan_jax.models.dcgan import Generator

    path, out = Path(args.file), Path(args.out)
    if not args.out or (out.exists() and not out.is_dir()):
        raise UserError(f"--out={args.out}: is no folder; give the name of one")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out={args.out}: is not empty; give another folder")
    found = read_network(path)
    module, shown = found.module, shlex.quote(args.out)
    if isinstance(module, Generator):
        save, inputs = save_generator, f"latents of {found.inputs}, {_counted(module.channels, 'channel')}"
        kind, following = "generator", f"python sample.py --checkpoint={shown} --out=images --num_images=64"
    else:
        norms = f"{'with' if module.spectral_norm else 'no'} spectral norm"
        norms += f", {'with' if module.batch_norm else 'no'} batch norm"
        save, inputs = save_discriminator, f"{_counted(found.inputs, 'channel')}, {norms}"
        kind, following = "discriminator", f"python train.py ... --config.init_from={shown}"
    checkpoints = Checkpoints(out, keep=1)
    save(checkpoints, 0, found.variables, module, found.inputs, {"imported_from": path.name})
    checkpoints.close()
    size = module.image_size
    print(f"{path}: a {kind} of {size} x {size} px, {_counted(module.features, 'feature map')}, {inputs}")
    print(f"wrote {args.out}; next: {following}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


if __name__ == "__main__":
    cli.run(main)
