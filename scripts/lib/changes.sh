# shellcheck shell=bash disable=SC2154
# Changes to the host that can be taken back. To be sourced after host.sh and nics.sh.
#
# A change sets one thing from one value to another: KIND THING WAS NEW, a line with
# tabs between. So applying and taking back are the same act, set_value.
#
#   pages   FILE       a number: hugepages (nr_hugepages of a size and node)
#   module  NAME       - or loaded
#   driver  ADDRESS    DRIVER:OVERRIDE, either may be empty; "*:": what the kernel chooses
#   dir     PATH       - or made
#   mount   DIR        - or the option that says the page size: a hugetlbfs
#   access  PATH       UID:GID:MODE
#   file    PATH       - or =TEXT, line ends and backslashes written as \n and \\
#   link    PATH       - or its target
#
# Paths are below $root. $changes holds the changes of all runs, with the value from
# before the first; $under_way those of a run that has not ended.

# for write, below
shopt -s extglob

state_dir=$root/var/lib/dpdk-vswitch-host
changes=$state_dir/changes
under_way=$state_dir/under-way

failure=''
fail() {
    failure=$*
    return 1
}

# value_now KIND THING
value_now() {
    local dir kind options value override
    case $1 in
    pages) line_of "$2" ;;
    module) if [[ $(module_state "$2") =~ loaded|built ]]; then echo loaded; else echo -; fi ;;
    driver)
        override=$(pci_attribute "$2" driver_override)
        echo "$(nic_driver "$2"):${override/(null)/}" ;;
    dir) if [ -d "$root$2" ]; then echo made; else echo -; fi ;;
    mount)
        value=-
        while read -r _ dir kind options _; do
            [ "$dir $kind" != "$2 hugetlbfs" ] || [[ ! $options =~ pagesize=[0-9]+[MG] ]] || value=${BASH_REMATCH[0]}
        done < <(file_of /proc/mounts)
        echo "$value" ;;
    access) stat -c %u:%g:%a "$root$2" 2>/dev/null || echo - ;;
    file) if [ -e "$root$2" ]; then echo "=$(escaped "$root$2")"; else echo -; fi ;;
    link) readlink "$root$2" || echo - ;;
    esac
}

# The text of a file in one line
escaped() {
    local text
    text=$(cat "$1" && echo .)
    text=${text%.}
    text=${text//\\/\\\\}
    echo "${text//$'\n'/\\n}"
}

# set_value KIND THING VALUE: status 1 and $failure if it can't be
set_value() {
    failure=
    case $1 in
    pages) set_pages "$2" "$3" ;;
    module) set_module "$2" "$3" ;;
    driver) set_driver "$2" "${3%%:*}" "${3#*:}" ;;
    dir)
        case $3 in
        -) remove rmdir "$2" ;;
        *) attempt mkdir "$root$2" ;;
        esac ;;
    mount)
        [ -z "$root" ] || fail "$2: nothing can be mounted below HOST_ROOT" || return
        case $3 in
        -) attempt umount "$2" ;;
        *) attempt mount -t hugetlbfs -o "$3" nodev "$2" ;;
        esac ;;
    access) attempt chown "${3%:*}" "$root$2" && attempt chmod "${3##*:}" "$root$2" ;;
    file)
        case $3 in
        -) remove rm "$2" ;;
        # a text cut short by a full disk must not look like the whole
        *) write "$(printf '%b.' "${3#=}")" "$root$2.new" && attempt mv "$root$2.new" "$root$2" ;;
        esac ;;
    link)
        case $3 in
        -) remove rm "$2" ;;
        *) attempt ln -sfn "$3" "$root$2" ;;
        esac ;;
    esac
}

# attempt CMD...: what it says when it fails is the reason
attempt() {
    local said
    said=$("$@" 2>&1) || fail "${said:-$1 failed}"
}

# remove CMD PATH: unless it is gone already
remove() { [ ! -e "$root$2" ] && [ ! -L "$root$2" ] || attempt "$1" "$root$2"; }

# write TEXT. FILE: in one write(2), as sysfs wants it; the dot at the end keeps line ends
write() {
    local said
    said=$({ printf %s "${1%.}" >"$2"; } 2>&1) || fail "${said##*line +([0-9]): }"
}

set_pages() {
    local wanted=$2
    write "$wanted." "$root$1" || return
    if [ "$(line_of "$1")" -lt "$wanted" ]; then
        # Memory in pieces may be moved together
        { echo 3 >"$root/proc/sys/vm/drop_caches" && echo 1 >"$root/proc/sys/vm/compact_memory"; } 2>/dev/null || true
        write "$wanted." "$root$1" || return
    fi
    [ "$(line_of "$1")" -ge "$wanted" ] ||
        fail "only $(line_of "$1") of $wanted hugepages could be had: memory is too full or in pieces; free some, or try after a reboot"
}

