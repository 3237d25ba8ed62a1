#!/usr/bin/env bash
# The paper's experiment: Llama-3.1 on ToolQA, its settings. Run again after an interruption, it goes on where it stopped.
#   SIZE=70B ./coach_toolqa.sh       on one node with eight GPUs of 80 GiB (what fits: README, "Will it fit?")
#   SIZE=8B ./coach_toolqa.sh        on one GPU
# It needs data/toolqa: python tools/import_toolqa.py, see there. SPLIT=-unseen takes the tasks whose test templates do not occur in training (Table 4).
# JUDGE is who judges the mistakes that are described in words: openai:NAME, or a model that fits on one GPU, for review.py is one process.
# OTHERS are models behind endpoints for the other rows of Tables 3 to 5, as in OTHERS="gpt-4o" with OPENAI_API_KEY, or OTHERS="deepseek-chat" with OPENAI_BASE_URL.
# HUMANEVAL and GSM8K are the official files, for Table 6.
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
local="--model $model --batch $batch --tp $tp"
agent="--tools tools/toolqa.py --data $data/world --hint-dir hints/toolqa/round1 --max-length 32768 --max-steps 12"
learn="--model $model --rank 128 --alpha 256 --lora-dropout 0.05 --lr 1e-5 --warmup 30 --batch 8 --kl-temperature 2 --hint-dropout 0.9"
combined="--hints combined --hints-for $data/train$split.jsonl"                      # nothing that is written for templates that training does not have

evaluate() {                                   # evaluate NAME [ADAPTERS AND HINTS …]
    name=$1; shift
    $many evaluate.py $local $agent --tasks $data/test$split.jsonl --trials 3 "$@" --out "$run/test/$name.jsonl"
}

# Table 2: hints for the type of task. Table 3: everybody's at once. Both with the tools' documentation alone, and with the practices.
evaluate 0-task-tools      --hints task --kinds tools
evaluate 1-task            --hints task
evaluate 2-combined-tools  $combined --kinds tools
evaluate 3-combined        $combined
for other in ${OTHERS:-}; do
    python evaluate.py --model openai:$other --batch 8 $agent --tasks $data/test$split.jsonl --trials 3 $combined --kinds tools --out $run/test/3-$other-tools.jsonl
    python evaluate.py --model openai:$other --batch 8 $agent --tasks $data/test$split.jsonl --trials 3 $combined --out $run/test/3-$other.jsonl
done

# Three rounds, by the teacher's distribution (Tables 3 to 5), and as Table 7 has it by cross-entropy on what succeeded.
rounds() {                                     # rounds kl | ce
    loss=$1 to=$run/$1 adapters=
    $many collect.py $local $agent --tasks $data/train$split.jsonl --hints task --trials 3 --out $run/hinted1.jsonl
    $many distill.py $learn --loss $loss --epochs 2 --data $run/hinted1.jsonl --out $to/round1
    adapters="--adapter $to/round1"
    evaluate 4-$loss-round1 $adapters
    for hints in hints/toolqa/round[2-9]; do                                         # as many as somebody has written hints for
        [ -d "$hints" ] || continue
        round=${hints##*round} balance=
        $many collect.py $local $agent $adapters --tasks $data/train$split.jsonl --trials 3 --seed $round --out $to/seen$round.jsonl
        python review.py $to/seen$round.jsonl --hint-dir $hints --judge $judge --max-length 32768 --batch 12 --out $to/flagged$round.jsonl
        $many collect.py $local $agent $adapters --resample $to/flagged$round.jsonl --samples 2 --rollout --out $to/corrected$round.jsonl
        if [ $round -gt 2 ]; then                                                    # full trajectories beside the corrections from round 3 on
            $many collect.py $local $agent $adapters --tasks $data/train$split.jsonl --hints task --trials 1 --seed $round --out $to/candidates$round.jsonl
            balance="--balance $to/candidates$round.jsonl"
        fi
        $many distill.py $learn --loss $loss --epochs 6 $adapters --data $to/corrected$round.jsonl $balance --out $to/round$round
        adapters="$adapters --adapter $to/round$round"
        evaluate $((round + 3))-$loss-round$round $adapters
    done
}
rounds kl
coached=$adapters
rounds ce

# Table 6: what the three rounds do to coding and arithmetic.
for suite in humaneval gsm8k; do
    [ $suite = humaneval ] && file=${HUMANEVAL:-} || file=${GSM8K:-}
    [ -n "$file" ] || continue
    $many evaluate.py $local --suite $suite --file $file --trials 3 --temperature 0.2 --out $run/$suite-before.jsonl
    $many evaluate.py $local $coached --suite $suite --file $file --trials 3 --temperature 0.2 --out $run/$suite-after.jsonl
done

python evaluate.py --table $run/test/*.jsonl --html $run/run.html
