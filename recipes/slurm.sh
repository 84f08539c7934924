#!/bin/bash
# Eight workers of one study as a Slurm array, one GPU each.
#
#     export OPTUNA_STORAGE=postgresql://user@host/database    # password in ~/.pgpass
#     sbatch recipes/slurm.sh STUDY [options of `vit-ratio-opt worker`]
#
# The study is made before, by a script that calls create_study. Data and --artifacts lie where
# every node sees them. A worker that is preempted, or out of time in two minutes, hands its trial
# back and ends with 143; its task then goes back into the queue. When the study is done, workers
# end with 0, and with 2 when something has to be put right.
#SBATCH --job-name=vit-ratio-opt
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=vit-ratio-opt-%a.log

study=${1:?"usage: sbatch slurm.sh STUDY [options]"}
srun vit-ratio-opt worker --study-name "$study" "${@:2}"
code=$?
if [ "$code" -eq 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
