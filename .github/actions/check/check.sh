#!/usr/bin/env bash
# bench check on every path of $PATHS, as annotations; the job summary says the same for people.
set -uo pipefail

if [ -n "${INSTALL:-}" ]; then
  # word splitting is meant: several requirements
  # shellcheck disable=SC2086
  python -m pip install --quiet $INSTALL || exit 2
fi
mapfile -t paths < <(printf '%s\n' "$PATHS" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d')
# An option and its value may stand on one line: `--fail-on unknown-key` is `--fail-on=unknown-key`.
mapfile -t options < <(printf '%s\n' "${OPTIONS:-}" \
  | sed -E 's/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d; s/^(--[a-z-]+)[[:space:]]+/\1=/')
[ -n "${MODEL:-}" ] && options+=(--model "$MODEL")
if [ "${#paths[@]}" -eq 0 ]; then
  echo "::error::bench check: no path was given"
  exit 2
fi

status=0
told=""
said=$(mktemp)
for path in "${paths[@]}"; do
  # It annotates what is wrong with a file; what it refuses before, an option, is of none, and said
  # once.
  shown=$(python -m lora_target_bench check "$path" ${options[@]+"${options[@]}"} --format github 2>"$said")
  code=$?
  [ -z "$shown" ] || printf '%s\n' "$shown"
  cat "$said" >&2
  line=$(tail -n 1 "$said")
  if [ "$code" -eq 2 ] && [ -z "$shown" ] && [ "$line" != "$told" ]; then
    echo "::error title=bench check::${line//'%'/%25}"
    told=$line
  fi
  [ "$code" -gt "$status" ] && status=$code
done
rm -f "$said"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
  for path in "${paths[@]}"; do
    printf '```text\n'
    python -m lora_target_bench check "$path" ${options[@]+"${options[@]}"} 2>&1
    printf '```\n'
  done >>"$GITHUB_STEP_SUMMARY"
fi
exit "$status"
