#!/usr/bin/env bash
# The paper's experiment: Llama-3.1 on ToolQA, its settings. Run again after an interruption, it goes on where it stopped.
#   SIZE=70B ./coach_toolqa.sh       on one node with eight GPUs of 80 GiB (what fits: README, "Will it fit?")
#   SIZE=8B ./coach_toolqa.sh        on one GPU
# It needs data/toolqa: python tools/import_toolqa.py, see there. SPLIT=-unseen takes the tasks whose test templates do not occur in training.
# JUDGE is who judges the mistakes that are described in words: openai:NAME, or a model that fits on one GPU, for review.py is one process.
set -euo pipefail
cd "$(dirname "$0")"

size=${SIZE:-70B}
model=${MODEL:-meta-llama/Llama-3.1-$size-Instruct}
judge=${JUDGE:-meta-llama/Llama-3.1-8B-Instruct}
split=${SPLIT:-}
run=${RUN:-runs/toolqa-$size$split}
data=data/toolqa
case $size in
    70B) many="torchrun --standalone --nproc-per-node 8"; tp=8; batch=32;;
    *)   many="torchrun --standalone --nproc-per-node 1"; tp=1; batch=12;;           # the cache of more agents does not fit beside the model
esac
agent="--model $model --tools tools/toolqa.py --data $data/world --hint-dir hints/toolqa/round1 --max-length 32768 --max-steps 12 --batch $batch --tp $tp"
learn="--model $model --rank 128 --alpha 256 --lora-dropout 0.05 --lr 1e-5 --warmup 30 --batch 8 --kl-temperature 2 --hint-dropout 0.9 --epochs 2"

evaluate() {                                   # evaluate NAME [ADAPTERS AND HINTS …]
    name=$1; shift
    $many evaluate.py $agent --tasks $data/test$split.jsonl --trials 3 "$@" --out "$run/test/$name.jsonl"
}

# Tables 2 and 3: hints for the type of task, and everybody's at once.
evaluate 0-task-tools      --hints task --kinds tools
evaluate 1-task            --hints task
evaluate 2-combined-tools  --hints combined --kinds tools
evaluate 3-combined        --hints combined

# Round 1.
$many collect.py $agent --tasks $data/train$split.jsonl --hints task --trials 3 --out $run/hinted1.jsonl
$many distill.py $learn --data $run/hinted1.jsonl --out $run/round1
adapters="--adapter $run/round1"
evaluate 4-round1 $adapters

# Later rounds, as many as somebody has written hints for.
for hints in hints/toolqa/round[2-9]; do
    [ -d "$hints" ] || continue
    round=${hints##*round}
    $many collect.py $agent $adapters --tasks $data/train$split.jsonl --trials 3 --seed $round --out $run/seen$round.jsonl
    python review.py $run/seen$round.jsonl --hint-dir $hints --judge $judge --max-length 32768 --batch 12 --out $run/flagged$round.jsonl
    $many collect.py $agent $adapters --resample $run/flagged$round.jsonl --samples 4 --out $run/corrected$round.jsonl
    $many collect.py $agent $adapters --tasks $data/train$split.jsonl --hints task --trials 1 --seed $round --out $run/candidates$round.jsonl
    $many distill.py $learn $adapters --data $run/corrected$round.jsonl --balance $run/candidates$round.jsonl --out $run/round$round
    adapters="$adapters --adapter $run/round$round"
    evaluate $((round + 3))-round$round $adapters
done

# Table 7: the same data with cross-entropy on successes instead of the teacher's distribution.
$many distill.py $learn --loss ce --data $run/hinted1.jsonl --out $run/round1-ce
evaluate 9-round1-ce --adapter $run/round1-ce

python evaluate.py --table $run/test/*.jsonl --html $run/run.html
