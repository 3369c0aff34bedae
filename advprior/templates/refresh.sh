#!/usr/bin/env bash
# The daily refresh: new rows of your tables -> checked tables -> priors -> feature store -> online store.
#
#   bash refresh.sh
#
# Safe to run again at any time: what is unchanged is reused, a run that was stopped goes on, and a step that fails
# leaves what is served as it was. Exit code 0: all is fresh. Schedule it with cron or a systemd timer.
set -euo pipefail
cd "$(dirname "$0")"

eval "$(advprior status --served)"  # of advprior.yaml: served (whose priors), tables, pairs (over categories), mapping
EXPORT=${EXPORT:-}             # your own command that brings the Parquet files up to date; nothing: they are
MAPPING=${MAPPING-$mapping}    # set to nothing: the tables are made by something else, as an example's are
SERVE_OPTIONS=${SERVE_OPTIONS:---no-api-key}  # further options that the service runs with, for its preflight
THREADS=${THREADS:-}           # of ONNX Runtime; nothing: the real cores
KEEP=${KEEP:-7}                # scored runs kept; the newest is what the next refresh starts from

# Feast, without the deprecation in a library of its own that it prints once a view
store() { feast -c feature_repo "$@" 2> >(grep -vF fetch_arrow_table >&2); }

# one refresh at a time: two would publish over each other
exec 9> .refresh.lock
flock -n 9 || { echo "refresh: another one is running" >&2; exit 75; }

if [ -n "$EXPORT" ]; then bash -c "$EXPORT"; fi

# All problems of the tables at once, exit code 2; the tables of yesterday stay.
if [ -n "$MAPPING" ]; then advprior data check --mapping "$MAPPING" --out "$tables"; fi
read=$tables
if [ -n "$pairs" ]; then advprior data pairs --tables "$tables" --out "$pairs" && read=$pairs; fi

# Only snapshots that were not scored yet, only users with something new. A new model cannot go on from the old one's
# priors (PRI012): the first refresh after a fit scores everybody, at the newest snapshot.
runs=refresh/$served
mkdir -p "$runs"
newest=$(cat "$runs.newest" 2> /dev/null || echo "priors/$served")
if [ "$newest/manifest.json" -nt "models/$served/onnx/manifest.json" ]; then
  from=(--since "$newest")
else
  from=(--last 1)
fi
advprior score "models/$served" --tables "$read" --out "$runs/next" "${from[@]}" ${THREADS:+--threads "$THREADS"}
scored=$runs/$(date -u +%Y%m%dT%H%M%S)
mv "$runs/next" "$scored"
echo "$scored" > "$runs.newest"

# Both publish atomically. The definitions are applied each time: it is how a new view gets in.
advprior publish "$scored" --repo feature_repo --as "$served"
advprior rank features --tables "$tables" --repo feature_repo
store apply

# From the beginning, not `materialize-incremental`: that one leaves out profiles older than a year and rows that
# were published anew. Rows that are available only later stay out.
store materialize 1970-01-01T00:00:00 "$(date -u +%Y-%m-%dT%H:%M:%S)"

# Does what is in the online store now serve? Exit code 2 when not; 3 when it would, but at another time than today:
# then the refresh has done its work, and what is left is to set the clock that the check proposes, or newer data.
# shellcheck disable=SC2086  # words of their own
advprior rank check --repo feature_repo --ranker ranker --fallback ranker_baseline $SERVE_OPTIONS || {
  code=$?
  [ "$code" -eq 3 ] || exit "$code"
  echo "refresh: what is online is current for these data, which end before today: see the fix above" >&2
}

# scored runs of earlier days; what is published was copied into the feature repository
ls -1d "$runs"/2*/ | head -n "-$KEEP" | xargs -r rm -r --
echo "refresh: done"