set_module() {
    case $2 in
    # In use, or gone already: it does no harm
    -) modprobe -r "$1" 2>/dev/null || true ;;
    *)
        [ -z "$root" ] || fail "the module $1 can't be loaded below HOST_ROOT" || return
        attempt modprobe "$1" ;;
    esac
}

# set_driver ADDRESS DRIVER OVERRIDE
set_driver() {
    local address=$1 wanted=$2 now
    now=$(nic_driver "$address")
    # An empty line takes the override away
    write "$3"$'\n'. "$pci/devices/$address/driver_override" || return
    [ "$now" != "$wanted" ] || return 0
    [ -z "$now" ] || write "$address." "$pci/drivers/$now/unbind" || return
    case $wanted in
    '') return ;;
    '*')
        [ -n "$root" ] || modprobe "$(pci_attribute "$address" modalias)" 2>/dev/null || true
        write "$address." "$pci/drivers_probe" || return
        now=$(nic_driver "$address")
        [ -n "$now" ] && ! is_dpdk_driver "$now" || fail "the kernel has no driver for $address" ;;
    *)
        write "$address." "$pci/drivers/$wanted/bind" || return
        [ "$(nic_driver "$address")" = "$wanted" ] || fail "$wanted did not take $address (dmesg may say why)" ;;
    esac
}

# --- a run: all or nothing ---------------------------------------------------------

# apply_changes LINE...: each is noted first, so that it can be taken back even after
# a kill. Status 1 and $failure: one failed, and all before it are taken back.
apply_changes() {
    local line kind thing new reason
    mkdir -p "$state_dir"
    chmod 755 "$state_dir"
    for line; do
        echo "$line" >>"$under_way" || fail "$under_way can't be written" || break
        IFS=$'\t' read -r kind thing _ new <<<"$line"
        set_value "$kind" "$thing" "$new" || break
    done
    if [ -n "$failure" ]; then
        reason="$thing: $failure"
        take_back "$under_way" >&2 || reason+="; not all of what was done before could be taken back, see above"
        failure=$reason
        return 1
    fi
    keep_changes
}

# All that is noted, oldest first
noted_changes() { cat "$changes" "$under_way" 2>/dev/null || true; }

# Joins the run's changes with those of the runs before: the first value and the last count
keep_changes() {
    local -A first=() last=()
    local kind thing was new key order=()
    while IFS=$'\t' read -r kind thing was new; do
        # A line that was cut off was not acted on
        [ -n "$new" ] || continue
        key=$kind$'\t'$thing
        [ -n "${first[$key]+there}" ] || { order+=("$key"); first[$key]=$was; }
        last[$key]=$new
    done < <(noted_changes)
    for key in "${order[@]}"; do
        [ "${first[$key]}" = "${last[$key]}" ] || printf '%s\t%s\t%s\n' "$key" "${first[$key]}" "${last[$key]}"
    done >"$changes.new"
    mv "$changes.new" "$changes"
    rm "$under_way"
}

# take_back FILE: the changes in it, last first. What can't be taken back stays in the
# file and is told; then status 1.
take_back() {
    local lines left=() line kind thing was new now i
    mapfile -t lines <"$1"
    for ((i = ${#lines[@]} - 1; i >= 0; i--)); do
        line=${lines[i]}
        IFS=$'\t' read -r kind thing was new <<<"$line"
        now=$(value_now "$kind" "$thing")
        if [ "$kind" = pages ]; then
            # Others may have added some since, and a reboot may have taken them
            now=$((now - (new - was)))
            was=$((now > was ? now : was))
        elif [ "$now" = "$was" ] || [ "$kind $now" = 'access -' ]; then
            continue
        elif [ "$kind" = driver ] && [ ! -e "$pci/devices/$thing" ]; then
            echo "  $thing is gone"
            continue
        elif [ "$kind" != driver ] && [ "$kind" != module ] && [ "$now" != "$new" ]; then
            echo "  $thing was changed by somebody else since (it is '$now' now): left as it is"
            continue
        fi
        set_value "$kind" "$thing" "$was" || {
            echo "  $thing: $failure"
            left=("$line" "${left[@]}")
        }
    done
    if [ ${#left[@]} -gt 0 ]; then
        printf '%s\n' "${left[@]}" >"$1"
        return 1
    fi
    rm "$1"
    rmdir "$state_dir" 2>/dev/null || true
}
