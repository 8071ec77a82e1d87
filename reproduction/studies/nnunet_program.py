"""Plans, trains and predicts with nnU-Net v2 itself, on one core; `reproduction.studies.nnunet` runs it.

    /environment/of/nnunet/bin/python reproduction/studies/nnunet_program.py WORK_FOLDER DATASET 3d_fullres 20 0

Needs nnunetv2 and nothing of handful. The raw data set is in WORK_FOLDER/raw. The last two words are core-minutes of
training and the seed. Plans, network, loss, augmentation and rates are nnU-Net's own, but for the number of steps:
epochs of 25 steps (one of fewer, in little time), as many as the time allows by the length of three trial steps, over
which nnU-Net's polynomial rate falls to zero. One batch is validated in each epoch in place of 50, which changes
nothing in the weights. Label maps of imagesTs are written to WORK_FOLDER/predicted, by the last weights with nnU-Net's
mirrored predictions averaged, and WORK_FOLDER/times.json.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

STEPS_PER_EPOCH = 25
TRIAL_STEPS = 3
PROCESSES = "nnUNet_n_proc_DA"


def main(folder: Path, dataset: int, configuration: str, minutes: float, seed: int) -> None:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {PROCESSES: "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}

    import numpy as np
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    cpu = torch.device("cpu")

    extract_fingerprints([dataset], num_processes=1)
    plans = plan_experiments([dataset])
    preprocess([dataset], plans, [configuration], [1])

    os.environ[PROCESSES] = "0"  # augmentation in the process that trains; planning wants one at least
    trial = get_trainer_from_args(str(dataset), configuration, "all", device=cpu)
    trial.on_train_start()
    trial.train_step(next(trial.dataloader_train))
    began = time.process_time()
    for _ in range(TRIAL_STEPS):
        trial.train_step(next(trial.dataloader_train))
    step_core_s = (time.process_time() - began) / TRIAL_STEPS

    trainer = get_trainer_from_args(str(dataset), configuration, "all", device=cpu)
    steps = max(1, round(minutes * 60 / step_core_s))
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = min(steps, STEPS_PER_EPOCH), 1
    trainer.num_epochs = max(1, round(steps / STEPS_PER_EPOCH))
    began = time.process_time()
    trainer.run_training()
    fit_core_s = time.process_time() - began

    predictor = nnUNetPredictor(device=cpu, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    (folder / "predicted").mkdir()
    scans = folder / "raw" / trainer.plans_manager.dataset_name / "imagesTs"
    began = time.process_time()
    predictor.predict_from_files_sequential(str(scans), str(folder / "predicted"))
    cases = len(list((folder / "predicted").glob("*.nii.gz")))
    planned = trainer.configuration_manager
    times = {
        "steps": trainer.num_epochs * trainer.num_iterations_per_epoch,
        "step_core_s": round(step_core_s, 3),
        "fit_core_s": round(fit_core_s, 1),
        "predict_core_s": round((time.process_time() - began) / cases, 2),
        "patch": [int(side) for side in planned.patch_size],
        "batch": int(planned.batch_size),
        "parameters": sum(weights.numel() for weights in trainer.network.parameters()),
    }
    (folder / "times.json").write_text(json.dumps(times), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
