"""What training code imports: ``report``, ``should_stop``, ``job_specification``, and for the trials of a
search ``add_arguments``, ``parse_architecture``, ``stop_training``, checkpoints. Loads nothing of the
launcher's side."""

from __future__ import annotations

from nas_hpc.specification import JobSpec, balsamjob_spec, job_specification
from nas_hpc.trial.architecture import (
    add_arguments,
    parse_architecture,
    read_saved_architecture,
    save_architecture,
)
from nas_hpc.trial.checkpoints import (
    Checkpoint,
    check_restored_step,
    find_checkpoint,
    load_checkpoint,
    load_keras,
    save_checkpoint,
    save_keras,
)
from nas_hpc.trial.place import trial_dir, trial_number
from nas_hpc.trial.proxy import (
    get_stop_training,
    stop_training,
    update_trial_training_accuracy_metric,
    update_trial_training_latency_metric,
)
from nas_hpc.trial.proxy_tasks import (
    Choice,
    ProxyTaskConfig,
    data_shares,
    data_subsets,
    data_tasks,
    grid,
    model_scales,
)
from nas_hpc.trial.reports import UnknownMetric, report
from nas_hpc.trial.retrain import nas_trial_id, previous_trial_dir, read_architecture, retrain_map
from nas_hpc.trial.rewards import compute_reward, wait_for_latency
from nas_hpc.trial.stopping import should_stop
from nas_hpc.trial.subsets import choose_subset, folder_of, write_subset

__all__ = [
    "Checkpoint",
    "Choice",
    "JobSpec",
    "ProxyTaskConfig",
    "UnknownMetric",
    "add_arguments",
    "balsamjob_spec",
    "check_restored_step",
    "choose_subset",
    "compute_reward",
    "data_shares",
    "data_subsets",
    "data_tasks",
    "find_checkpoint",
    "folder_of",
    "get_stop_training",
    "grid",
    "job_specification",
    "load_checkpoint",
    "load_keras",
    "model_scales",
    "nas_trial_id",
    "parse_architecture",
    "previous_trial_dir",
    "read_architecture",
    "read_saved_architecture",
    "report",
    "retrain_map",
    "save_architecture",
    "save_checkpoint",
    "save_keras",
    "should_stop",
    "stop_training",
    "trial_dir",
    "trial_number",
    "update_trial_training_accuracy_metric",
    "update_trial_training_latency_metric",
    "wait_for_latency",
    "write_subset",
]
