#!/usr/bin/env bash
# Measures one thing side by side with a peer or a floor:  bash scripts/benchmark.sh NAME [ARGUMENTS]
#   planner    packing and balancing of a long-tailed batch against the lower bound and first-fit decreasing
#   step       one GRPO step here and in TRL 1.16, which gets an environment of its own: seconds by part
#   logprobs   log-probabilities in chunks against whole logits: time and peak memory
#   sync       weights into a real SGLang server by each transport: export, sending, load, beside a plain copy
#   convert    Hugging Face to Megatron and back against cp and sync of the same bytes: time and peak memory
#   collect    makespan of a collection that judges early against one with two barriers, on scripted servers
#   plan       what `megatron-urpo plan` predicts of memory against what ranks take, and the time of its search
#   data       packing beside the bare tokenizer on the same text, and its peak memory at 1 and 10 times the input
#   verify     answers and programs verified a second, beside a bare fork and a bare start of Python
#   checkpoint how long a save stops the loop, in the background and waited for, beside a plain write of the same bytes
#   faults     10,000 requests to scripted servers of which some break off or hang: what is answered, retries, memory
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

name=${1:-}
if [ -z "$name" ] || [ ! -f "$ROOT/scripts/benchmarks/$name.py" ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 2
fi
prepare_environment
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"  # the scripted servers are the tests' own
exec python "scripts/benchmarks/$name.py" "${@:2}"
