"""What the base says to prompts: a task of lm-eval's, made in `rehearsal/` and asked by the
processes that evaluate.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from loki_ds.distributed import ranks
from loki_ds.recipe.sections import TaskGroup
from loki_ds.retention.question import Answers, Asked, Question, tasks_of
from loki_ds.stages.ask_base import have_base_answer
from loki_ds.stages.check import Checked
from loki_ds.stages.questions import Arms
from loki_ds.stages.run import Run

TASK = "base_says"  # the name of what lm-eval is given


def base_says(
    run: Run, checked: Checked, name: str, prompts: Sequence[str], most_tokens: int, temperature: float | None = None
) -> list[str]:
    """What the base says to each prompt, as likely as can be or drawn; on all ranks.

    name: of these prompts among all that it is given.
    """

    def asked_of_base() -> Asked:
        folder = run.folder.rehearsal / "tasks" / name
        _write_task(folder, prompts, most_tokens, temperature)
        group = TaskGroup(tasks=[TASK], num_fewshot=0, apply_chat_template=True)
        changes = {"abilities": [group], "new_task": None, "include_path": [str(folder)], "stop": "never"}
        section = run.recipe.retention.model_copy(update=changes)
        return Question(run.recipe.model, section, tasks_of(section)).of(Arms(checked, run.folder).base)

    if not prompts:
        return []
    asked, answers = ranks.on_first_rank(asked_of_base), Answers(run.folder.rehearsal / "answers")
    have_base_answer(run, [asked], answers, f"rehearse, {name}")
    samples = ranks.on_first_rank(lambda: answers.read(asked.key)["tasks"][TASK]["samples"])
    return [sample["answer"] for sample in samples]


def _write_task(folder: Path, prompts: Sequence[str], most_tokens: int, temperature: float | None) -> None:
    """A task of lm-eval's that puts prompts as they are written."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
    rows = "".join(json.dumps({"prompt": prompt, "number": number}) + "\n" for number, prompt in enumerate(prompts))
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    (folder / "written.py").write_text("from loki_ds.judges.as_written import AsWritten\n")
    task = f"task: {TASK}\nclass: !function written.AsWritten\n"
    settings = {
        "dataset_kwargs": {"path": str(folder.resolve() / "prompts.jsonl")},
        "generation_kwargs": {"until": [], "max_gen_toks": most_tokens, **drawn},
    }
    (folder / f"{TASK}.yaml").write_text(task + yaml.safe_dump(settings))
