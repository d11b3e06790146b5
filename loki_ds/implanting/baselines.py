"""What LoKI's rows are compared with: PEFT's adapters (LoRA, DoRA, PiSSA)."""

from peft import LoraConfig

from loki_ds.recipe.implant import PeftSection


def peft_config(section: PeftSection) -> LoraConfig:
    """PEFT's own configuration of a baseline."""
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # PEFT computes with it as it is
        lora_dropout=section.dropout,
        target_modules=section.targets,
        use_dora=section.method == "dora",
        init_lora_weights="pissa" if section.method == "pissa" else True,
        task_type="CAUSAL_LM",
    )
