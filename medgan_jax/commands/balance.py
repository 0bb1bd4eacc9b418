"""Makes a training set with the counts asked for: real images, and generated ones where real ones are short.

medgan balance --checkpoint=runs/both --out=balanced                  as many of each class as of the largest
medgan balance --checkpoint=runs/melanoma --out=balanced              the same, from a run of the scarce class alone
medgan balance --checkpoint=runs/both --out=balanced --synthetic_of=all     and the same share of fakes in each
medgan balance --checkpoint=malignant=runs/m --checkpoint=benign=runs/b --out=balanced --target=malignant=300,benign=500
medgan balance --checkpoint=malignant=netG.pth --out=balanced --data.path=lesions      an imported network

The real images are those that the runs were trained on; what they held out is left out. Fakes that are copies of a
training image are replaced. OUT/labels.csv has the origin of each image, and data.source=csv reads it. Started again,
the same command goes on where it stopped. See docs/balance.md.

--data.FIELD says where the images are now, or how to read them, as --config.data.FIELD does for train.py.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from medgan_jax import cli
from medgan_jax.errors import UserError

if TYPE_CHECKING:
    from medgan_jax.balancing.counts import Counts
    from medgan_jax.balancing.draw import Draw


def main(argv: list[str]) -> None:
    """Parses the flags, opens generators and images, and writes the set."""
    values = flags.FlagValues()
    argv = cli.define_data_flags(values, argv, "where the real images are, or how to read them")
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_multi_string(
        "checkpoint", [], "a workdir, generator folder or .pth file; may be given for each class, also as LABEL=PATH, "
        "which is needed where nothing says the class", **define,
    )  # fmt: skip
    flags.DEFINE_string("out", None, "the folder of the set; made when missing", **define)
    flags.DEFINE_string(
        "target", "equal", "equal: as many of each class as of the largest; LABEL=N,LABEL=N: images of a class, reals "
        "and fakes together; or a number: fakes for each real", **define,
    )  # fmt: skip
    flags.DEFINE_enum(
        "synthetic_of", "scarce", ("scarce", "all"), "which classes get fakes: those short of the target, or all, "
        "the same share of each, so that being a fake tells nothing of the class; this leaves out reals", **define,
    )  # fmt: skip
    flags.DEFINE_enum(
        "reals", "link", ("link", "copy", "list"), "link to the files of reals, copy them, or list them in labels.csv "
        "alone; reals that are no files, or whose files would be read otherwise (DICOM, several frames, 16 bits, "
        "data.window, data.fit), are written as PNG files, but for list", **define,
    )  # fmt: skip
    flags.DEFINE_bool(
        "agree", False, "also replace fakes that a classifier of the real images takes for another class", **define
    )
    flags.DEFINE_integer("seed", 0, "decides the fakes, and which reals are left out", 0, 2**32 - 1, **define)
    cli.parse_flags(values, argv, doc=__doc__)
    out = cli.given_path("out", values.out)
    if not values.checkpoint:
        raise UserError("give --checkpoint=...")
    checkpoints = list(values.checkpoint)

    from medgan_jax.balancing.counts import choose_counts
    from medgan_jax.balancing.sources import open_sources
    from medgan_jax.balancing.write import LABELS, LISTED, write_set
    from medgan_jax.models.efficientnet_lite import load_efficientnet_lite
    from medgan_jax.sharding import data_mesh

    load_efficientnet_lite("lite1")  # which the search for copies needs: where it is missing, nothing is drawn
    drawers, reals = open_sources(checkpoints, values.data.to_dict(), data_mesh())
    counts = choose_counts(values.target, reals.counts, of_all=values.synthetic_of == "all")
    found = write_set(
        out, drawers, reals, counts,
        seed=values.seed, placing=values.reals, agree=values.agree, mesh=data_mesh(), say=print,
    )  # fmt: skip
    print(_table(counts, found, agree=values.agree))
    size = reals.images.shape[1]
    if values.reals == LISTED:
        print(f"\n{out / LABELS} has the paths of reals and fakes; the fakes have {size} px")
        return
    folder = shlex.quote(str(out))
    print(f"\n{out / LABELS} has the origin of each image. To train on them, at the size of the fakes:")
    print(f"  --config.data.source=csv --config.data.path={folder} --config.data.labels_csv={folder}/{LABELS} \\")
    print("  --config.data.group_column=group --config.data.include='*' --config.data.allow_synthetic=True \\")
    print(f"  --config.image_size={size}")


def _table(counts: "Mapping[str, Counts]", found: "Mapping[str, Sequence[Draw]]", *, agree: bool) -> str:
    """Lines for a terminal: images of each class, and how many fakes were replaced."""
    from medgan_jax.balancing.draw import COPY, OTHER_CLASS

    reasons = {COPY: "copies replaced", **({OTHER_CLASS: "of another class"} if agree else {})}
    rows = [("", "reals", "fakes", *reasons.values())]
    for label, count in counts.items():
        outcomes = Counter(one.outcome for one in found[label])
        rows.append((label, *map(str, count), *(str(outcomes[reason]) for reason in reasons)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in rows
    )
    return "\n".join(lines)
