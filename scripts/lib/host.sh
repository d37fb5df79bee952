# shellcheck shell=bash
# What a host has, read from sysfs and procfs: kernel, IOMMU, hugepages. Changes
# nothing. To be sourced; bash and coreutils do. (NICs: nics.sh)
#
# HOST_ROOT=DIR   read (and let host-setup change) the tree below DIR in place of /

root=${HOST_ROOT-}
# shellcheck disable=SC2034
pci=$root/sys/bus/pci

# The first line of a file below $root; nothing if it can't be read
line_of() {
    local text=''
    { IFS= read -r text <"$root$1"; } 2>/dev/null || true
    printf '%s\n' "$text"
}

# A whole file below $root; nothing if it can't be read
file_of() { cat "$root$1" 2>/dev/null || true; }

# --- the kernel --------------------------------------------------------------------

kernel_release() { line_of /proc/sys/kernel/osrelease; }

# module_state NAME: "loaded", "built in", "available"; nothing if the kernel has no such module
module_state() {
    local name=${1//-/_} builtin entry
    local modules
    modules=$root/lib/modules/$(kernel_release)
    if [ -e "$modules/modules.builtin" ]; then
        while read -r builtin; do
            builtin=${builtin##*/}
            builtin=${builtin%.ko}
            [ "${builtin//-/_}" != "$name" ] || { echo "built in"; return; }
        done <"$modules/modules.builtin"
    fi
    if [ -e "$root/sys/module/$name/initstate" ]; then
        echo loaded
    elif [ -e "$pci/drivers/$1" ]; then
        echo "built in"
    else
        { while IFS=: read -r entry _; do
            entry=${entry##*/}
            entry=${entry%%.ko*}
            [ "${entry//-/_}" != "$name" ] || { echo available; break; }
        done <"$modules/modules.dep"; } 2>/dev/null || true
    fi
}

module_there() { [ -n "$(module_state "$1")" ]; }

# An IOMMU is there and in use
iommu_in_use() { compgen -G "$root/sys/kernel/iommu_groups/[0-9]*" >/dev/null; }

# Where VFIO may do without one (its own module parameter says so)
unsafe_noiommu() { [ "$(line_of /sys/module/vfio/parameters/enable_unsafe_noiommu_mode)" = Y ]; }

# --- hugepages -----------------------------------------------------------------------

# The NUMA nodes' numbers, one a line; 0 where the kernel knows of none
numa_nodes() {
    local dir found=
    for dir in "$root"/sys/devices/system/node/node[0-9]*; do
        [ ! -d "$dir/hugepages" ] || { echo "${dir##*/node}"; found=1; }
    done | sort -n
    [ -n "$found" ] || [ -d "$root/sys/devices/system/node/node0/hugepages" ] || echo 0
}

# hugepage_dir NODE KB: where the counts of that size are, below $root; nothing if the kernel lacks the size
hugepage_dir() {
    local dir
    for dir in "/sys/devices/system/node/node$1/hugepages/hugepages-$2kB" "/sys/kernel/mm/hugepages/hugepages-$2kB"; do
        [ ! -d "$root$dir" ] || { echo "$dir"; return; }
    done
}

# hugetlbfs_mount KB: where pages of that size are mounted first
hugetlbfs_mount() {
    local dir kind options size option
    while read -r _ dir kind options _; do
        [ "$kind" = hugetlbfs ] || continue
        size=$(default_hugepage_kb)
        for option in ${options//,/ }; do
            case $option in
            pagesize=*M) size=${option//[!0-9]/} size=$((size * 1024)) ;;
            pagesize=*G) size=${option//[!0-9]/} size=$((size * 1048576)) ;;
            esac
        done
        [ "$size" != "$1" ] || { echo "$dir"; return; }
    done < <(file_of /proc/mounts)
}

default_hugepage_kb() {
    local name kb
    while read -r name kb _; do
        [ "$name" != Hugepagesize: ] || { echo "$kb"; return; }
    done < <(file_of /proc/meminfo)
    echo 2048
}
