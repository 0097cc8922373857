"""Ray Tune over the training: Optuna proposes, ASHA stops, and each trial is `train_network` in a small driver.

How Ray 2.60 behaves here, and what that asks for:
- Tune stops a trial by ending its driver. The Ray Train controller dies with it but its placement group stays (what
  removes it asks the dashboard, which a local cluster doesn't have), and the next trial would wait for ever. So the
  controller is told to abort before the driver ends: its handle comes with every report.
- A driver holds no CPU (a sliver of its node's own resource, on the node of the search, where local weights are), and
  the workers of all concurrent trials together leave room for the tasks that decode photos: see `plan_workers`.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from contextlib import suppress
from typing import Any

import optuna
import pyarrow as pa
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.util.queue import Full

from jobs.config.tune import TuneConfig
from jobs.training.start import Start
from jobs.training.trainer import TrainingStoppedError, run_name, train_network
from jobs.tuning.space import search_space, trial_config
from jobs.tuning.trials import COMPLETED, FAILED, STOPPED_EARLY, TrialRecord, Trials, best_nll, format_setting, ranked
from model.learner import TOO_LARGE
from model.recipe import SETTLED_SHARE
from schemas.errors import GateError, InputError

logger = logging.getLogger(__name__)

METRIC = "selection_nll"
PROGRESS = "epochs_percent"
REDUCTION = 2
RANDOM_TRIALS = 4
"""Drawn at random before the proposals learn from what came of them."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
CONTROLLER, RUN, HISTORY, FAILURE, FINAL = "controller", "run", "history", "failure", "final"


def run_trials(bins: pa.Table, start: Start, trials: Trials) -> None:
    """Runs the search up to `num_trials`; every trial's record in `trials` has ended when it returns.

    The trials of earlier runs come first and in their order, so that Optuna and ASHA know them: one that has ended only
    reports again what it reported then, one that was cut short goes on from its last checkpoint.
    """
    # what Tune hands on to a trial stands in Ray's logs: no keys, which every node has of its own; but whose cluster it is
    ENV_VARS_TO_PROPAGATE.difference_update(CREDENTIALS)
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # looks for what trials wrote on their nodes, and warns where it isn't here; the search keeps its own records
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the records are our own
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupted search must not go on to choose
    config, known, keep = trials.config, trials.records, KeepRecords(trials)
    if len(known) >= config.num_trials and all(record.final for record in known):
        keep.remove_runs()
        return  # in Tune each of them would start a driver, for seconds, only to say again what it said
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS,
        # what is known is not drawn, so with the same seed the first draws of a restart would be its repetition
        seed=(config.seed + len(known)) % 2**32,
    )
    scheduler = AsyncHyperBandScheduler(
        time_attr=PROGRESS,
        max_t=99,  # no rung at the end: who gets there is done
        grace_period=first_rung_percent(config),
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )
    driver = tune.with_resources(
        tune.with_parameters(run_trial, bins=bins, start=start, trials=trials),
        tune.PlacementGroupFactory([{this_node(): 0.001}]),
    )
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        tune.Tuner(
            driver,
            param_space=search_space(config),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="min",
                search_alg=FairSearch(sampler=sampler, points_to_evaluate=[record.parameters for record in known]),
                scheduler=scheduler if config.early_stopping else None,
                num_samples=max(config.num_trials, len(known)),
                max_concurrent_trials=config.max_concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name="search", storage_path=folder, callbacks=[keep], verbose=0),
        ).fit()


class FairSearch(OptunaSearch):
    """Ray's, but for a trial that storage or a dead process cut short: Optuna would take it for the worst of all settings, and
    keep away from them."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and result.get(FINAL) is False:
            result, error = None, True
        super().on_trial_complete(trial_id, result, error)


def this_node() -> str:
    """The resource that only the node of this process has."""
    node_id = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)
    return next(name for name in resources if name.startswith("node:") and name != "node:__internal_head__")


def run_trial(parameters: dict[str, Any], bins: pa.Table, start: Start, trials: Trials) -> dict[str, Any]:
    """The driver of one trial, given `trials` as earlier runs of the search have left them. Returns its last report: the
    history of its epochs, or why it failed."""
    record = next((record for record in trials.records if record.parameters == parameters), None)
    config = trial_config(trials.config, parameters)
    if record is not None:
        for epoch in record.epochs:
            tune.report({**epoch, **progress(epoch, config.max_epochs)})
        if record.final:
            return {METRIC: final_metric(record)}
    run = run_name(bins, config, start)
    reports = ReportEpochs(config.max_epochs, run)
    try:
        trained = train_network(
            bins,
            config,
            start,
            trials.training_uri,
            callbacks=[reports],
            num_runs=trials.config.max_concurrent,
            conclude=(),
        )
    except TrainingStoppedError as error:
        return {METRIC: math.inf, RUN: run, FAILURE: error.reason, FINAL: True}
    except (GateError, InputError) as error:
        # what doesn't fit the GPU now will not fit it when the same command runs again
        return {METRIC: math.inf, RUN: run, FAILURE: str(error), FINAL: TOO_LARGE in str(error)}
    finally:
        reports.wait()
    history = trained.outcome["history"]
    return {METRIC: best_nll(history, config.image_size), RUN: run, HISTORY: history}


def final_metric(record: TrialRecord) -> float:
    """What Optuna was told at the end of a trial: of one that was stopped early its last epoch's NLL."""
    if record.status == FAILED or not record.epochs:
        return math.inf
    best = record.selection_nll if record.status == COMPLETED else None
    return record.epochs[-1][METRIC] if best is None else best


