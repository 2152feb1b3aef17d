#!/usr/bin/env bash
# A real SLURM of two nodes on this machine, for the tests of the job scripts; root only.
#   slurm_local.sh install            Debian's slurm-wlm and munge where this user may; says what is missing otherwise
#   slurm_local.sh start FOLDER       `export SLURM_CONF=FOLDER/slurm.conf` afterwards
#   slurm_local.sh stop FOLDER        ends its daemons by their pids and removes its namespaces
#   slurm_local.sh guard FOLDER PID   waits for the end of process PID, and stops what it has not stopped
#
# Each node is a network, UTS and mount namespace with an address and a name of its own, on a bridge without a way out.
# Nodes have eight devices that SLURM takes for GPUs; there is no accounting, no cgroup and no binding.
set -euo pipefail
BRIDGE=urpobr NET=10.79.0 NODES=2
packages=(slurm-wlm munge shellcheck iproute2)

fail() { echo "$*" >&2; exit 1; }

missing() {
    local program
    [ "$(id -u)" = 0 ] || { echo "not root"; return; }
    for program in slurmctld slurmd sbatch munged shellcheck ip nsenter unshare; do
        command -v "$program" >/dev/null || { echo "no program $program"; return; }
    done
    ip netns add urpoprobe 2>/dev/null && ip netns del urpoprobe || echo "no network namespaces"
}

install() {
    local lacks
    lacks=$(missing)
    if [[ $lacks = "no program"* ]] && command -v apt-get >/dev/null; then
        echo "Installing SLURM for the tests of the job scripts"
        { apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 update && DEBIAN_FRONTEND=noninteractive \
            apt-get -o Acquire::http::Timeout=60 -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends \
            "${packages[@]}"; } >/dev/null 2>&1 || true
        lacks=$(missing)
    fi
    [ -z "$lacks" ] || fail "$lacks"
}

network_up() {
    local i
    ip link add $BRIDGE type bridge || fail "another local SLURM runs on this machine: stop it first"
    touch "$1/run/network"
    ip addr add $NET.254/24 dev $BRIDGE
    ip link set $BRIDGE up
    { echo "127.0.0.1 localhost"; echo "$NET.254 urpoctl"; } >"$1/hosts"
    for i in $(seq $NODES); do
        echo "$NET.$i urpo$i" >>"$1/hosts"
        ip netns add "urpo$i"
        ip link add "urpov$i" type veth peer name eth0 netns "urpo$i"
        ip link set "urpov$i" master $BRIDGE up
        ip -n "urpo$i" addr add "$NET.$i/24" dev eth0
        ip -n "urpo$i" link set eth0 up
        ip -n "urpo$i" link set lo up
    done
}

network_down() {
    local i
    for i in $(seq $NODES); do
        ip netns pids "urpo$i" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "urpo$i" 2>/dev/null || true
        ip link del "urpov$i" 2>/dev/null || true
    done
    ip link del $BRIDGE 2>/dev/null || true
}

# on_host FOLDER HOST COMMAND...: urpoctl has the machine's own network. FOLDER/private differs on every host.
on_host() {
    local folder=$1 host=$2 enter=()
    shift 2
    [ "$host" = urpoctl ] || enter=(nsenter "--net=/run/netns/$host")
    # shellcheck disable=SC2016  # expanded inside
    "${enter[@]}" unshare --uts --mount --propagation private -- bash -c '
        mount --bind "$0/hosts" /etc/hosts
        mount -t tmpfs tmpfs "$0/private"
        hostname "$1"
        shift
        exec "$@"' "$folder" "$host" "$@"
}

write_config() {
    local folder=$1 i
    mkdir -p "$folder"/{munge,state,log,run,devices,private}
    chmod 755 "$folder"
    chmod 700 "$folder/munge"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    # SLURM asks for character devices; these are copies of /dev/null.
    for i in $(seq 0 7); do mknod "$folder/devices/gpu$i" c 1 3; done
    echo "Name=gpu File=$folder/devices/gpu[0-7]" >"$folder/gres.conf"
    cat >"$folder/slurm.conf" <<END
ClusterName=urpo
SlurmctldHost=urpoctl($NET.254)
SlurmctldPort=16827
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket=$folder/run/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1,requeue_setup_env_fail
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
MinJobAge=3600
JobRequeue=1
GresTypes=gpu
NodeName=urpo[1-$NODES] NodeAddr=$NET.[1-$NODES] Port=17011 CPUs=128 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes=urpo[1-$NODES] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
END
}

start() {
    local folder=$1 i
    write_config "$folder"
    export SLURM_CONF=$folder/slurm.conf
    network_up "$folder"
    munged --key-file="$folder/munge/key" --socket="$folder/run/munge.socket" --pid-file="$folder/run/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" --num-threads=2
    on_host "$folder" urpoctl slurmctld -f "$SLURM_CONF"
    for i in $(seq $NODES); do
        mkdir -p "$folder/spool.urpo$i"
        on_host "$folder" "urpo$i" slurmd -f "$SLURM_CONF" -N "urpo$i"
    done
    for i in $(seq 150); do
        [ "$(timeout 5 sinfo -h -N -o '%N %T' 2>/dev/null | grep -c ' idle$')" != $NODES ] || return 0
        sleep 0.2
    done
    tail -n 20 "$folder"/log/*.log >&2
    fail "the nodes did not become idle"
}

stop() {
    local folder=$1 file pid
    export SLURM_CONF=$folder/slurm.conf
    timeout 10 scancel --full --signal=KILL --user=root 2>/dev/null || true
    timeout 10 scancel --user=root 2>/dev/null || true
    for file in "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid" "$folder/run/munged.pid"; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
    [ ! -e "$folder/run/network" ] || network_down # where start failed, another's
}

guard() {
    tail --pid="$2" -f /dev/null
    [ ! -e "$1/slurm.conf" ] || stop "$1"
}

case ${1:-} in
install) install ;;
start) start "$(realpath "${2:?FOLDER}")" ;;
stop) stop "$(realpath "${2:?FOLDER}")" ;;
guard) guard "$(realpath "${2:?FOLDER}")" "${3:?PID}" ;;
*) sed -n '2,7s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
