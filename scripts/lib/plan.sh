# shellcheck shell=bash disable=SC2154
# What host-setup is to change, and what it refuses to. To be sourced by it: reads its
# options, fills $plan (changes, see changes.sh) and $problems. Changes nothing.

# want KIND THING VALUE: a change, if it is not so already
want() {
    local was
    was=$(value_now "$1" "$2")
    [ "$was" = "$3" ] || plan+=("$1"$'\t'"$2"$'\t'"$was"$'\t'"$3")
}

# --- hugepages -------------------------------------------------------------------

plan_hugepages() {
    local gid='' amounts node dir now pages mount
    [ -n "$hugepages$group" ] || return 0
    IFS=, read -ra amounts <<<"$hugepages"
    for node in "${!amounts[@]}"; do
        dir=$(hugepage_dir "$node" "$page_kb")
        if ! grep -qx "$node" < <(numa_nodes); then
            problems+=("there is no NUMA node $node here; there are: $(numa_nodes | tr '\n' ' ')")
        elif [ -z "$dir" ]; then
            problems+=("this kernel or CPU has no hugepages of $page_kb kB; --page-size 2M takes the usual ones")
        else
            pages=$(((10#${amounts[node]} * 1024 + page_kb - 1) / page_kb))
            now=$(line_of "$dir/nr_hugepages")
            [ "$pages" -le "$now" ] || want pages "$dir/nr_hugepages" "$pages"
        fi
    done
    mount=$(hugetlbfs_mount "$page_kb")
    if [ -z "$mount" ]; then
        mount=/dev/hugepages
        [ "$page_kb" = 2048 ] || mount=/dev/hugepages1G
        want dir "$mount" made
        want mount "$mount" "pagesize=$((page_kb / 1024))M"
    fi
    [ -z "$group" ] || { gid_of_group && want access "$mount" "0:$gid:1770"; } || true
}

# Sets $gid for --group
gid_of_group() {
    local name
    while IFS=: read -r name _ gid _; do
        [ "$name" != "$group" ] || return 0
    done < <(file_of /etc/group)
    problems+=("there is no group '$group' here; make it: groupadd --system $group")
    return 1
}

# --- NICs --------------------------------------------------------------------------

# Leaves $bind and $unbind as PCI addresses: at the next boot a name may be another NIC's
plan_nics() {
    local name address addresses=() kept=() given_back=() gid='' earlier=("${problems[@]}") count
    problems=()
    for name in "${bind[@]}"; do
        address=
        find_nic "$name" || continue
        [[ " ${addresses[*]} " == *" $address "* ]] || addresses+=("$address")
    done
    while :; do
        kept=()
        for address in "${addresses[@]}"; do
            count=${#problems[@]}
            check_bind "$address" "${addresses[@]}"
            [ ${#problems[@]} -gt "$count" ] || kept+=("$address")
        done
        # Without one of them, another may be alone in its IOMMU group
        [ -n "$keep_going" ] && [ ${#kept[@]} -lt ${#addresses[@]} ] || break
        addresses=("${kept[@]}")
    done
    [ -z "$keep_going" ] || { left_out=("${problems[@]}"); problems=(); }
    problems=("${earlier[@]}" "${problems[@]}")
    [ ${#problems[@]} = 0 ] || return 0
    if [ ${#addresses[@]} -gt 0 ] && [ ! -e "$pci/drivers/$driver" ]; then
        want module "$driver" loaded
    fi
    for address in "${addresses[@]}"; do
        want driver "$address" "$driver:$driver"
        if [ -n "$group" ] && [ "$driver" = vfio-pci ] && [ -n "$(iommu_group "$address")" ] && gid_of_group; then
            want access "/dev/vfio/$(iommu_group "$address")" "0:$gid:660"
        fi
    done
    for name in "${unbind[@]}"; do
        address=$(full_address "$name")
        if [ -n "$at_boot" ] && is_pci_address "$address" && [ ! -e "$pci/devices/$address" ]; then
            # Nothing is to be done now, but at boot it would be missed
            given_back+=("$address")
            continue
        fi
        address=
        find_nic "$name" || continue
        if [[ " ${addresses[*]} " == *" $address "* ]]; then
            problems+=("$name is named by --bind and by --unbind")
        elif is_dpdk_driver "$(nic_driver "$address")" || [ -z "$(nic_driver "$address")" ]; then
            check_free "$address"
            want driver "$address" "$(driver_before "$address")"
        fi
        given_back+=("$address")
    done
    bind=("${addresses[@]}") unbind=("${given_back[@]}")
}

# find_nic NAME: sets $address, or tells the problem
find_nic() {
    local name
    name=$(full_address "$1")
    if is_pci_address "$name"; then
        address=$name
        if [ ! -e "$pci/devices/$address" ]; then
            problems+=("there is no PCI device $address here. $(known_nics)")
        elif ! is_network_class "$address"; then
            problems+=("$address is no network device (its PCI class is $(pci_attribute "$address" class)). $(known_nics)")
        else
            return 0
        fi
    elif [ ! -e "$root/sys/class/net/$name" ] || [[ $name == */* ]]; then
        problems+=("there is no interface '$name' here; a NIC that DPDK has goes by its PCI address. $(known_nics)")
    else
        address=$(nic_of_interface "$name")
        if [ -z "$address" ]; then
            problems+=("$name is no NIC: it has no PCI device. $(known_nics)")
        elif ! is_network_class "$address"; then
            problems+=("$name stands on $address, which is no network device of its own")
        else
            return 0
        fi
    fi
    return 1
}

known_nics() {
    local a interfaces text=''
    while read -r a; do
        interfaces=$(nic_interfaces "$a")
        text+="${text:+, }$a${interfaces:+ (${interfaces//$'\n'/, })}"
    done < <(nic_addresses)
    echo "NICs here: ${text:-none}"
}

# check_bind ADDRESS ALL...: everything that speaks against giving it to DPDK
check_bind() {
    local address=$1 interfaces interface reason now group_type others='' other label
    shift
    now=$(nic_driver "$address")
    [ "$now" != "$driver" ] || return 0
    interfaces=$(nic_interfaces "$address")
    label=$address${interfaces:+ (${interfaces//$'\n'/, })}
    if is_shared_driver "$now"; then
        problems+=("$label stays with $now: DPDK works beside that driver, and not without it. Give the NIC to the switch as it is: options:dpdk-devargs=$address")
        return
    fi
    for interface in $interfaces; do
        reason=$(why_in_use "$interface")
        [ -z "$reason" ] ||
            problems+=("$interface ($address) stays with the kernel: $reason. Take that away first if the NIC is to be spared, or choose another. $(known_nics)")
    done
    if [ -n "$now" ] && ! is_dpdk_driver "$now" && [ -z "$interfaces" ]; then
        problems+=("$address stays with $now: no interface of it is in sight, so who uses it can't be told. In another network namespace? Bring it back: ip -n NAMESPACE link set dev INTERFACE netns 1")
    fi
    if [ "$(pci_attribute "$address" sriov_numvfs)" != '' ] && [ "$(pci_attribute "$address" sriov_numvfs)" != 0 ]; then
        problems+=("$label has virtual functions, which would vanish. Bind one of those, or end them first: echo 0 > /sys/bus/pci/devices/$address/sriov_numvfs")
    fi
    module_there "$driver" ||
        problems+=("$label: this kernel ($(kernel_release)) has no $driver. $(how_to_get "$driver")")
    group_type=$(pci_attribute "$address" iommu_group/type)
    case $driver in
    vfio-pci)
        if [ -z "$(iommu_group "$address")" ] && ! unsafe_noiommu; then
            problems+=("$label stays with ${now:-no driver}: vfio-pci can't take it, for no IOMMU covers it. Switch the IOMMU on (VT-d or AMD-Vi in the firmware, intel_iommu=on on an Intel host's kernel command line), or use --driver uio_pci_generic, which protects nothing from the NIC")
        fi
        # A program gets a group only as a whole
        for other in $(group_neighbours "$address"); do
            now=$(nic_driver "$other")
            [ -z "$now" ] || [ "$now" = vfio-pci ] || [ "$now" = pci-stub ] || [[ " $* " == *" $other "* ]] || others+="$other ($now) "
        done
        [ -z "$others" ] ||
            problems+=("$label shares its IOMMU group $(iommu_group "$address") with $others- the IOMMU can't tell them apart, so VFIO gives out all or none. Bind them too, or put the NIC into another slot") ;;
    *)
        if [ -n "$group_type" ] && [ "$group_type" != identity ]; then
            problems+=("$label: an IOMMU translates its addresses, and under $driver nothing would be forwarded. Use vfio-pci, or boot with iommu=pt")
        fi ;;
    esac
    check_free "$address"
}

how_to_get() {
    case $1 in
    vfio-pci | uio_pci_generic) echo "Debian's linux-image-amd64 has it, the cloud kernel does not" ;;
    *) echo "Build it from dpdk-kmods, or use vfio-pci" ;;
    esac
}

# check_free ADDRESS: a driver can't be taken from a process that uses the NIC by it
check_free() {
    local fd file pid files=() dir
    [ -z "$(iommu_group "$1")" ] || files+=("$root/dev/vfio/$(iommu_group "$1")")
    for dir in "$pci/devices/$1"/uio/uio*; do files+=("$root/dev/${dir##*/}"); done
    for file in "${files[@]}"; do
        [ -e "$file" ] || continue
        for fd in "$root"/proc/[0-9]*/fd/*; do
            [ "$fd" -ef "$file" ] || continue
            pid=${fd#"$root"/proc/}
            pid=${pid%%/*}
            problems+=("$1 is in use: process $pid ($(line_of "/proc/$pid/comm")) has $file open. Remove the port from the switch (ovs-vsctl del-port), or end the process")
            return
        done
    done
}

# driver_before ADDRESS: the kernel's, as it was before host-setup took it; else what the kernel chooses
driver_before() {
    local kind thing was
    while IFS=$'\t' read -r kind thing was _; do
        [ "$kind $thing" = "driver $1" ] && ! is_dpdk_driver "${was%%:*}" && [ "$was" != : ] || continue
        echo "$was"
        return
    done < <(noted_changes)
    echo '*:'
}

check_undo() {
    local kind thing problems=()
    while IFS=$'\t' read -r kind thing _; do
        [ "$kind" != driver ] || check_free "$thing"
    done < <(noted_changes)
    [ ${#problems[@]} = 0 ] || wrong "${problems[@]}"
}

# --- at boot -------------------------------------------------------------------------

# What the installed unit does and what this run does, at each boot, by a unit made from the one that ships.
# Sets $boot_command
plan_boot() {
    local unit=dpdk-vswitch-host.service line text='' options=()
    local dir=/etc/systemd/system shipped=$top/packaging/systemd/$unit
    if [ ! -d "$root$dir" ]; then
        problems+=("--at-boot makes a systemd unit, and there is no $dir here; run this at boot by other means: $top/scripts/host-setup --yes ${again[*]}")
        return
    fi
    [ -r "$shipped" ] || { problems+=("--at-boot needs $shipped"); return; }
    # Such a path would need quotes in the unit, which is read back by words
    [[ $top =~ ^[A-Za-z0-9/._+:@-]+$ ]] || {
        problems+=("--at-boot: systemd can't start a program by the path '$top/scripts/host-setup'; install the scripts first (docs/guide.md, As a service)")
        return
    }
    boot_options "$dir/$unit"
    if [ ${#options[@]} = 0 ]; then
        want link "$dir/multi-user.target.wants/$unit" -
        want file "$dir/$unit" -
        return
    fi
    boot_command="$top/scripts/host-setup --yes --keep-going ${options[*]}"
    while IFS= read -r line; do
        [[ $line != ExecStart=* ]] || line="ExecStart=$boot_command"
        text+="$line\\n"
    done <"$shipped"
    want file "$dir/$unit" "=$text"
    want dir "$dir/multi-user.target.wants" made
    want link "$dir/multi-user.target.wants/$unit" "../$unit"
}

# boot_options UNIT: sets $options to those of the unit, if it is there, and of this run: NICs add up,
# other values of this run take the place of the unit's
boot_options() {
    local line words=() i name address named=() nics=() others=() was
    local -A value=()
    while IFS= read -r line; do
        # --option=value is two words as well
        [[ $line != ExecStart=* ]] || read -ra words <<<"${line//=/ }"
    done < <(file_of "$1")
    for ((i = 2; i < ${#words[@]}; i++)); do
        name=${words[i]}
        case $name in
        --yes | --keep-going) continue ;;
        --bind) named+=("${words[i + 1]-}") ;;
        # Earlier versions kept it; at boot NICs are the kernel's anyway
        --unbind) ;;
        --hugepages | --page-size | --group | --driver) value[$name]=${words[i + 1]-} ;;
        *)
            problems+=("$1 has '$name', which host-setup can't keep; take it out there")
            return ;;
        esac
        i=$((i + 1))
    done
    for name in "${named[@]}"; do
        address=$(full_address "$name")
        is_pci_address "$address" || find_nic "$name" ||
            problems+=("$1 has --bind $name; put the NIC's PCI address there, or take it out")
        [[ " ${nics[*]} ${unbind[*]} " != *" $address "* ]] || continue
        nics+=("$address")
        [[ " ${bind[*]} " == *" $address "* ]] || others+=("$address")
    done
    if [ ${#bind[@]} -gt 0 ]; then
        was=${value[--driver]:-vfio-pci}
        [ ${#others[@]} = 0 ] || [ "$driver" = "$was" ] ||
            problems+=("at boot all NICs go to one driver: $1 gives ${others[*]} to $was, this would give ${bind[*]} to $driver. Name all of them by --bind, with one --driver")
        value[--driver]=${driver#vfio-pci}
    fi
    for address in "${bind[@]}"; do
        [[ " ${nics[*]} " == *" $address "* ]] || nics+=("$address")
    done
    # A page size belongs to an amount
    [ -z "$hugepages" ] || value[--hugepages]=$hugepages value[--page-size]=
    [ "$page_kb" = 2048 ] || value[--page-size]=1G
    [ -z "$group" ] || value[--group]=$group
    [ -n "${value[--hugepages]-}${value[--group]-}${nics[*]}" ] || return 0
    for name in --hugepages --page-size --group --driver; do
        [ -z "${value[$name]-}" ] || options+=("$name" "${value[$name]}")
    done
    for address in "${nics[@]}"; do options+=(--bind "$address"); done
}

# --- in words ------------------------------------------------------------------------

# describe_changes [back]: reads changes
describe_changes() {
    local kind thing was new value
    while IFS=$'\t' read -r kind thing was new; do
        value=$new
        [ "${1-}" != back ] || { value=$was was=$new; }
        case $kind in
        pages) echo "  hugepages of $(page_size "$thing"): $value ${1:-(now ${was:-0})}" ;;
        module) if [ "$value" = - ]; then echo "  unload the module $thing"; else echo "  load the module $thing"; fi ;;
        driver) echo "  NIC $thing '$(nic_name "$thing")'$(on_interface "$thing"): from $(driver_words "$was") to $(driver_words "$value")" ;;
        dir) if [ "$value" = - ]; then echo "  remove the directory $thing"; else echo "  make the directory $thing"; fi ;;
        mount) if [ "$value" = - ]; then echo "  unmount $thing"; else echo "  mount hugetlbfs ($value) on $thing"; fi ;;
        access) [ "$value" = - ] || echo "  owner and mode of $thing: $value" ;;
        file | link) if [ "$value" = - ]; then echo "  remove $thing"; else echo "  write $thing"; fi ;;
        esac
    done
}

# /sys/.../node0/hugepages/hugepages-2048kB/nr_hugepages -> 2048kB on NUMA node 0
page_size() {
    local size=${1%/*} node=
    [[ $1 != */node/node* ]] || { node=${1#*/node/node}; node=" on NUMA node ${node%%/*}"; }
    echo "${size##*hugepages-}$node"
}

on_interface() {
    local interfaces
    interfaces=$(nic_interfaces "$1")
    echo "${interfaces:+ (${interfaces//$'\n'/, })}"
}

driver_words() {
    case ${1%%:*} in
    '') echo "no driver" ;;
    '*') echo "the kernel's driver" ;;
    *) echo "${1%%:*}" ;;
    esac
}

# What a user should know of the plan
hints() {
    local line kind thing
    for line in "${plan[@]}"; do
        IFS=$'\t' read -r kind thing _ <<<"$line"
        case $line in
        pages*hugepages-1048576kB*)
            echo "  Note: pages of 1 GiB are surely there only if reserved by the kernel command line: hugepagesz=1G hugepages=N" ;;
        driver*:vfio-pci)
            [ ! -e "$pci/devices/$thing/physfn" ] ||
                echo "  Note: $thing is a virtual function; the driver of its physical function has to stay"
            [ -n "$(iommu_group "$thing")" ] ||
                echo "  Note: no IOMMU: $thing will reach all of the memory (enable_unsafe_noiommu_mode)" ;;
        driver*:uio_pci_generic | driver*:igb_uio)
            echo "  Note: no IOMMU protects the memory from $thing under ${line##*:}" ;;
        esac
    done
    if [ -n "$at_boot" ]; then
        echo "  At each boot: ${boot_command:-nothing}"
    else
        echo "  This holds until the next boot; --at-boot keeps it."
    fi
}
