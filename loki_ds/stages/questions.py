"""The models that a run asks, on which nodes, and where their answers are kept."""

import hashlib
from dataclasses import replace
from pathlib import Path

from loki_ds.disk.files import digest_of, weights_digest, written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import ranks
from loki_ds.distributed.launcher import local_rank, local_size
from loki_ds.distributed.shared_folder import SharedFolder
from loki_ds.export.checkpoint import copy_files, put_template
from loki_ds.model.files import files_beside
from loki_ds.recipe.sections import RetentionSection
from loki_ds.retention.evaluation import Nodes
from loki_ds.retention.question import Answers, Arm, model_digest, processes_of
from loki_ds.stages.check import Checked


class Arms:
    """The models of a run. Where it has a template of its own, all of them read the same text by
    it, with a tokenizer that is written beside their answers. Rank 0's work.
    """

    def __init__(self, checked: Checked, folder: RunFolder) -> None:
        self.template = checked.template
        self.tokenizer = _tokenizer(checked.template, checked.base.folder, folder) if checked.template else None
        self.base = self._arm(checked.base.folder, checked.base.digest)

    def model(self, folder: Path) -> Arm:
        """A model that the run made."""
        return self._arm(folder, weights_digest(folder))

    def implanted(self, implant: Path) -> Arm:
        """The base with an implant's rows put into it once it is loaded."""
        return replace(self.base, digest=f"{self.base.digest} {digest_of(implant)}", implant=implant)

    def _arm(self, folder: Path, weights: str) -> Arm:
        return Arm(folder, model_digest(folder, weights), tokenizer=self.tokenizer, template=self.template)


def _tokenizer(template: str, base: Path, folder: RunFolder) -> Path:
    """The base's tokenizer with the template that trains, in a folder of its own and its name."""
    place = folder.retention / f"tokenizer-{hashlib.sha256(template.encode()).hexdigest()[:16]}"
    if not place.exists():
        with written_whole(place) as aside:
            aside.mkdir()
            copy_files(files_beside(base), base, aside)
            put_template(template, aside)
    return place


def node_of_rank(section: RetentionSection, shared: SharedFolder) -> Nodes | None:
    """This rank's node among those that evaluate, for its first rank: every node where all see the
    run folder, else the first one alone; None for ranks that have nothing to do. All ranks call it.
    """
    processes = ranks.all_gather(processes_of(section))[:: local_size()]
    if shared.by_all and local_rank() == 0:
        return Nodes(ranks.rank() // local_size(), tuple(processes))
    return Nodes() if ranks.rank() == 0 else None


def answers_of_run(folder: RunFolder) -> Answers:
    """A run's answers; runs beside it that ask the same of the same weights share the base's."""
    return Answers(folder.retention / "answers", folder.root.parent / ".base-results")