def progress(epoch: dict[str, Any], max_epochs: int) -> dict[str, float]:
    """ASHA's time, in percent of the trial's own epochs: the learning rate is planned for so many, and at the same epoch
    a short training is about to end while a long one has just warmed up. None of the last epoch: a trial that is done can't
    be stopped, and with its learning rate at zero it would be no measure for those under way."""
    done = epoch["epoch"] + 1
    return {PROGRESS: 100 * done / max_epochs} if done < max_epochs else {}


def first_rung_percent(config: TuneConfig) -> int:
    """When ASHA first compares trials. A quarter through; but where photos grow and trials have different numbers of
    epochs, only once all are on their whole size: a trial that is a step behind would look worse than it is."""
    if config.photos_grow and config.space == "seed":
        return math.floor(100 * SETTLED_SHARE) + 1
    return 25


class ReportEpochs(TuneReportCallback):
    """Ray's callback, which runs in the controller; a report also says how far the trial is and who controls it."""

    def __init__(self, max_epochs: int, run: str) -> None:
        super().__init__()
        self._max_epochs, self._run = max_epochs, run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        epoch = metrics[0]
        if not math.isfinite(epoch[METRIC]):
            return  # the trial is about to fail and to say why; ASHA would call it stopped
        report = {
            **epoch,
            **progress(epoch, self._max_epochs),
            CONTROLLER: ray.get_runtime_context().current_actor,
            RUN: self._run,
        }
        # the queue holds one: Tune, which no longer reads a trial that it is stopping, must not hold up the controller
        with suppress(Full):
            self._training_actor_item_queue.put(report, timeout=5)

    def wait(self) -> None:
        """Until Tune has taken every report: the driver's last one would block those that come after it for ever."""
        while not self._training_actor_item_queue.empty():
            time.sleep(0.05)


class KeepRecords(tune.Callback):
    """Runs in the search's own process: writes each trial's record as it goes, and frees what a trial held."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._controllers: dict[str, ActorHandle] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._trials.of(trial.config)
        if record.final:
            return
        record.status = record.reason = None
        self._trials.save(record)
        drawn = ", ".join(f"{name} {format_setting(value)}" for name, value in record.parameters.items())
        logger.info("trial %d: %s", record.number, drawn)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        controller, run = result.pop(CONTROLLER, None), result.pop(RUN, None)
        record = self._trials.of(trial.config)
        if record.final:
            return
        record.run = run or record.run
        if controller is not None:
            self._controllers[trial.trial_id] = controller
            record.add_epoch(result)
        elif FAILURE in result:
            record.end(FAILED, result[FAILURE], final=result[FINAL])
        elif HISTORY in result:
            for epoch in result.pop(HISTORY):
                record.add_epoch(epoch)
            record.end(COMPLETED)
        self._trials.save(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Also of a trial that ASHA stops, and before its driver ends."""
        self._release(trial)
        record = self._trials.of(trial.config)
        if record.status is None:
            record.end(STOPPED_EARLY)
            self._trials.save(record)
        nll = "no selection NLL" if record.selection_nll is None else f"selection NLL {record.selection_nll:.4f}"
        logger.info("trial %d: %s after %d epochs, %s", record.number, record.status, len(record.epochs), nll)
        self.remove_runs()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Of a driver that died, not of a training that failed."""
        self._release(trial)
        record = self._trials.of(trial.config)
        if record.final:
            return  # it was only to say again what it reported in an earlier run
        lines = str(trial.get_error() or "the trial's driver died").strip().splitlines()
        record.end(FAILED, lines[-1][:500], final=False)
        self._trials.save(record)

    def _release(self, trial: Trial) -> None:
        controller = self._controllers.pop(trial.trial_id, None)
        if controller is not None:
            with suppress(RayActorError):  # it leaves as it is told to, or has left
                ray.get(controller.abort.remote())

    def remove_runs(self) -> None:
        """The checkpoints of every trial that has ended, but of the best one."""
        best = ranked(self._trials.records)[:1]
        for record in self._trials.records:
            if record.final and record not in best:
                self._trials.drop_checkpoints(record)
