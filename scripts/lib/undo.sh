# shellcheck shell=bash disable=SC2154,SC2034
# What a script has changed on the machine, and how to put it back. To be sourced.
#
# Each change is noted in the file $undo_log *before* anything can go wrong after
# it, and undo_all takes them back in reverse order. The notes outlive the
# script: even after `kill -9` another run can put things right (scratch.sh,
# and the demo for itself).
#
#   proc NAME PID START   a process and when it started (so that a process that
#                         got the same number later is left alone)
#   pages FILE COUNT      so many hugepages were added by writing to FILE
#   mount DIR             a file system was mounted on DIR
#   mkdir DIR             the directory was made; it goes if it is empty
#   file PATH             the file was made
#   switch RUNDIR         a switch keeps its sockets there

# undo_note WORD... : an entry; words must not hold blanks, but for the last
undo_note() {
    echo "$*" >>"$undo_log"
}

# Takes back the newest entry, `file PATH`
undo_last_file() {
    rm -f "$1"
    sed -i '$d' "$undo_log"
}

# The time a process started, in clock ticks since boot; nothing if there is none
proc_started() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # the name, in parentheses, may hold anything
    read -ra stat <<<"${stat##*) }"
    [ "${stat[0]}" = Z ] || echo "${stat[19]}"
}

# undo_note_proc NAME PID
undo_note_proc() {
    undo_note proc "$1" "$2" "$(proc_started "$2")"
}

# end_process PID START SECONDS: ends it in good order if it can, else by force.
# Status 1 if force was needed.
end_process() {
    local pid=$1 start=$2 tries=$(($3 * 20))
    [ -n "$start" ] && [ "$(proc_started "$pid")" = "$start" ] || return 0
    kill -TERM "$pid" 2>/dev/null || return 0
    while [ "$(proc_started "$pid")" = "$start" ]; do
        if [ "$tries" -le 0 ]; then
            kill -KILL "$pid" 2>/dev/null || true
            sleep 0.2
            return 1
        fi
        tries=$((tries - 1))
        sleep 0.05
    done
}

# The EAL file prefix of the switch in a run-time directory (docs/stats-segment.md)
switch_prefix() {
    local path byte hash=$((0xcbf29ce484222325))
    path=$(readlink -f "$1")
    if [ "$path" = /run/dpdk-vswitchd ]; then
        echo dpdk-vswitchd
        return
    fi
    for byte in $(printf %s "$path" | od -An -v -tu1); do
        hash=$(((hash ^ byte) * 0x100000001b3))
    done
    printf 'dvs-%016x\n' "$hash"
}

# Files outside its run-time directory that a switch has while it runs, one a line
switch_files() {
    local prefix mount kind file
    prefix=$(switch_prefix "$1")
    while read -r _ mount kind _; do
        [ "$kind" = hugetlbfs ] || continue
        for file in "$mount/${prefix}map_"*; do
            [ ! -e "$file" ] || echo "$file"
        done
    done </proc/mounts
    for file in "/var/run/dpdk/$prefix" "/dev/shm/$prefix.stats"; do
        [ ! -e "$file" ] || echo "$file"
    done
}

# Processes with TEXT on their command line (not this one): "PID COMMAND" a line
processes_naming() {
    local dir pid line
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        { line=$(tr "\0" " " <"$dir/cmdline"); } 2>/dev/null || continue
        case $line in *"$1"*) [ -z "$(proc_started "$pid")" ] || echo "$pid $line" ;; esac
    done
}

# undo_all: takes back what $undo_log says. Complains on standard error about what
# had to be forced, or is still there; then its status is 1.
undo_all() {
    local entry what first second third bad=0 pages left pid file
    [ -e "$undo_log" ] || return 0
    while read -r entry; do
        read -r what first second third <<<"$entry"
        # A path alone may hold blanks
        case $what in switch | mount | mkdir | file) first=${entry#* } ;; esac
        case $what in
        proc)
            end_process "$second" "$third" 10 || {
                echo "$first (process $second) did not end by itself" >&2
                bad=1
            } ;;
        switch)
            # All of its processes ended before; what is there now was left behind.
            left=$(processes_naming "$first")
            if [ -n "$left" ]; then
                echo "left behind: process $left" >&2
                while read -r pid _; do kill -KILL "$pid" 2>/dev/null || true; done <<<"$left"
                sleep 0.3
                bad=1
            fi
            left=$(switch_files "$first")
            if [ -n "$left" ]; then
                echo "left behind: $(wc -l <<<"$left") files such as $(tail -n 1 <<<"$left")" >&2
                while read -r file; do rm -rf "$file"; done <<<"$left"
                bad=1
            fi ;;
        pages)
            pages=$(($(cat "$first") - second))
            echo "$((pages > 0 ? pages : 0))" >"$first" || bad=1 ;;
        mount)
            umount "$first" || {
                echo "$first stays mounted: someone else uses it" >&2
                bad=1
            } ;;
        mkdir)
            rmdir "$first" 2>/dev/null || true ;;
        file)
            rm -f "$first" ;;
        esac
    done < <(tac "$undo_log")
    rm -f "$undo_log"
    return $bad
}
