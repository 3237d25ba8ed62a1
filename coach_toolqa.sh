#!/usr/bin/env bash
# The paper's experiment on ToolQA, with its settings for Llama-3.1, and its rehearsal with a small model.
# If it is interrupted, run it again: it continues where it stopped.
#   SIZE=70B ./coach_toolqa.sh                                on one node with eight GPUs of 80 GiB
#   SIZE=8B ./coach_toolqa.sh                                 on one GPU of 80 GiB
#   SIZE=small MODEL=… ./coach_toolqa.sh                      a small model on the rehearsal, on a CPU or a GPU
#   MODEL=… ONLY="coffee flights" ./coach_toolqa.sh           the same on two of the six groups
# 70B and 8B need data/toolqa, which tools/import_toolqa.py makes. Other variables, all optional:
#   SPLIT=-unseen   the tasks whose test templates do not occur in training (Table 4)
#   ONLY            the groups whose tasks are played; without SIZE it chooses the settings for a small model
#   EVERY=N         play only every Nth template; all hints at once are then only theirs
#   EACH, EACH_TEST how many training tasks of each template a round plays, and how many test tasks [all]
#   BATCH           how many agents of a small model play at a time [32]
#   ALL             if not empty, a small model also plays 2-combined-tools and templates that it was not trained on,
#                   and all rounds run a second time with cross-entropy (Table 7)
#   DATA, RUN       where the tasks are, and where everything is written
#   HINTS           the folder with the hints: round1, and the corrective hints of round2, round3, …
#   JUDGE           who judges mistakes described in words: openai:NAME, or a model that fits on one GPU (one process)
#   OTHERS          models behind endpoints for the other rows of Tables 3 to 5: OTHERS="gpt-4o" with OPENAI_API_KEY,
#                   or OTHERS="deepseek-chat" with OPENAI_BASE_URL
#   HUMANEVAL, GSM8K   the official files, or some lines of them, for Table 6
set -euo pipefail
cd "$(dirname "$0")"
for name in MODEL DATA RUN HINTS HUMANEVAL GSM8K; do
    [[ ${!name:-} != *[[:space:]]* ]] || { echo "$name=${!name}: a path with spaces does not work here" >&2; exit 2; }
done

only=${ONLY:-} split=${SPLIT:-} every=${EVERY:-1}
size=${SIZE:-${only:+small}} size=${size:-70B}
[ $size = small ] && all=${ALL:-} || all=1
[ $size != small ] || [ -n "${MODEL:-}" ] || { echo "SIZE=small, or ONLY without SIZE: give MODEL" >&2; exit 2; }
model=${MODEL:-meta-llama/Llama-3.1-$size-Instruct}
run=${RUN:-runs/toolqa-$size${only:+-${only// /-}}$split}
case $size in
    small)                                     # one trial of everything, and a learning rate that moves a small model
        data=${DATA:-data/rehearsal} hints=${HINTS:-hints/toolqa-qwen} judge=${JUDGE:-$model}
        many=python trials=1 length=12288
        batch=${BATCH:-32}
        long="--max-length 32768 --batch $(((batch + 3) / 4))"       # for all hints at once
        local="--model $model --batch $batch"
        play="--max-steps 4 --max-new-tokens 250 --temperature 0.1"
        learn="--rank 32 --alpha 64 --lora-dropout 0 --warmup 3 --decay --kl-temperature 1 --batch 4 --verified"
        corrections="--samples 3 --temperature 0.3"
        first="--lr 3e-4" later=([2]="--lr 1e-4" [3]="--lr 1e-4 --loss ce");;  # distill.py chooses the epochs
    70B | 8B)                                  # the settings of the paper and its authors' code
        data=${DATA:-data/toolqa} hints=${HINTS:-hints/toolqa} judge=${JUDGE:-meta-llama/Llama-3.1-8B-Instruct}
        [ $size = 70B ] && processes=8 batch=32 || processes=1 batch=12    # 8B: the cache of more agents does not fit
        many="torchrun --standalone --nproc-per-node $processes" trials=3 length=32768
        local="--model $model --batch $batch --tp $processes"
        play="--max-steps 12"
        learn="--rank 128 --alpha 256 --lora-dropout 0.05 --lr 1e-5 --warmup 30 --kl-temperature 2 --batch 8"
        corrections="--samples 2"
        first="--epochs 2" later=([2]="--epochs 6" [3]="--epochs 6");;
    *)
        echo "SIZE=$size: 70B, 8B or small" >&2; exit 2;;
