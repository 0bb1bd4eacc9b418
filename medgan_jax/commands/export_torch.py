"""Writes a generator or discriminator as a state dict that PyTorch loads.

    medgan export-torch runs/melanoma --out=netG.pth

The file is one that `torch.load(weights_only=True)` reads, or `safetensors.torch.load_file` where its name ends in
.safetensors, and that the published classes of DCGAN and SNGAN load strictly, spectral norm as
`torch.nn.utils.spectral_norm` keeps it. PyTorch is not needed.
"""

from pathlib import Path

from medgan_jax.cli import PathFlag
from medgan_jax.errors import ArgumentParser, UserError


def main(argv: list[str]) -> None:
    """Exports what the command line names.

    Raises UserError when there is no such network, PyTorch's classes have none like it, or the file exists.
    """
    parser = ArgumentParser(prog="medgan export-torch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", action=PathFlag, help="a training's workdir, or a generator or discriminator folder"
    )
    parser.add_argument("--out", action=PathFlag, required=True, help="file to write: netG.pth or netG.safetensors")
    parser.add_argument(
        "--network",
        choices=("generator", "discriminator"),
        help="which one; by default the generator where there is one",
    )
    args = parser.parse_args(argv)

    from medgan_jax.checkpoint import TrainedGenerator, load_discriminator, load_generator, load_networks
    from medgan_jax.compat.torch.convert import to_state_dict
    from medgan_jax.compat.torch.write import is_safetensors, write_state_dict
    from medgan_jax.sharding import data_mesh, replicated

    out = Path(args.out)
    if args.out.endswith("/"):
        raise UserError(f"--out={args.out}: is the name of a folder; give that of a new file")
    if not args.out or out.exists():
        raise UserError(f"--out={args.out}: exists already; give the name of a new file")
    path, sharding = Path(args.checkpoint), replicated(data_mesh())
    if args.network:
        load = load_generator if args.network == "generator" else load_discriminator
        network = load(path, sharding)
    else:
        network = load_networks(path, sharding)[0]
    try:
        state = to_state_dict(network.module, network.variables)
    except ValueError as error:
        raise UserError(
            f"{args.checkpoint}: {error}; draw its images with medgan sample, or train an unconditional dcgan or sngan"
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict(out, state)
    kind = "generator" if isinstance(network, TrainedGenerator) else "discriminator"
    print(f"wrote {args.out}: the {kind} of step {network.step}; in PyTorch:")
    read = "safetensors.torch.load_file({!r})" if is_safetensors(out) else "torch.load({!r}, weights_only=True)"
    print(f"  {kind}.load_state_dict({read.format(args.out)})")
