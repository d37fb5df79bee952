# shellcheck shell=bash
# A script's scratch directory and log, and its end, however it comes: the machine is put back. To be sourced, with $top
# (the source tree) and $scratch_name set; brings the other parts of lib along. Sets $state (the directory), $log, $undo_log and
# $why, which die() fills.

# shellcheck disable=SC2154
state=$(mktemp -d "${TMPDIR:-/tmp}/dpdk-vswitch-$scratch_name.XXXXXX")
log=$state/log undo_log=$state/undo
: >"$log"
: >"$undo_log"
# shellcheck source=scripts/lib/common.sh
. "$top/scripts/lib/common.sh"
# shellcheck source=scripts/lib/undo.sh
. "$top/scripts/lib/undo.sh"
# shellcheck source=scripts/lib/machine.sh
. "$top/scripts/lib/machine.sh"

# Held for as long as this script or a child of it runs, from before anybody sees it; with the boot in which it does
exec 7>"$state/lock.new"
flock 7
cat /proc/sys/kernel/random/boot_id >&7
mv "$state/lock.new" "$state/lock"

# Takes back what runs that were killed have left: directories of this user's that nobody holds
undo_killed() {
    local left undo_log
    for left in "${TMPDIR:-/tmp}"/dpdk-vswitch-*.??????; do
        [ -O "$left" ] && [ ! -L "$left" ] && { exec 6<"$left/lock"; } 2>/dev/null || continue
        if flock -n 6; then
            say "Taking back what a run that was killed has left in $left"
            undo_log=$left/undo
            # All else that it changed has ended with its boot
            cmp -s "$left/lock" "$state/lock" || sed -i '/^file /!d' "$undo_log"
            undo_all || true
            rm -rf "$left"
        fi
        exec 6<&-
    done
}

why=''
finish() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    end_job
    [ -z "$why" ] || say "FAILED: $why"
    undo_all || [ $status != 0 ] || status=1
    rm -rf "$state"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
undo_killed
