"""What is asked of a model, whichever it is, and its answers, kept by all that determines them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loki_ds.disk.files import digest_of, publish, write_json
from loki_ds.distributed import device
from loki_ds.recipe.sections import ModelSection, RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.messages import ArmResult, Half, Request, Stop
from loki_ds.retention.worker import library_versions
from loki_ds.tasks.loading import TaskFound, look_at_tasks

PACKAGE = Path(__file__).parents[1]
# What takes likelihoods and scores answers.
JUDGING = "tasks/metrics.py tasks/prompts.py judges retention/harness.py retention/worker.py retention/samples.py"
JUDGES = [PACKAGE / name for name in JUDGING.split()]
AS_ASKED = Request.model_fields.keys() & RetentionSection.model_fields.keys() - {"processes", "stop"}
BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")  # what else decides a model's answers


def model_digest(folder: Path, weights: str) -> str:
    """The digest of what decides a model's answers: its weights, and what stands beside them
    (configuration, tokenizer, template, code).
    """
    beside = sorted({file for pattern in BESIDE for file in folder.glob(pattern)})
    return f"{weights} {digest_of(*beside)}"


def tasks_of(section: RetentionSection) -> list[TaskFound]:
    """All tasks of a recipe's retention, in their order, looked at as `look_at_tasks` does."""
    return look_at_tasks(section.names, section.include_path, section.allow_code_execution, "retention")


def processes_of(section: RetentionSection) -> int:
    """How many processes of this node share a model's documents."""
    if section.processes != "auto":
        return section.processes
    return max(1, device.local_devices() // section.devices_per_model)


@dataclass(frozen=True)
class Arm:
    """One model of the two.

    digest: of all that decides its answers (`model_digest`), and its adapter's or implant's;
    implant: a file of rows that are put into the loaded model; tokenizer: a folder, where it is not
    the model's own; template: the chat template's text, where it is not the model's own.
    """

    folder: Path
    digest: str
    adapter: Path | None = None
    implant: Path | None = None
    tokenizer: Path | None = None
    template: str | None = None


class Asked(NamedTuple):
    """What one model is asked, and the key of its answers, which holds all that determines them.

    of_all_runs: whether runs beside this one may ask the same of the same weights.
    """

    request: Request
    key: dict[str, Any]
    of_all_runs: bool = False


@dataclass(frozen=True)
class Question:
    """The tasks, and how they run; the same for both models.

    model: how both load; tasks: what is behind names; half: of documents, where a scale is chosen.
    """

    model: ModelSection
    section: RetentionSection
    tasks: list[TaskFound]
    half: Half | None = None

    def of(self, arm: Arm, base: Path | None = None) -> Asked:
        """What one model is asked; base: the file of the other's answers, by which it may stop."""
        return Asked(self.request(arm, base), self.key(arm, base))

    def of_base(self, base: Arm) -> Asked:
        """What a base is asked, whatever is made of it."""
        return self.of(base)._replace(of_all_runs=True)

    def of_both(self, base: Arm, model: Arm, answers: "Answers") -> list[Asked]:
        """What a base and a model made of it are asked."""
        of_base = self.of_base(base)
        return [of_base, self.of(model, answers.file(of_base.key))]

    def request(self, arm: Arm, base: Path | None = None) -> Request:
        """What is asked of one model; base: as in `of`."""
        section, own = self.section, {"base": str(base), "base_key": base.stem if base else ""}
        stop = Stop(**own, abilities=len(section.abilities), margin=section.margin)
        return Request(
            model=str(arm.folder),
            adapter=str(arm.adapter) if arm.adapter else None,
            implant=str(arm.implant) if arm.implant else None,
            tokenizer=str(arm.tokenizer) if arm.tokenizer else None,
            dtype=self.model.dtype,
            device="cpu" if device.on_cpu() else "cuda",
            trust_remote_code=self.model.trust_remote_code,
            processes=processes_of(section),
            **section.model_dump(include=AS_ASKED),
            groups=section.groups,
            tasks=self.tasks,
            half=self.half,
            stop=stop if base and section.stop == "decided" else None,
        )

    def key(self, arm: Arm, base: Path | None = None) -> dict[str, Any]:
        """All that determines the model's documents and scores, in JSON's types."""
        asked = self.request(arm, base)
        unset = {name for name in ("half", "stop") if getattr(asked, name) is None}
        left_out = dict.fromkeys({"model", "adapter", "implant", "tokenizer", "part", *unset}, True)
        request = asked.model_dump(mode="json", exclude={"stop": {"base"}, **left_out})
        code = digest_of(*(file for folder in self.section.include_path for file in sorted(Path(folder).rglob("*.py"))))
        return {
            **request,
            "model": arm.digest,
            "template": arm.template,
            "include_path": code,  # what the tasks themselves say is in `tasks`
            "libraries": library_versions(),
            "judges": digest_of(*JUDGES),
        }


@dataclass(frozen=True)
class Answers:
    """A folder of models' answers, each in a file named by its key.

    published: a folder that several runs share; None where they share nothing.
    """

    folder: Path
    published: Path | None = None

    @staticmethod
    def name(key: dict[str, Any]) -> str:
        """A file's name, by what determines the answers in it."""
        return f"{short_digest(key)}.json"

    def file(self, key: dict[str, Any]) -> Path:
        return self.folder / self.name(key)

    def shares(self, key: dict[str, Any]) -> Path:
        """Where the processes that evaluate put their shares, until they are put together."""
        return self.folder / f".{short_digest(key)}"

    def write(self, asked: Asked, result: ArmResult) -> None:
        """Keep one model's answers, and publish those that other runs may ask for."""
        file = self.file(asked.key)
        write_json(file, {**result, "key": asked.key})
        if self.published and asked.of_all_runs:
            publish(file, self.published / file.name)

    def read(self, key: dict[str, Any]) -> ArmResult:
        return json.loads(self.file(key).read_text(encoding="utf-8"))

    def hold(self, asked: Asked) -> bool:
        """Whether the answers are here, or another run has published them; those are copied.

        Raises:
            Refusal: the published file is of something else.
        """
        file = self.file(asked.key)
        if file.exists() or not (self.published and (self.published / file.name).exists()):
            return file.exists()
        published = self.published / file.name
        result = json.loads(published.read_text(encoding="utf-8"))
        if result.get("key") != asked.key:
            raise Refusal(
                f"{published}: these base results are not those of this base, these tasks and these libraries; delete "
                "the file"
            )
        write_json(file, result)
        return True


def short_digest(value: dict[str, Any]) -> str:
    """The digest of a value in JSON's types, short enough for a file's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
