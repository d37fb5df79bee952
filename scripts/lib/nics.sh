# shellcheck shell=bash disable=SC2154
# The NICs of a host: which there are, what drives them, who uses them. Changes
# nothing. To be sourced after host.sh.

# What DPDK drives a NIC by, best first
dpdk_drivers=(vfio-pci uio_pci_generic igb_uio)
# Kernel drivers that DPDK's work beside, and not without (primary/src/switch/pci.rs)
shared_drivers=(mlx5_core mlx4_core mana)

is_pci_address() { [[ $1 =~ ^[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$ ]]; }
# full_address NAME: a PCI address as the kernel writes it; an interface's name as it is
full_address() {
    local name=$1
    [[ ! $name =~ ^[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$ ]] || name=0000:$name
    ! is_pci_address "$name" || name=${name,,}
    echo "$name"
}
is_dpdk_driver() { [[ " ${dpdk_drivers[*]} " == *" $1 "* ]]; }
is_shared_driver() { [[ " ${shared_drivers[*]} " == *" $1 "* ]]; }

# possible_drivers DRIVER: what else DPDK could drive a NIC by that has DRIVER, one a line
possible_drivers() {
    local entry
    ! is_shared_driver "$1" || return 0
    for entry in "${dpdk_drivers[@]}"; do
        [ "$entry" = "$1" ] || ! module_there "$entry" || echo "$entry"
    done
}

# PCI addresses of all network devices, one a line
nic_addresses() {
    local dir
    for dir in "$pci"/devices/*; do
        ! is_network_class "${dir##*/}" || echo "${dir##*/}"
    done
}

is_network_class() { [[ $(pci_attribute "$1" class) == 0x02* ]]; }

# pci_attribute ADDRESS NAME
pci_attribute() { line_of "/sys/bus/pci/devices/$1/$2"; }

# nic_driver ADDRESS: the driver in use, nothing if there is none
nic_driver() {
    local link
    link=$(readlink "$pci/devices/$1/driver") || return 0
    echo "${link##*/}"
}

# nic_interfaces ADDRESS: the kernel's interfaces on it, one a line
nic_interfaces() {
    local dir
    # a virtio NIC's interface hangs below its virtio device
    for dir in "$pci/devices/$1"/net/* "$pci/devices/$1"/virtio*/net/*; do
        [ ! -d "$dir" ] || echo "${dir##*/}"
    done
}

# nic_of_interface NAME: the PCI address; nothing if it has none (a bridge, a tap)
nic_of_interface() {
    local path
    path=$(readlink -f "$root/sys/class/net/$1/device") || return 0
    while [ -n "$path" ]; do
        if is_pci_address "${path##*/}"; then
            echo "${path##*/}"
            return
        fi
        path=${path%/*}
    done
}

# nic_name ADDRESS: what it is, in words if lspci knows them
nic_name() {
    local words=''
    [ -n "$root" ] || words=$(lspci -s "$1" 2>/dev/null) || words=''
    words=${words#*: }
    [ -n "$words" ] || words="$(pci_attribute "$1" vendor):$(pci_attribute "$1" device)"
    echo "${words//0x/}"
}

# iommu_group ADDRESS: its number; nothing if no IOMMU covers the device
iommu_group() {
    local link
    link=$(readlink "$pci/devices/$1/iommu_group") || return 0
    echo "${link##*/}"
}

# group_neighbours ADDRESS: the other devices of its IOMMU group that a program
# would have to have too; the bridges above them do not count
group_neighbours() {
    local dir
    for dir in "$pci/devices/$1"/iommu_group/devices/*; do
        dir=${dir##*/}
        [ "$dir" != "$1" ] && [ "$dir" != '*' ] || continue
        [[ $(pci_attribute "$dir" class) == 0x0604* ]] || echo "$dir"
    done
}

