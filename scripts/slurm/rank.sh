#!/usr/bin/env bash
# One rank under srun:  rank.sh COMMAND...
# Gives it torchrun's variables, passes signals on and writes "HOST EXIT_CODE" beside its log.
set -uo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
exit_file=$URPO_LOG_DIR/rank_$RANK.exit
echo "$(hostname) ended_without_a_word" >"$exit_file"
"$@" &
child=$!
trap 'kill -USR1 "$child" 2>/dev/null' USR1
trap 'kill -TERM "$child" 2>/dev/null' TERM
# A signal ends a wait, not the command; the shell remembers how that ended.
while wait "$child"; kill -0 "$child" 2>/dev/null; do :; done
code=0
wait "$child" || code=$?
echo "$(hostname) $code" >"$exit_file"
exit "$code"
