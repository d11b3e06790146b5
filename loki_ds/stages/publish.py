"""Last, if `training.push_to_hub` asks for it: model, adapter and report go to the hub, once the
model is verified and its report is written.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from loki_ds.checking.findings import Findings
from loki_ds.disk.files import weights_digest
from loki_ds.disk.run_folder import RunFolder
from loki_ds.refusal import Refusal, short

log = logging.getLogger(__name__)


def check_publishing(training: dict[str, Any], folder: RunFolder) -> Findings:
    """Ask the hub who we are, where a run is to be published.

    Raises:
        Refusal: no name is given, or the hub cannot be asked or does not know the token.
    """
    if not training.get("push_to_hub"):
        return []
    name = training.get("hub_model_id")
    if not name:
        raise Refusal("training.push_to_hub is true, and training.hub_model_id is missing: ORG/NAME on the hub")
    try:
        validate_repo_id(name)
        who = _hub(training).whoami()["name"]
    except HFValidationError as error:
        raise Refusal(f"training.hub_model_id is {name!r}: {short(error, 200)}") from None
    except Exception as error:  # noqa: BLE001 (its own classes and those of what it sends by)
        raise Refusal(
            f"training.push_to_hub: the hub does not say who we are; log in where it can be reached (hf auth login), "
            f"or leave it out and publish afterwards: {_command(name, folder.model)}. It said: {short(error, 200)}"
        ) from None
    return [("hub", f"model, adapter and report go to {name} as {who}, once the model is verified")]


def publish(training: dict[str, Any], folder: RunFolder) -> None:
    """Upload what is there, unless the same already is.

    Raises:
        Refusal: the hub took it not, or not all; the sentence has the command that does it by hand.
    """
    if not training.get("push_to_hub"):
        return
    name = str(training["hub_model_id"])
    inputs = {
        "to": name,
        "revision": training.get("hub_revision"),
        "model": weights_digest(folder.model),
        "report": folder.inputs_of("retain"),
    }
    if folder.made_from("publish", inputs):
        log.info("publish: already there, %s", name)
        return
    hub = _hub(training)
    try:
        whole = hub.create_repo(name, private=training.get("hub_private_repo"), exist_ok=True).repo_id
        for source, place in _parts(folder):
            hub.upload_folder(
                repo_id=whole,  # with the user's name, where it was left out
                folder_path=source,
                path_in_repo=place,
                commit_message=f"{place or 'model'}, by loki-ds",
                revision=training.get("hub_revision"),
            )
    except Exception as error:  # noqa: BLE001 (its own classes and those of what it sends by)
        raise Refusal(
            f"{name}: the hub did not take {folder.model}: {short(error, 200)}; all is here still, publish it by "
            f"hand: {_command(name, folder.model)}"
        ) from None
    folder.finish("publish", inputs)
    log.info("publish: %s", name)


def _parts(folder: RunFolder) -> Iterator[tuple[Path, str | None]]:
    """Folders and their places in the repository; the model's files, its card among them, at its
    root.
    """
    yield folder.model, None
    for part in (folder.adapter, folder.report):
        if part.exists():
            yield part, part.name


def _hub(training: dict[str, Any]) -> HfApi:
    return HfApi(token=training.get("hub_token"))


def _command(name: str, model: Path) -> str:
    return f"hf upload {name} {model}"
