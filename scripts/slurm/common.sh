# shellcheck shell=bash
# Sourced by the jobs of this folder: one start of a job from its nodes to the decision whether it is queued again.
#
#   begin_job ARGUMENTS...      folder, nodes, ports, environment; %a in an argument is the array task
#   check_nodes                 one line and exit code 2 for what a node lacks
#   start_ranks COMMAND...      srun with a log for each rank; wait_ranks sets `code`
#   end_job                     done, queued again, or stopped; the job's last line says why
#
# Read from the environment, which `megatron-urpo sbatch` fills in:
#   URPO_ROOT          the checkout; default: where sbatch was called
#   URPO_PYTHON        interpreter of the ranks; default: .venv of the checkout, `python` in a container
#   URPO_CONTAINER     empty: bare; pyxis:IMAGE (enroot by srun's plugin); apptainer:IMAGE
#   URPO_RUN_DIR       folder of the run; must be shared by all nodes
#   URPO_JOB_DIR       logs of all starts go to URPO_JOB_DIR/JOB_ID/start_N; default: RUN_DIR/jobs
#   URPO_MAX_RESTARTS  of this job, whatever the reason

URPO_ROOT=${URPO_ROOT:-$SLURM_SUBMIT_DIR}
URPO_CONTAINER=${URPO_CONTAINER:-}
URPO_RUN_DIR=${URPO_RUN_DIR:-$SLURM_SUBMIT_DIR}
URPO_JOB_DIR=${URPO_JOB_DIR:-$URPO_RUN_DIR/jobs}
URPO_MAX_RESTARTS=${URPO_MAX_RESTARTS:-20}
EXIT_INPUT=2 EXIT_REQUEUE=85
PORTS_PER_JOB=20 FIRST_PORT=20000 NUM_BLOCKS=500 # below the range that the kernel hands out (from 32768)
export URPO_ROOT URPO_CONTAINER

begin_job() {
    restarts=${SLURM_RESTART_COUNT:-0} step_pid='' told_to_end='' code=0
    job_dir=$URPO_JOB_DIR/$SLURM_JOB_ID
    log_dir=$job_dir/start_$restarts
    mkdir -p "$log_dir"
    arguments=("${@//%a/${SLURM_ARRAY_TASK_ID:-0}}")
    mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST_HET_GROUP_0:-$SLURM_JOB_NODELIST}")
    first_port=$((FIRST_PORT + SLURM_JOB_ID % NUM_BLOCKS * PORTS_PER_JOB))
    MASTER_ADDR=${nodes[0]}
    MASTER_PORT=$(free_port "$first_port") || stop_job "no port from $first_port on is free on $(hostname)"
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS URPO_LOG_DIR=$log_dir
    # srun of 22.05 and later does not take this over from sbatch.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    choose_environment
    keep_environment >"$log_dir/environment.txt"
    # Time is nearly up, or somebody asked for it: the ranks save and end with 85.
    trap 'ask_ranks_to_save' USR1
    # Cancelled, or preempted and queued again by SLURM, which has told the ranks as well.
    trap 'told_to_end=yes' TERM
    echo "job $SLURM_JOB_ID start $restarts on ${nodes[*]}, $MASTER_ADDR:$MASTER_PORT, logs in $log_dir"
}

choose_environment() {
    container_flags=() wrapper=()
    image=${URPO_CONTAINER#*:}
    case $URPO_CONTAINER in
    '') python=${URPO_PYTHON:-$URPO_ROOT/.venv/bin/python} ;;
    pyxis:?*)
        python=${URPO_PYTHON:-python}
        container_flags=("--container-image=$image" --no-container-mount-home
            "--container-mounts=$URPO_ROOT,$URPO_RUN_DIR,$SLURM_SUBMIT_DIR" "--container-workdir=$SLURM_SUBMIT_DIR") ;;
    apptainer:?*)
        python=${URPO_PYTHON:-python}
        wrapper=(apptainer exec --nv --bind "$URPO_ROOT,$URPO_RUN_DIR,$SLURM_SUBMIT_DIR" --pwd "$SLURM_SUBMIT_DIR" "$image") ;;
    *) stop_job "URPO_CONTAINER: '$URPO_CONTAINER' is neither empty nor pyxis:IMAGE nor apptainer:IMAGE" ;;
    esac
    program=("${wrapper[@]}" "$python")
}

# Names that may hold secrets stay out.
keep_environment() {
    date --iso-8601=seconds
    git -C "$URPO_ROOT" describe --always --dirty 2>/dev/null || true
    printf 'arguments:'; printf ' %q' "${arguments[@]}"; echo
    env | grep -E '^(SLURM|CUDA|NCCL|GLOO|OMP|MASTER|URPO|LD_LIBRARY_PATH|UCX|FI_)' |
        grep -viE '^[^=]*(KEY|TOKEN|SECRET|PASSW)' | sort
}

# free_port FIRST: the first of PORTS_PER_JOB that nobody listens on here
free_port() {
    local port listening
    listening=" $(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" {sub(/.*:/, "", $2); printf "%s ", $2}')"
    for ((port = $1; port < $1 + PORTS_PER_JOB; port++)); do
        case $listening in *" $(printf %04X "$port") "*) ;; *) echo "$port"; return ;; esac
    done
    return 1
}

