"""Holding images out of training, for evaluation: by class, and whole patients or lesions at a time.

scikit-learn's StratifiedGroupKFold divides groups too, but by a random order of all of them: one more patient changes
the whole division. Here a group's name alone decides.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from medgan_jax.data.sources import ImageSource
from medgan_jax.errors import UserError

_ORDERS = 100  # of the groups, tried until each class is on both sides


def hold_out(source: ImageSource, fraction: float, ids: Sequence[str]) -> tuple[ImageSource, ImageSource]:
    """Divides a source into what training sees and what it does not.

    Of each class about `fraction` of the images are held out, at least one and never all. All images of one group,
    which is a patient or a lesion, go to the same side, and so do all images of equal content: groups that share
    content are one. A group may hold images of several classes. Groups are taken in an order that follows from their
    names alone, those of scarce classes first, so the same images are held out wherever they lie, and most of them
    still are when others are added.

    Args:
      source: the images; where it has no groups, each image is one.
      fraction: above 0 and below 1.
      ids: what each image is made from, as `ImageSource.content_ids` has it.

    Returns:
      For training, and held out.

    Raises:
      UserError: a class has a single group, so that it cannot be divided; or groups of several classes leave no way
        to have each class on both sides.
    """
    group_of = joined_groups(source, ids)
    groups: dict[str, Counter[str]] = defaultdict(Counter)  # the number of images of each class
    for group, label in zip(group_of, source.labels or ("",) * len(source), strict=True):
        groups[group][label] += 1

    setting = f"data.holdout_fraction={fraction:g}"
    groups_with: dict[str, list[str]] = defaultdict(list)
    for group, counts in groups.items():
        for label in counts:
            groups_with[label].append(group)
    for label, names in sorted(groups_with.items()):
        if len(names) < 2:
            what = f"the images of class {label!r}" if label else "the images"
            raise UserError(
                f"{setting}: {what} in {source.root} are all of one group, {names[0]!r}, where equal images count as "
                "one group; set it to 0, or add images"
            )
    choices = (_choose(groups, fraction, salt) for salt in range(_ORDERS))
    held_out = next((choice for choice in choices if choice), None)
    if held_out is None:
        raise UserError(
            f"{setting}: the {len(groups)} groups in {source.root} hold images of several classes, and no division "
            "was found that leaves each class on both sides; set it to 0, or add images"
        )
    training, apart = (
        source.select([i for i, group in enumerate(group_of) if (group in held_out) == side]) for side in (False, True)
    )
    return training, apart


def hold_out_fold(source: ImageSource, folds: int, fold: int, ids: Sequence[str]) -> tuple[ImageSource, ImageSource]:
    """Divides a source into `folds` parts of about equal numbers of each class, and holds one of them out.

    Groups stay together as in `hold_out`. Those of the scarcest class come first, each to the fold that has the fewest
    images of it so far.

    Args:
      source: the images; where it has no groups, each image is one.
      folds: 2 or more.
      fold: the one to hold out, from 1 to `folds`.
      ids: what each image is made from, as `ImageSource.content_ids` has it.

    Returns:
      For training, and held out.

    Raises:
      UserError: there are too few groups for each fold to hold all classes.
    """
    group_of = joined_groups(source, ids)
    labels = source.labels or ("",) * len(source)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(group_of, labels, strict=True):
        groups[group][label] += 1
    totals = Counter(labels)
    scarcest = {group: min(counts, key=lambda label: (totals[label], label)) for group, counts in groups.items()}
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in sorted(groups, key=lambda group: (totals[scarcest[group]], scarcest[group], _hash(group, 0))):
        label = scarcest[group]
        place = min(range(folds), key=lambda i: (held[i][label], held[i].total(), i))
        held[place].update(groups[group])
        fold_of[group] = place
    if lacking := [label for label in totals if not all(counts[label] for counts in held)]:
        what = f"class {min(lacking)!r}" if source.labels else "the images"
        raise UserError(
            f"data.folds={folds}: {what} in {source.root} has too few groups, where equal images count as one, for "
            "each fold to hold one; lower it, or add images"
        )
    training, apart = (
        source.select([i for i, group in enumerate(group_of) if (fold_of[group] == fold - 1) == side])
        for side in (False, True)
    )
    return training, apart


def joined_groups(source: ImageSource, ids: Sequence[str]) -> list[str]:
    """The group of each image, itself where there are none; groups that share content are one.

    It is called by the least of their names; `ids` as `ImageSource.content_ids` has them.
    """
    names = source.groups or source.names
    parent = {name: name for name in names}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for name, content in zip(names, ids, strict=True):
        least, other = sorted((find(name), find(first.setdefault(content, name))))
        parent[other] = least
    return [find(name) for name in names]


def _choose(groups: dict[str, Counter[str]], fraction: float, salt: int) -> set[str] | None:
    """Names of groups to hold out, given their images by class; None if a class would be on one side only."""
    totals: Counter[str] = Counter()  # images of a class
    groups_left: Counter[str] = Counter()  # in training, with images of a class
    for counts in groups.values():
        totals.update(counts)
        groups_left.update(counts.keys())
    held: Counter[str] = Counter()  # images of a class
    chosen = set()

    def can_leave(group: str) -> bool:
        return all(groups_left[label] > 1 for label in groups[group])

    def choose(group: str) -> None:
        chosen.add(group)
        held.update(groups[group])
        groups_left.subtract(groups[group].keys())

    def choose_for_missing_classes(candidates: list[str]) -> None:
        for label in sorted(totals, key=lambda label: (totals[label], label)):
            if not held[label]:
                fitting = (group for group in candidates if label in groups[group] and can_leave(group))
                if (group := next(fitting, None)) is not None:
                    choose(group)

    order = sorted(groups, key=lambda group: _hash(group, salt))
    if salt:  # the first try, which begins with the shares, left a class out
        choose_for_missing_classes(order)
    # Scarce classes first: the others can reach their share with groups that lack them.
    for group in sorted(order, key=lambda group: min(totals[label] for label in groups[group])):
        counts = groups[group]
        fits = all(held[label] + count / 2 <= fraction * totals[label] for label, count in counts.items())
        if fits and group not in chosen and can_leave(group):
            choose(group)
    choose_for_missing_classes(sorted(order, key=lambda group: groups[group].total()))
    return chosen if all(held[label] for label in totals) else None


def _hash(name: str, salt: int) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), salt=salt.to_bytes(1)).digest()
