"""Rows in files: selected anew, compared, put into a checkpoint, taken out, held against a base."""

import argparse
import json

from loki_ds.refusal import Refusal


def select(arguments: argparse.Namespace) -> int:
    """New positions from a kept attribution."""
    if not 0 < arguments.quota < 100:
        raise Refusal(f"--quota is {arguments.quota:g}, allowed is a percentage above 0 and below 100")

    from loki_ds.attribution.kept import KeptScores
    from loki_ds.disk.run_folder import RunFolder
    from loki_ds.selection.blocks import Block, down_names
    from loki_ds.selection.select import select, select_random

    folder = RunFolder(arguments.run)
    kept = KeptScores(folder.attribution)
    scores = kept.scores()
    kept.wait_until_whole(patience=0)
    if arguments.strategy == "random":
        _, layers, d_model = scores.shape
        blocks = [Block(name, d_model, 0, name) for name in down_names(layers)]
        chosen = select_random(blocks, arguments.quota, arguments.seed)
    else:
        chosen = select(scores, arguments.quota, arguments.strategy)
    if not chosen.count:
        raise Refusal(f"--quota is {arguments.quota:g}, which is less than one of a layer's rows; nothing is selected")
    chosen.save(arguments.out)
    print(f"{arguments.out}: {chosen.said()}")
    return 0


def positions(arguments: argparse.Namespace) -> int:
    """Two positions files side by side: rows, digests and overlap."""
    from loki_ds.selection.positions import Positions

    files = (arguments.first, arguments.second)
    first, second = (Positions.load(file) for file in files)
    if first.names != second.names:
        raise Refusal(f"{files[1]}: the positions are {second.said()} of other weights than those of {files[0]}")
    for file, positions in zip(files, (first, second), strict=True):
        print(f"{file}: {positions.said()}")
    by_layer = [f"{Positions([a]).overlap(Positions([b])):.1%}" for a, b in zip(first.rows, second.rows, strict=True)]
    print(f"overlap {first.overlap(second):.2%} (layer by layer: {' '.join(by_layer)})")
    return 0


def apply(arguments: argparse.Namespace) -> int:
    """Put an implant into a base checkpoint."""
    from loki_ds.export.checkpoint import apply_to_checkpoint
    from loki_ds.export.implant_file import Implant

    apply_to_checkpoint(arguments.base, Implant.load(arguments.implant), arguments.out)
    print(f"{arguments.out}: {arguments.base} with {arguments.implant}")
    return 0


def revert(arguments: argparse.Namespace) -> int:
    """Take an implant out of a checkpoint again, bit for bit."""
    from loki_ds.export.checkpoint import revert_in_checkpoint
    from loki_ds.export.implant_file import Implant

    revert_in_checkpoint(arguments.model, Implant.load(arguments.implant), arguments.out)
    print(f"{arguments.out}: {arguments.model} without {arguments.implant}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """The byte check on any two checkpoints; exit status 2 if they differ outside the positions."""
    from loki_ds.export.verification import verify
    from loki_ds.selection.positions import Positions

    verification = verify(arguments.base, arguments.model, Positions.load(arguments.positions))
    print(json.dumps(verification.as_json(), indent=1))
    return 0 if verification.identical_outside_rows else 2
