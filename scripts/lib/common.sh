# shellcheck shell=bash disable=SC2154,SC2034
# Shell functions that the scripts share. To be sourced, with $log (a file) set.

export LC_ALL=C DEBIAN_FRONTEND=noninteractive
started=$EPOCHREALTIME

# Seconds since $1 (a value of $EPOCHREALTIME), with one decimal
since() {
    local tenths=$(((${EPOCHREALTIME/./} - ${1/./}) / 100000))
    echo "$((tenths / 10)).$((tenths % 10))"
}

# Progress, with the time since the script's start
say() {
    tell "$@"
    [ -z "${log-}" ] || echo "== $*" >>"$log"
}
tell() {
    local seconds=$(((${EPOCHREALTIME/./} - ${started/./}) / 1000000))
    printf '[%2d:%02d] %s\n' $((seconds / 60)) $((seconds % 60)) "$*"
}

die() {
    # What a waiting user has to see last
    why=$*
    exit 1
}

# hold_signals ... release_signals: around a change and the note of it (undo.sh),
# for a signal must not come in between
held=
hold_signals() {
    held=
    trap 'held=130' INT
    trap 'held=143' TERM HUP
}
release_signals() {
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [ -z "$held" ] || exit "$held"
}

job='' job_patience=10

# run CMD...: runs it with its output in $log (what it prints to standard output
# in $stdout, if that is set), and says every 20 s how far it is.
# In the background and in a session of its own, so that Ctrl-C reaches this
# script, at once, and not half of its children.
run() {
    local began=$EPOCHREALTIME next=20 status=0
    echo "+ $*" >>"$log"
    setsid "$@" >>"${stdout:-$log}" 2>>"$log" </dev/null 8>&- &
    job=$!
    while kill -0 "$job" 2>/dev/null; do
        sleep 0.1
        if [ $(((${EPOCHREALTIME/./} - ${began/./}) / 1000000)) -ge $next ]; then
            tell "    ... $next s: $(tail -n 1 "$log" | tr -cd '[:print:]' | cut -c1-90)"
            next=$((next + 20))
        fi
    done
    wait "$job" || status=$?
    job=
    return $status
}

# run_shown CMD...: as run, but its output is shown, and not in $log
run_shown() {
    local status=0
    setsid "$@" </dev/null 8>&- &
    job=$!
    wait "$job" || status=$?
    job=
    return $status
}

# Ends what `run` was at, with all its children
end_job() {
    [ -n "$job" ] || return 0
    local tries=$((job_patience * 10))
    kill -TERM -- "-$job" 2>/dev/null || true
    while [ $tries -gt 0 ] && kill -0 -- "-$job" 2>/dev/null; do
        sleep 0.1
        tries=$((tries - 1))
    done
    kill -KILL -- "-$job" 2>/dev/null || true
    wait "$job" 2>/dev/null || true
    job=
}