esac

for file in ${HUMANEVAL:-} ${GSM8K:-}; do
    [ -f $file ] || { echo "$file: no such file" >&2; exit 2; }
done

[ -d $hints/round1 ] || { echo "$hints: no folder round1; HINTS names one with round1, round2, …" >&2; exit 2; }
[ -d $hints/round2 ] || echo "$hints: no folder round2, so there is only round 1" >&2

data=${data%/} tasks=$run/tasks
mkdir -p $tasks
rehearse() {                                   # rehearse FOLDER SEED: generated corpora and tasks
    [ $size != small ] || [ -n "$(ls -A $1 2> /dev/null)" ] || {
        rm -rf "$1.part"
        python tools/rehearse_toolqa.py --out $1.part --seed $2
        [ ! -d $1 ] || rmdir $1
        mv $1.part $1
    }
}
templates() { { grep -ohE '"template": *"[^"]*"' "$@" || true; } | LC_ALL=C sort -u; }
choose() {                                     # choose FILE [N]: the first N lines of each chosen template [all]
    awk -v groups="${only// /|}" -v most="${2:-}" '
        NR == FNR { chosen[$0]; next }
        $0 ~ "\"group\": *\"(" (groups ? groups : "[^\"]*") ")\"" && match($0, /"template": *"[^"]*"/) {
            template = substr($0, RSTART, RLENGTH)
            if (template in chosen && (++seen[template] <= most || !most)) print
        }' $tasks/templates $1
}
rehearse $data 0
[ -f $data/train$split.jsonl ] || {
    echo "$data: no train$split.jsonl; tools/import_toolqa.py makes it (docs/toolqa.md)" >&2; exit 2; }
templates $data/*.jsonl | awk "NR % $every == 0" > $tasks/templates
choose $data/train$split.jsonl ${EACH:-} > $tasks/train.jsonl
choose $data/test$split.jsonl ${EACH_TEST:-} > $tasks/test.jsonl
grep -oE '"question": *"([^"\\]|\\.)*"' $tasks/test.jsonl > $tasks/asked || true
for file in train test; do
    [ -s $tasks/$file.jsonl ] || { echo "$data, ONLY=\"$only\", EVERY=$every: $file.jsonl would be empty" >&2; exit 2; }
done
agent="--tools tools/toolqa.py --data $data/world --hint-dir $hints/round1 --max-length $length $play"
learn="--model $model $learn --hint-dropout 0.9"
combined="--hints combined --hints-for $tasks/train.jsonl"    # no hints for groups and templates not in training

evaluate() {                                   # evaluate NAME [ADAPTERS AND HINTS …]
    name=$1; shift
    $many evaluate.py $local $agent --tasks $tasks/test.jsonl --trials $trials "$@" --out "$run/test/$name.jsonl"
}

# Three rounds: with the teacher's distribution (Tables 3 to 5), or, as in Table 7, with cross-entropy on successes.
rounds() {                                     # rounds kl | ce
    loss=$1 to=$run/$1
    play="$many collect.py $local $agent"
    $play --tasks $tasks/train.jsonl --hints task --trials $trials --out $run/hinted1.jsonl
    $many distill.py $learn --loss $loss $first --data $run/hinted1.jsonl --out $to/round1
    adapters="--adapter $to/round1"
    evaluate 4-$loss-round1 $adapters
    for mistakes in $hints/round[2-9]; do      # as many rounds as somebody has written hints for
        [ -d "$mistakes" ] || continue
        round=${mistakes##*round} balance= world=$data/world new=$tasks/train.jsonl
        if [ $size = small ]; then             # new tasks, about another world of the same shape
            world=$data-$round/world new=$tasks/train$round.jsonl
            rehearse $data-$round $round
            choose $data-$round/train$split.jsonl ${EACH:-} | grep -vFf $tasks/asked |
                sed "s/\"id\": *\"/&round$round-/" > $new
        fi
        again="$play $adapters --data $world"
        $again --tasks $new --trials $trials --seed $round --out $to/seen$round.jsonl
        python review.py $to/seen$round.jsonl --hint-dir $mistakes --judge $judge --max-length $length --batch 12 \
            --out $to/flagged$round.jsonl
        [ -s $to/flagged$round.jsonl ] || continue             # none of these mistakes was made: nothing to learn
        $again --resample $to/flagged$round.jsonl $corrections --rollout --out $to/corrected$round.jsonl
        [[ $loss = kl && $learn != *--verified* ]] ||          # only successes are learned: is there one?
            grep -q '"success": true' $to/corrected$round.jsonl || continue
        if [ $size = small ]; then             # full trajectories with the corrections: those of round 1 …
            balance="--balance $run/hinted1.jsonl"
        elif [ $round -gt 2 ]; then            # … or in the paper, from round 3 on, new ones
            $again --tasks $new --hints task --trials 1 --seed $round --out $to/candidates$round.jsonl
            balance="--balance $to/candidates$round.jsonl"
        fi
        $many distill.py $learn --loss $loss ${later[$round]-${later[3]}} $adapters \
            --data $to/corrected$round.jsonl $balance --out $to/round$round
        adapters="$adapters --adapter $to/round$round"
        evaluate $((round + 3))-$loss-round$round $adapters
    done
}
rounds kl
coached=$adapters

# Table 6: what the rounds do to coding and arithmetic.
for suite in humaneval gsm8k; do
    [ $suite = humaneval ] && file=${HUMANEVAL:-} || file=${GSM8K:-}
    [ -n "$file" ] || continue
    benchmark="$many evaluate.py $local --suite $suite --file $file --trials $trials --temperature 0.2"
    $benchmark --out $run/$suite-before.jsonl
    set -- $coached
    for ((n = 2; n <= $#; n += 2)); do                          # an adapter is two words: --adapter FOLDER
        $benchmark ${@:1:n} --out $run/$suite-${!n##*/}.jsonl
    done
