"""The retention tasks' prompts, made before any training: what would be cut, or cannot be asked."""

from transformers import PreTrainedTokenizerBase

from loki_ds.checking.findings import Findings
from loki_ds.recipe.sections import RetentionSection
from loki_ds.tasks.loading import task_manager
from loki_ds.tasks.prompts import Asking, look_at_prompts, template_of


def prompts_in_words(section: RetentionSection, tokenizer: PreTrainedTokenizerBase, most: int | None) -> Findings:
    """A line for each task of which prompts are longer than the model was made for.

    most: tokens that the model was made for, None where nobody knows.

    Raises:
        Refusal: a task that cannot be asked as the recipe says.
    """
    template, findings = template_of(tokenizer, section.chat_template_args), []
    manager = task_manager(section.names, section.include_path, "retention")
    for group in section.groups:
        asking = Asking(
            shots=group.num_fewshot,
            chats=group.apply_chat_template,
            seed=section.seed,
            most=most,
            count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            template=template,
        )
        for name, task in manager.load(group.tasks)["tasks"].items():
            prompts = look_at_prompts(name, task, asking)
            if prompts.cut:
                cut = f"{prompts.cut} of {prompts.looked_at} prompts looked at lose their beginning"
                room = f"they have up to {prompts.longest:,} tokens with their answers, the model's room is {most:,}"
                findings.append(("task", f"{name}: {cut}: {room}"))
    return findings
