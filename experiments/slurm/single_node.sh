#!/usr/bin/env bash
# A whole Slurm on this one machine, to try what is meant for a cluster:
#   experiments/slurm/single_node.sh start DIR   and then: export SLURM_CONF=DIR/slurm.conf
#   experiments/slurm/single_node.sh stop DIR
# Takes root, and Debian's packages slurm-wlm and munge. All of it is in DIR, a new folder that other users can reach, as
# below /tmp: munged runs as one of them. The node claims two CPUs, however many there are.
# Exit code 2: it cannot be started here; 1: it was, and did not come up.
set -euo pipefail

refuse() {
  echo "single_node.sh: $*" >&2
  exit 2
}

start() {
  [[ ! -e $SLURM_CONF ]] || refuse "$SLURM_CONF is there already: stop it first"
  mkdir -p "$dir"/{munge,state,spool}
  chmod 755 "$dir"
  head -c 128 /dev/urandom >"$dir/munge/key"
  chmod 600 "$dir/munge/key"
  chown -R munge: "$dir/munge"
  # Ports beside those of a Slurm that may be here already, and of another one of these. FirstJobId, because the port at
  # which JAX's processes meet follows from the job's number. cred_expire is how long a requeued job waits.
  local port=$((20000 + $$ % 5000 * 2))
  cat >"$SLURM_CONF" <<END
ClusterName=single
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
FirstJobId=$port
SlurmUser=root
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
END
  trap stop EXIT # unless it comes up
  runuser -u munge -- munged --socket="$dir/munge/socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
    --seed-file="$dir/munge/seed" --log-file="$dir/munge/log"
  slurmctld
  slurmd
  for _ in {1..100}; do
    if [[ $(sinfo --noheader --format=%t 2>/dev/null) == idle ]]; then
      trap - EXIT
      return
    fi
    sleep 0.2
  done
  tail -n 20 "$dir"/*.log >&2
  exit 1
}

stop() {
  # The jobs first, as they would outlive the daemons.
  if [[ -e $SLURM_CONF ]] && scancel --user=root; then
    for _ in {1..200}; do
      [[ $(squeue --noheader) ]] || break
      sleep 0.2
    done
  fi
  local file pid
  for file in "$dir"/{slurmd.pid,slurmctld.pid,munge/pid}; do
    [[ -s $file ]] || continue
    pid=$(<"$file")
    kill "$pid" || continue
    while [[ $(ps -o stat= -p "$pid") == [^Z]* ]]; do sleep 0.1; done # a zombie has ended
  done
  rm -f "$SLURM_CONF"
}

[[ $# == 2 && ($1 == start || $1 == stop) ]] || refuse "expected: start DIR, or stop DIR"
for program in munged slurmctld slurmd srun; do
  command -v "$program" >/dev/null || refuse "$program is not installed: apt-get install slurm-wlm munge"
done
[[ $EUID == 0 ]] || refuse "takes root, as slurmd starts every job as the user who submitted it"
dir=$(realpath -m "$2")
export SLURM_CONF=$dir/slurm.conf
"$1"
