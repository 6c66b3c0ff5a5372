#!/usr/bin/env bash
# Two machines of eight GPUs under SLURM, one task per GPU. Launch from the repository's root, on a shared file system:
#
#   sbatch experiments/slurm.sh                                   # DDP
#   CONFIG=experiments/fsdp.yaml RUN=runs/fsdp sbatch experiments/slurm.sh
#
# A job that was killed or requeued goes on from its last checkpoint: submit it again.
#SBATCH --job-name=lit-semantic-peft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

CONFIG=${CONFIG:-experiments/ddp.yaml}
RUN=${RUN:-runs/slurm}
RESUME=()
if [ -d "$RUN/checkpoints" ]; then RESUME=(--ckpt_path last); fi

# Every task is one process; Lightning reads its rank and the address of the first machine from the environment.
# Options behind the script's name go to `fit`.
srun python -m lit_semantic_peft fit --config "$CONFIG" --trainer.default_root_dir "$RUN" \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" ${RESUME[@]+"${RESUME[@]}"} "$@"
