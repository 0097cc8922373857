"""A training's checkpoints: where Ray Train keeps them, what a power cut leaves of them, and their end."""

from __future__ import annotations

import logging
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from jobs.platform import s3, storage
from jobs.platform.uris import absolute, is_s3, join
from model.training import STATE_FILE
from schemas.errors import InputError

logger = logging.getLogger(__name__)


def ray_storage(uri: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Path and file system for Ray Train's checkpoints, from the same AWS settings as everything else.

    The file system asks AWS's usual chain for credentials itself, on every node and anew before they expire. Keys given
    to it here would be pickled into the controller's task specification, which Ray's control store may write to disk, and
    those of a role or of SSO would expire in the middle of a training. Raises InputError for a profile that assumes a role.
    """
    if not is_s3(uri):
        return uri, None
    store: Any = storage.locate(uri)[0]  # it knows where its bucket lies, and credentials that don't do are said
    if s3.assumes_role():
        raise InputError(
            f"{uri}: expected AWS settings that Arrow, which writes a training's checkpoints, knows as well: keys, SSO, "
            "credential_process or the machine's own role; found a profile that assumes a role (role_arn), which it passes over"
        )
    options = {"region": store.config["region"]}
    if endpoint := s3.endpoint():
        scheme, _, host = endpoint.partition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    if certificates := s3.ca_bundle():
        options["tls_ca_file_path"] = certificates
    return uri.removeprefix("s3://"), pyarrow.fs.S3FileSystem(**options)


def list_runs(training_uri: str) -> set[str]:
    """The names of the trainings that lie there."""
    below = absolute(training_uri) + "/"
    # Ray Train leaves empty objects where folders were on S3
    objects = (entry for entry in storage.list_objects(training_uri) if entry.num_bytes)
    paths = (entry.uri.removeprefix(below) for entry in objects)
    return {path.partition("/")[0] for path in paths if "/" in path}


def drop_damaged_checkpoints(run_uri: str) -> None:
    """Ray Train writes its list of checkpoints in place, and settles neither it nor them: what a power cut, or a kill in
    that moment, leaves would end every later try. Of the two that are kept the older one is whole, most likely."""
    uri = join(run_uri, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    try:
        snapshot = storage.read_json(uri)
    except FileNotFoundError:
        return
    listed = [] if snapshot is None else snapshot["checkpoint_results"]
    whole = [
        place
        for place, checkpoint in enumerate(listed)
        if _is_whole(join(run_uri, checkpoint["checkpoint_dir_name"], STATE_FILE))
    ]
    if snapshot is None or (listed and not whole):
        logger.warning("%s: damaged, or its checkpoints are, as by a power cut; this training begins anew", uri)
        storage.delete([uri])
    elif len(whole) < len(listed):
        logger.warning("%s: a checkpoint is damaged, as by a power cut; this training goes on from the other one", uri)
        for name in ("checkpoint_results", "checkpoint_report_indices"):
            snapshot[name] = [snapshot[name][place] for place in whole]
        snapshot["latest_checkpoint_result"] = snapshot["checkpoint_results"][-1]
        storage.write_json(uri, snapshot)


def _is_whole(state_uri: str) -> bool:
    """Whether torch's file, a zip archive, is there with its end. S3 has an object whole or not at all."""
    return storage.exists(state_uri) if is_s3(state_uri) else zipfile.is_zipfile(state_uri)


def remove_run(run_uri: str) -> None:
    """Deletes a finished run's inputs and checkpoints, those that are still there. What a kill leaves of it begins anew."""
    # first: Ray Train fails on a snapshot whose checkpoints have gone
    storage.delete([join(run_uri, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)])
    if is_s3(run_uri):
        storage.delete(entry.uri for entry in list(storage.list_objects(run_uri)))
        return
    with suppress(FileNotFoundError):  # whoever began this before was killed
        shutil.rmtree(run_uri)
    parent = Path(run_uri).parent
    if parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()