check_nodes() {
    local mark=$log_dir/shared checked=0 image_file=''
    case $image in /* | ./* | *.sif | *.sqsh) image_file=$image ;; esac
    mkdir -p "$URPO_RUN_DIR"
    echo "$SLURM_JOB_ID" >"$mark"
    # shellcheck disable=SC2016  # expanded on the node
    on_each_node "$log_dir/nodes.log" bash -c '
        say() { echo "error: $1 on $(hostname): $2"; exit 2; }
        [ -z "$2" ] || [ -r "$2" ] || say "launch.container: no image $2" "copy it there, or to a disk that all nodes see"
        [ -r "$1" ] || say "run_dir: ${1%/jobs/*} is not the folder that the first node sees" "put it on a disk that all nodes share"
        [ -n "$4" ] || [ -x "$3" ] || command -v "$3" >/dev/null || say "no interpreter $3" "make the environment on a shared disk, or set URPO_PYTHON or launch.container"
    ' bash "$mark" "$image_file" "$python" "$URPO_CONTAINER" || checked=$?
    [ "$checked" = 0 ] && return
    stop_job "$(grep -h '^error:' "$log_dir"/nodes*.log | sort -u | head -n 1 | grep . || tail -n 1 "$log_dir/nodes.log")"
}

# on_each_node LOG COMMAND...
on_each_node() {
    local log=$1; shift
    srun ${SLURM_HET_SIZE:+--het-group=0} --ntasks-per-node=1 --ntasks="${#nodes[@]}" --output="$log" "$@" || return
    [ -z "${SLURM_HET_SIZE:-}" ] || srun --het-group=1 --ntasks-per-node=1 --output="${log%.log}_servers.log" "$@"
}

# start_ranks COMMAND...: in the background
start_ranks() {
    # --wait: a rank that ends before all have found each other leaves the others waiting for it.
    srun ${SLURM_HET_SIZE:+--het-group=0} --kill-on-bad-exit=0 --wait=120 --output="$log_dir/rank_%t.log" \
        "${container_flags[@]}" bash "$URPO_ROOT/scripts/slurm/rank.sh" "${program[@]}" "$@" &
    step_pid=$!
}

ask_ranks_to_save() {
    echo "asked to save and stop"
    [ -z "$step_pid" ] || kill -USR1 "$step_pid" 2>/dev/null || true
}

wait_ranks() {
    # A signal to this shell ends a wait, not the step; the shell remembers how that ended.
    while wait "$step_pid" || true; kill -0 "$step_pid" 2>/dev/null; do :; done
    code=0
    wait "$step_pid" || code=$?
    step_pid=''
    # srun gives the largest code: one rank's wrong input must not hide behind the end of the others.
    if grep -qsx ".* $EXIT_INPUT" "$log_dir"/rank_*.exit; then code=$EXIT_INPUT; fi
}

end_job() {
    [ -z "$told_to_end" ] || { echo "job $SLURM_JOB_ID was told to end"; exit "$code"; }
    case $code in
    0) echo "job $SLURM_JOB_ID is done"; exit 0 ;;
    "$EXIT_INPUT") echo "not queued again: a restart cannot mend this"; say_cause; exit "$code" ;;
    "$EXIT_REQUEUE") ;;
    *) stop_without_progress ;;
    esac
    if [ "$restarts" -ge "$URPO_MAX_RESTARTS" ]; then
        echo "not queued again: it was $restarts times, as launch.max_restarts allows"
        say_cause
        exit "$code"
    fi
    echo "queued again: restart $((restarts + 1)) of at most $URPO_MAX_RESTARTS"
    say_cause
    trap '' TERM # the shell must not be the one of this job that seems to have failed
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
}

# Two failures in a row with the same newest checkpoint: a third start would fail as well.
stop_without_progress() {
    local newest
    # A run that failed before its first save has no such folder, and find fails.
    newest=$(find "$URPO_RUN_DIR/checkpoints" -maxdepth 1 -name 'step_*[0-9]' 2>/dev/null | sort | tail -n 1) || true
    if [ -f "$job_dir/failed_at" ] && [ "$(cat "$job_dir/failed_at")" = "$newest" ]; then
        echo "not queued again: it failed twice at ${newest:-the start}"
        say_cause
        exit "$code"
    fi
    printf '%s' "$newest" >"$job_dir/failed_at"
}

# The last line of the job: rank, host and cause as far as they are known.
say_cause() {
    [ "$code" = "$EXIT_REQUEUE" ] && { echo "exit code 85: the ranks were told to stop, and have saved"; return; }
    grep -hsE '^Error: rank [0-9]+ on ' "$log_dir"/rank_*.log | tail -n 1 | grep . && return
    grep -hsE '^[Ee]rror: ' "$log_dir"/rank_*.log | tail -n 1 | grep . && return
    local file rank
    for file in "$log_dir"/rank_*.exit; do
        rank=${file##*rank_} rank=${rank%.exit}
        awk -v rank="$rank" '$2 != 0 {print "Error: rank " rank " on " $1 " ended with exit code " $2}' "$file" 2>/dev/null
    done | tail -n 1 | grep . || echo "Error: the ranks ended with exit code $code; see $log_dir"
}

stop_job() {
    echo "error: ${1#error: }"
    exit "$EXIT_INPUT"
}