# nic_status: all NICs by kind of driver, in the form of DPDK's own tool
nic_status() {
    local address driver interfaces entry possible use kind
    local -A list=()
    local none=$'<none>\n'
    while read -r address; do
        driver=$(nic_driver "$address")
        interfaces=$(nic_interfaces "$address")
        possible=$(possible_drivers "$driver")
        use=
        for entry in $interfaces; do [ -z "$(why_in_use "$entry")" ] || use=' *Active*'; done
        kind=kernel
        [ -n "$driver" ] || kind=other
        ! is_dpdk_driver "$driver" || kind=dpdk
        list[$kind]+="$address '$(nic_name "$address")'${interfaces:+ if=${interfaces//$'\n'/,}}"
        list[$kind]+="${driver:+ drv=$driver} unused=${possible//$'\n'/,}$use"$'\n'
    done < <(nic_addresses)
    heading "Network devices using a driver for DPDK"
    printf '%s\n' "${list[dpdk]:-$none}"
    heading "Network devices using a kernel driver"
    printf '%s\n' "${list[kernel]:-$none}"
    heading "Network devices without a driver"
    printf '%s' "${list[other]:-$none}"
}

heading() { printf '%s\n%s\n' "$1" "${1//?/=}"; }

# --- who uses an interface -------------------------------------------------------

# why_in_use INTERFACE: in words; nothing if nobody does
why_in_use() {
    local name=$1 upper reason
    if has_default_route "$name"; then
        echo "it carries the default route"
        return
    fi
    reason=$(addresses_of "$name")
    if [ -n "$reason" ]; then
        echo "it has the address ${reason%%$'\n'*}"
        return
    fi
    reason=$(link_local_connection "$name")
    if [ -n "$reason" ]; then
        echo "a TCP connection runs over its address $reason"
        return
    fi
    for upper in "$root/sys/class/net/$name"/upper_*; do
        upper=${upper##*/upper_}
        [ "$upper" != '*' ] || continue
        reason=$(why_in_use "$upper")
        echo "$upper stands on it${reason:+, and ${reason/#it /$upper }}"
        return
    done
}

has_default_route() {
    local name destination mask plen rest
    while read -r name destination _ _ _ _ _ mask _; do
        [ "$name $destination $mask" != "$1 00000000 00000000" ] || return 0
    done < <(file_of /proc/net/route)
    while read -r destination plen rest; do
        [ "$destination$plen ${rest##* }" != "0000000000000000000000000000000000 $1" ] || return 0
    done < <(file_of /proc/net/ipv6_route)
    return 1
}

# Its addresses, but for link-local ones, which every interface has that is up
addresses_of() {
    local name address scope mask
    if [ -z "$root" ] && command -v ip >/dev/null; then
        ip -o addr show dev "$1" 2>/dev/null |
            while read -r _ _ _ address rest; do [[ $rest == *'scope link'* ]] || echo "$address"; done
        return
    fi
    # Without iproute2: a network that is reached directly stands for an IPv4 address in it
    while read -r name address mask _ _ _ _ _; do
        [ "$name $mask" != "$1 00000000" ] || [ "$address" = 00000000 ] || echo "in $(dotted "$address")"
    done < <(file_of /proc/net/route)
    while read -r address _ _ scope _ name; do
        [ "$name" != "$1" ] || [ "$scope" = 20 ] || colons "$address"
    done < <(file_of /proc/net/if_inet6)
}

# A link-local IPv6 address of the interface with an established TCP connection (SSH, say)
link_local_connection() {
    local address scope name local_end state
    while read -r address _ _ scope _ name; do
        [ "$name" = "$1" ] && [ "$scope" = 20 ] || continue
        while read -r _ local_end _ state _; do
            if [ "$state" = 01 ] && [ "${local_end%:*}" = "$(words_swapped "$address")" ]; then
                colons "$address"
                return
            fi
        done < <(file_of /proc/net/tcp6)
    done < <(file_of /proc/net/if_inet6)
}

# 0100000A -> 10.0.0.1
dotted() { printf '%d.%d.%d.%d\n' "0x${1:6:2}" "0x${1:4:2}" "0x${1:2:2}" "0x${1:0:2}"; }

# fe80...0001 -> fe80:...:0001
colons() {
    local i text=''
    for i in 0 4 8 12 16 20 24 28; do text+=:${1:i:4}; done
    echo "${text#:}"
}

# The bytes of each 32-bit word turned round, as /proc/net/tcp6 has them
words_swapped() {
    local i text='' word=${1^^}
    for i in 0 8 16 24; do text+=${word:i+6:2}${word:i+4:2}${word:i+2:2}${word:i:2}; done
    echo "$text"
}
