"""Kept scores: every prompt's attribution in safetensors shards beside a manifest, so that a killed
pass resumes where it was.

Scores are stored in float16 after division by each (prompt, layer)'s largest absolute score, which
is stored in float32: two bytes a node (MMLU's 2,850 prompts on 32 layers of 4,096: 0.75 GB), and
eleven bits where it matters, at the extremes.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loki_ds.attribution.sweep import Swept
from loki_ds.disk.files import write_json, written_whole
from loki_ds.disk.run_folder import check_same_inputs
from loki_ds.refusal import Refusal

PATIENCE = 90.0  # seconds: NFS keeps what it knows of a folder for up to 60


class KeptScores:
    """The folder `attribution/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest.json"

    def open_for(self, inputs: dict[str, Any]) -> None:
        """Begin a pass with these inputs, or resume one.

        Raises:
            Refusal: the folder holds a pass over other inputs.
        """
        if self.manifest.exists():
            check_same_inputs(self.folder, "attribution", self.read()["inputs"], inputs)
        else:
            write_json(self.manifest, {"inputs": inputs})

    def note(self, **facts: Any) -> None:
        """Add facts about the pass (gathers, seconds, versions) to the manifest."""
        write_json(self.manifest, {**self.read(), **facts})

    def read(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            Refusal: it is not one.
        """
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or "inputs" not in manifest:
            raise Refusal(
                f"{self.manifest}: not the manifest of an attribution; delete {self.folder}, and the pass starts anew"
            )
        return manifest

    def done(self) -> set[int]:
        """Indices of the prompts whose scores are there."""
        prompts: set[int] = set()
        for shard in self.shards():
            prompts.update(_read(shard, "prompt")["prompt"].tolist())
        return prompts

    def wait_until_whole(self, patience: float = PATIENCE) -> None:
        """Wait for every planned prompt's scores: over NFS another node's last file may be seen
        a minute late, and rows chosen without it would be chosen from fewer prompts.

        Raises:
            Refusal: after `patience` seconds some are still not there.
        """
        planned = {i for batch in self.read().get("batches", []) for i in batch}
        deadline = time.monotonic() + patience
        while missing := planned - self.done():
            if time.monotonic() > deadline:
                raise Refusal(
                    f"{self.folder}: the scores of {len(missing)} of {len(planned)} prompts are not there (of number "
                    f"{min(missing)}, for one); bring their files back, or start anew in another run folder"
                )
            time.sleep(1)

    def add(self, indices: Sequence[int], swept: Swept) -> None:
        """Keep one batch; `indices` are its prompts' places in the protected set."""
        scale = swept.scores.abs().amax(-1).float().clamp_min(torch.finfo(torch.float32).tiny)
        tensors = {
            "prompt": torch.tensor(list(indices)),
            "scores": (swept.scores / scale[..., None]).half(),
            "scale": scale,
            "target_token": swept.target_token,
            "value": swept.value.float(),
            "residual": swept.residual.float(),
        }
        with written_whole(self.folder / f"scores-{min(indices):06d}.safetensors") as aside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)

    def take(self, name: str, shard: bytes) -> None:
        """Keep a shard that another node wrote."""
        with written_whole(self.folder / name) as aside:
            aside.write_bytes(shard)

    def scores(self, prompts: Sequence[int] | None = None) -> Tensor:
        """Scores `[prompts, layers, d_model]`, float32, of the given prompts in that order, or of
        all in the protected set's order.

        Raises:
            Refusal: nothing is kept there.
        """
        shards = [_read(shard, "prompt", "scores", "scale") for shard in self.shards()]
        if not shards:
            raise Refusal(f"{self.folder}: no kept scores there; run the main job with --until attribute first")
        place = {prompt: i for i, prompt in enumerate(torch.cat([shard["prompt"] for shard in shards]).tolist())}
        rows = [place[prompt] for prompt in (sorted(place) if prompts is None else prompts)]
        return torch.cat([shard["scores"].float() * shard["scale"][..., None] for shard in shards])[rows]

    def residuals(self) -> Tensor:
        """Completeness residuals relative to what there was to explain, `[prompts, layers]`."""
        return self._all("residual") / self._all("value").abs().clamp_min(1e-12)[:, None]

    def _all(self, name: str) -> Tensor:
        shards = [_read(shard, "prompt", name) for shard in self.shards()]
        prompt = torch.cat([shard["prompt"] for shard in shards])
        return torch.cat([shard[name] for shard in shards])[prompt.argsort()]

    def shards(self) -> list[Path]:
        """The files that scores are kept in."""
        return sorted(self.folder.glob("scores-*.safetensors"))


def _read(path: Path, *names: str) -> dict[str, Tensor]:
    """The named tensors of a shard, and no more: its scores are large."""
    try:
        with safe_open(path, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise Refusal(
            f"{path}: not a whole file of scores ({error}); delete it, and the same command scores those prompts again"
        ) from None
