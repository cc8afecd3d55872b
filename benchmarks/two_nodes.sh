#!/usr/bin/env bash
# Two nodes on one machine: network namespaces joined by a link of limited rate, two ranks in each.
#
#     sudo benchmarks/two_nodes.sh RATE moesaic-arguments...
#     sudo benchmarks/two_nodes.sh 200mbit train recipes/expert-parallel.toml --set train.steps=20
#     sudo benchmarks/two_nodes.sh 200mbit bench comm --out comm.json
#
# RATE is as `tc` reads it; RANKS, if set, is how many ranks each node has. Both ends run torchrun as on two machines; python is the one on the PATH.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
rate=$1
shift

names=(moesaic-0 moesaic-1)
clean() {
    for name in "${names[@]}"; do
        ip netns pids "$name" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$name" 2>/dev/null || true
    done
}
trap clean EXIT
clean

for name in "${names[@]}"; do
    ip netns add "$name"
    ip -n "$name" link set lo up
done
ip link add moe0 netns moesaic-0 type veth peer name moe1 netns moesaic-1
for node in 0 1; do
    ip -n "moesaic-$node" address add "10.77.0.$((node + 1))/24" dev "moe$node"
    ip -n "moesaic-$node" link set "moe$node" up
    # Both directions are limited, as each end limits what it sends.
    ip netns exec "moesaic-$node" tc qdisc add dev "moe$node" root tbf rate "$rate" burst 256kb latency 100ms
done

start() {
    # gloo is told the interface: the host's name stands for the same address in both namespaces.
    ip netns exec "moesaic-$1" env GLOO_SOCKET_IFNAME="moe$1" OMP_NUM_THREADS=1 \
        python -m torch.distributed.run --nnodes 2 --nproc-per-node "${RANKS:-2}" --node-rank "$1" \
        --master-addr 10.77.0.1 --master-port 29500 -m moesaic "${@:2}"
}
start 1 "$@" >/dev/null 2>&1 &
start 0 "$@"
wait
