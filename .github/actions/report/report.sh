#!/usr/bin/env bash
# Verdicts as a sticky comment and as the job summary. Everything that comes from the pull request
# (labels, names) is data: it reaches commands as whole arguments only.
set -euo pipefail
body=$(mktemp)
options=()
if [ -s "${GITHUB_EVENT_PATH:-}" ]; then
  while IFS= read -r label; do
    options+=(--allow "$label")
  done < <(jq -r '.pull_request.labels[]?.name | select(startswith("allow-lora: ")) | ltrimstr("allow-lora: ")' "$GITHUB_EVENT_PATH")
fi
status=0
said=$(mktemp)
python -m lora_target_bench compare "$BASELINE" "$CONTENDER" --format comment "${options[@]}" > "$body" 2> "$said" || status=$?
cat "$said" >&2
if [ "$status" -gt 1 ] || ! [ -s "$body" ]; then  # no verdict, for a mistyped label for example
  [ "$status" -gt 1 ] || status=2
  {
    echo "<!-- lora-target-bench: verdicts -->"
    echo "### ❌ LoRA targets: no verdict"
    echo
    # Indented it is text, whatever it says: no Markdown, no mention.
    tail -n 5 "$said" | sed 's/^/    /'
  } > "$body"
fi
cat "$body" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
number=$(jq -r '.pull_request.number // empty' "${GITHUB_EVENT_PATH:-/dev/null}" 2>/dev/null || true)
post() {
  local marker old
  marker=$(head -n 1 "$body")
  old=$(gh api --paginate "repos/$GITHUB_REPOSITORY/issues/$number/comments" \
    | jq -r --arg marker "$marker" '.[] | select(.body | startswith($marker)) | .id' | head -n 1) || return
  if [ -n "$old" ]; then
    gh api --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$old" --field body=@"$body" > /dev/null
  else
    gh api "repos/$GITHUB_REPOSITORY/issues/$number/comments" --field body=@"$body" > /dev/null
  fi
}
if [ -n "${GH_TOKEN:-}" ] && [ -n "$number" ]; then
  # A fork's token may write none: the verdict stands all the same, in the summary and as the status.
  post || echo "::warning title=LoRA targets::the comment was not posted: the verdicts are in the summary"
fi
exit "$status"