done

# How well does the agent follow hints on templates that it was not trained on, and, as Table 4 asks, what does it do
# there without hints? Another adapter learns, of round 1's trajectories, only those of train-unseen's templates;
# test-unseen has the other templates.
unseen() {
    to=$run/unseen
    mkdir -p $to
    choose $data/test-unseen.jsonl ${EACH_TEST:-} > $to/test.jsonl
    choose $data/train-unseen.jsonl > $to/train.jsonl
    [ -s $to/test.jsonl ] && [ -s $to/train.jsonl ] || return 0
    templates $to/train.jsonl > $to/templates
    grep -Ff $to/templates $run/hinted1.jsonl > $to/hinted.jsonl
    $many distill.py $learn $first --data $to/hinted.jsonl --out $to/round1
    evaluation="$many evaluate.py $local $agent --tasks $to/test.jsonl --trials $trials"
    $evaluation --hints task --out $to/1-before.jsonl
    $evaluation --hints task --adapter $to/round1 --out $to/2-after.jsonl
    $evaluation --adapter $to/round1 --out $to/3-without-hints.jsonl
    python evaluate.py --table $to/[123]-*.jsonl
}
[ $size != small ] || [ -z "$all" ] || unseen

# Table 2: hints for the type of task. Table 3: hints for all types at once. Each is run with the tools' documentation
# alone, and with the practices as well.
[ $size != small ] || evaluate 0-none --hints none
evaluate 0-task-tools      --hints task --kinds tools
evaluate 1-task            --hints task
[ -z "$all" ] || evaluate 2-combined-tools $combined --kinds tools ${long:-}
evaluate 3-combined        $combined ${long:-}
for other in ${OTHERS:-}; do                    # a single trial, because of what it costs
    python evaluate.py --model openai:$other --batch 8 $agent --tasks $tasks/test.jsonl --trials 1 $combined \
        --out $run/test/3-$other.jsonl
done

[ -z "$all" ] || rounds ce                      # Table 7

python evaluate.py --table $run/test/*.jsonl --html $run/run.html
