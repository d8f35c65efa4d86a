#!/bin/sh
# Stock vLLM with Qwen2.5-7B-Instruct. The one place where its flags are written: docker-compose.yml and `make vllm` both
# run this script, and the tests hold what it says against the argument parser of the installed vLLM.
#
#   vllm.sh serve MODE [FLAG ...]    run `vllm serve`; a flag given here wins over the same flag below
#   vllm.sh fetch MODE               download the weights into the Hugging Face cache, and nothing else
#
# MODE  default        32,768 tokens of context                                          24 GB of GPU memory or more
#       long-context   131,072 tokens by static YaRN, which changes short prompts too    40 GB or more
#       small-gpu      4-bit weights (AWQ), 8,192 tokens                                 8 GB or more
set -eu

usage() {
  echo "usage: $0 serve|fetch default|long-context|small-gpu [FLAG ...]" >&2
  exit 2
}

[ $# -ge 2 ] || usage
action=$1 mode=$2
shift 2

model=Qwen/Qwen2.5-7B-Instruct
name=qwen2.5-7b-instruct
length=32768
case $mode in
  default) ;;
  long-context)
    length=131072
    # max_position_embeddings is part of it: without, vLLM refuses the length. The older rope_scaling loses rope_theta.
    set -- --hf-overrides '{"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 32768, "rope_theta": 1000000.0}}' "$@"
    ;;
  small-gpu)
    model=Qwen/Qwen2.5-7B-Instruct-AWQ
    name=qwen2.5-7b-instruct-awq
    length=8192
    ;;
  *) usage ;;
esac

case $action in
  fetch) exec hf download "$model" ;;
  serve) ;;
  *) usage ;;
esac

export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_MAX_N_SEQUENCES="${VLLM_MAX_N_SEQUENCES:-16}"                   # vLLM's own limit is 16,384
export VLLM_HTTP_TIMEOUT_KEEP_ALIVE="${VLLM_HTTP_TIMEOUT_KEEP_ALIVE:-75}"   # its 5 s would close the gateway's idle connections

# --generation-config vllm     the model's own generation_config.json changes nothing that was not asked for
# --max-num-queued-reqs        past that a 503, instead of a queue without end
# --shutdown-timeout           seconds that running requests get after SIGTERM; the container's stop_grace_period is longer
# --sse-keep-alive-interval    a comment line while a stream has nothing to say, so that no proxy takes it for dead
exec vllm serve "$model" \
  --served-model-name "$name" \
  --max-model-len "$length" \
  --gpu-memory-utilization 0.92 \
  --generation-config vllm \
  --enable-auto-tool-choice \
  --tool-call-parser hermes \
  --max-num-queued-reqs 512 \
  --shutdown-timeout 60 \
  --sse-keep-alive-interval 15 \
  --disable-fastapi-docs \
  "$@"
