# shellcheck shell=bash
# The member number INDEX of RECIPES x LEARNING_RATES x SEEDS: sets RECIPE, LEARNING_RATE, SEED and the RUN's name.
# shellcheck disable=SC2034,SC2153  # the job that sources this has set the former, and uses the latter

members=$((${#RECIPES[@]} * ${#LEARNING_RATES[@]} * ${#SEEDS[@]}))
if ((INDEX >= members)); then
    echo "member $INDEX of a sweep of $members, which are counted from 0: make the array of the job's header fit" >&2
    exit 2
fi
RECIPE=${RECIPES[INDEX % ${#RECIPES[@]}]}
LEARNING_RATE=${LEARNING_RATES[INDEX / ${#RECIPES[@]} % ${#LEARNING_RATES[@]}]}
SEED=${SEEDS[INDEX / ${#RECIPES[@]} / ${#LEARNING_RATES[@]}]}
RUN=sweep/$(basename "$RECIPE" .toml)-lr-$LEARNING_RATE-seed-$SEED
