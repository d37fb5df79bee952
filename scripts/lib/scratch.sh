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
