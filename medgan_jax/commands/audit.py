"""Tells whether those who get a generator, or its discriminator, could find out which images it was trained on.

medgan audit --checkpoint=runs/melanoma
medgan audit --checkpoint=runs/melanoma --num_images=10000 --out=audit.json

Before a generator of private images is given away. Two attackers are given the run's training images and what it held
out: one has the generator, and looks for the fake nearest to each; one has the discriminator, and asks it. See
docs/privacy.md. --data.FIELD says where the images of the training are now.
"""

import dataclasses
from typing import Any

from absl import flags

from medgan_jax import cli


def main(argv: list[str]) -> None:
    """Parses the flags, attacks, and prints."""
    values = flags.FlagValues()
    argv = cli.define_data_flags(values, argv, "where the images of the training are now")
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("checkpoint", None, "a workdir, or a generator folder of a run", **define)
    flags.DEFINE_integer("num_images", 2000, "fakes among which the nearest is looked for", 1, 100_000, **define)
    flags.DEFINE_integer("seed", 0, "decides fakes and resampling", 0, 2**32 - 1, **define)
    flags.DEFINE_string("out", None, "a JSON file for the figures", **define)
    cli.parse_flags(values, argv, doc=__doc__)
    checkpoint = cli.given_path("checkpoint", values.checkpoint)
    out = None if values.out is None else cli.given_path("out", values.out)

    from medgan_jax.auditing import Attack, audit
    from medgan_jax.sharding import announce_devices
    from medgan_jax.workdir import write_json

    announce_devices()
    found = audit(checkpoint, values.data.to_dict(), num_fakes=values.num_images, seed=values.seed)

    def line(attack: Attack) -> str:
        text = f"advantage {_spoken(attack.advantage)}"
        if attack.at_low_rate:
            text += f", {_spoken(attack.at_low_rate)} of training images at 1 % of false alarms"
        return f"{text}: {attack.verdict}"

    print(f"{found.title}: {found.training} training images, {found.held_out} held out")
    print(f"who has the generator, by {found.num_fakes} fakes: {line(found.generator)}")
    print(f"who has the discriminator: {line(found.discriminator) if found.discriminator else 'the run has none'}")
    print("advantage: how much more often than wrong the attacker is right; 0 is guessing, 1 certainty; 95 % intervals")
    if out is not None:
        write_json(out, {**dataclasses.asdict(found), "seed": values.seed})


def _spoken(estimate: Any) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
